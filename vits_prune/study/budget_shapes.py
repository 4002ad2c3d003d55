"""Which shapes are worth trying for a budget.

Each lever is timed alone, what it loses is estimated, and combinations are ranked by both. The
estimates only decide what to try first: what is claimed of a shape is measured on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vits_prune.measure.cost import Spread, measure_latency
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import Shape
from vits_prune.pruning.calibration import texts_for
from vits_prune.pruning.sensitivity import channel_sensitivity
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured.couplings import groups, sizes, sizes_of
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.pruning.structured.importance import importance
from vits_prune.voices.voice import Voice

STAGES = {
    "decoder": ("decoder_width", "branches", "resblock_width"),
    "flow": ("flows", "wavenet_layers"),
    "text": ("ffn_width", "encoder_layers"),
}
"""Stage of speaking -> the levers that make it faster."""
MULTIPLE = 4
"""Widths are multiples of 4 channels: multiples of 8 leave too few choices in most decoders."""
RUNS = 5
_PARTS = {"decoder": "decoder", "flow": "flow", "text": "text_encoder"}
_WIDTHS = {"decoder_width": 8, "resblock_width": 4, "ffn_width": 4}
"""Lever -> into how many equal steps its width is divided."""
_COUNTS = {"branches": 1, "flows": 2, "wavenet_layers": 2, "encoder_layers": 3}
"""Lever -> how many of them may be removed."""


@dataclass(frozen=True)
class LeverEstimate:
    """One lever at one value, measured and estimated alone."""

    lever: str
    value: float | int
    time: float
    """Seconds of its stage over the original's."""
    size: float
    """Parameters of its part over the original's."""
    lost: float
    """What is lost by `channel_sensitivity`, before anything is refitted."""


@dataclass(frozen=True)
class ShapeEstimate:
    """A combination of levers."""

    shape: Shape
    time: float
    """Predicted latency ratio."""
    mb: float
    """Predicted size of the dense file."""
    lost: float


def best_shapes(
    estimates: Sequence[ShapeEstimate],
    count: int,
    *,
    max_time: float = math.inf,
    max_mb: float = math.inf,
) -> list[ShapeEstimate]:
    """Return the shapes within limits that lose least, one for each width of the decoder.

    The estimates are too coarse to compare losses in different parts with each other.
    """
    found: dict[float, ShapeEstimate] = {}
    for one in sorted(estimates, key=lambda one: one.lost):
        if one.time <= max_time and one.mb <= max_mb:
            found.setdefault(one.shape.decoder_width, one)
    return list(found.values())[:count]


def estimate_shapes(
    voice: Voice, text: str, seed: int = 0, *, progress: Progress = SILENT
) -> tuple[ShapeEstimate, ...]:
    """Time every lever at every value alone, and combine them.

    Args:
        voice: the original.
        text: what is spoken for timing.
        seed: of the noise and of calibration.
        progress: may raise to cancel.

    Raises:
        InputError: the voice can say nothing.
    """
    texts = texts_for(voice, PruneSpec(seed=seed))
    sensitivity = channel_sensitivity(voice, texts, seed, progress=progress.part(0.0, 0.3))
    scores = {group.name: importance(sensitivity)(voice, group) for group in groups(voice)}
    levers, shares = _estimate_levers(voice, scores, text, seed, progress.part(0.3, 1.0))
    parameters = {stage: _parameters(voice, part) for stage, part in _PARTS.items()}
    rest, whole = 1 - sum(shares.values()), _parameters(voice)
    estimates = []
    for chosen in itertools.product(*(_combinations(levers[stage]) for stage in STAGES)):
        time, count, lost = rest, float(whole), 0.0
        values: dict[str, Any] = {}
        for stage, some in zip(STAGES, chosen, strict=True):
            time += shares[stage] * math.prod(one.time for one in some)
            count -= parameters[stage] * (1 - math.prod(one.size for one in some))
            lost += sum(one.lost for one in some)
            values |= {one.lever: one.value for one in some}
        if values:
            shape = Shape(**values, multiple=MULTIPLE)
            estimates.append(ShapeEstimate(shape, time, 4e-6 * count, lost))
    return tuple(estimates)


def time_cut(voice: Voice, shape: Shape, text: str, seed: int = 0) -> tuple[Voice, Spread, float]:
    """Return a cheap cut to a shape, its latency ratio and its ratio of MACs.

    It takes as long to speak as a careful cut.
    """
    small = cut(voice, choose(voice, shape))
    return small, *time_against(voice, small, text, seed, RUNS)


def time_against(
    voice: Voice, other: Voice, text: str, seed: int, runs: int
) -> tuple[Spread, float]:
    """Return the latency ratio and the ratio of MACs of a voice over the original."""
    latency = measure_latency(voice, other, text, seed, runs=runs)
    speed = latency.speed_up
    ratio = Spread(1 / speed.median, 1 / speed.high, 1 / speed.low)
    return ratio, latency.pruned.dense_macs / max(1, latency.original.dense_macs)


def _estimate_levers(
    voice: Voice, scores: dict[str, np.ndarray], text: str, seed: int, progress: Progress
) -> tuple[dict[str, list[LeverEstimate]], dict[str, float]]:
    """Return the levers by stage, and each stage's share of the original's time.

    Each cut sets one lever of every stage, so that fewer cuts have to be timed.
    """
    values = {
        stage: [(lever, value) for lever in levers for value in _values(voice, lever)]
        for stage, levers in STAGES.items()
    }
    found: dict[str, list[LeverEstimate]] = {stage: [] for stage in STAGES}
    shares: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for cuts in progress.track(list(itertools.zip_longest(*values.values())), "timing cut"):
        levers = dict(filter(None, cuts))
        small = cut(voice, choose(voice, Shape(**levers, multiple=MULTIPLE)))
        latency = measure_latency(voice, small, text, seed, runs=RUNS)
        before, after = latency.original.stage_seconds, latency.pruned.stage_seconds
        for stage, one in zip(STAGES, cuts, strict=True):
            shares[stage].append(before[stage].median / before["total"].median)
            if one:
                time = min(1.0, after[stage].median / before[stage].median)
                size = _parameters(small, _PARTS[stage]) / _parameters(voice, _PARTS[stage])
                lost = _lost(voice, scores, *one)
                found[stage].append(LeverEstimate(one[0], one[1], time, size, lost))
    return found, {stage: float(np.median(ones)) if ones else 0.0 for stage, ones in shares.items()}


def _values(voice: Voice, lever: str) -> list[float | int]:
    """Return the values of a lever that change the voice, each in another way."""
    now = sizes_of(voice.model.config)
    if lever == "resblock_width" and now.inner_channels is None:
        return []
    if lever in _COUNTS:
        count = getattr(now, lever)
        return [count - gone for gone in range(1, _COUNTS[lever] + 1) if count > gone]
    found: dict[object, float | int] = {}
    for step in range(_WIDTHS[lever] - 1, 0, -1):
        value = step / _WIDTHS[lever]
        after = sizes(voice.model.config, _one_lever(lever, value))
        if after != now:
            found.setdefault(after, value)
    return list(found.values())


def _lost(voice: Voice, scores: dict[str, np.ndarray], lever: str, value: float | int) -> float:
    """Return the importance of what a lever removes."""
    kept = choose(voice, _one_lever(lever, value), scores).kept
    return float(sum(scores[one].sum() - scores[one][list(kept[one])].sum() for one in kept))


def _one_lever(lever: str, value: float | int) -> Shape:
    values: dict[str, Any] = {lever: value, "multiple": MULTIPLE}
    return Shape(**values)


def _combinations(estimates: Sequence[LeverEstimate]) -> list[tuple[LeverEstimate, ...]]:
    """Return all sets with at most one value of each lever."""
    levers: dict[str, list[LeverEstimate | None]] = {}
    for one in estimates:
        levers.setdefault(one.lever, [None]).append(one)
    return [tuple(filter(None, chosen)) for chosen in itertools.product(*levers.values())]


def _parameters(voice: Voice, part: str | None = None) -> int:
    module = voice.model if part is None else getattr(voice.model, part)
    return sum(parameter.numel() for parameter in module.parameters())
