"""Which shapes are worth trying: each lever is timed alone, what it takes away is estimated, and the combinations are ranked by both.

The estimates only say in which order to try. What is claimed of a shape is measured on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vits_prune.measure.latency import Spread, measure_latency
from vits_prune.pruning.listening import texts_for
from vits_prune.pruning.sensitivity import channel_sensitivity
from vits_prune.pruning.shape import Shape, sizes, sizes_of
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured.couplings import groups
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.pruning.structured.importance import importance
from vits_prune.voices.voice import Voice

Step = Callable[[str, float], None]

STAGES = {
    "decoder": ("decoder_width", "branches", "resblock_width"),
    "flow": ("flows", "wavenet_layers"),
    "text": ("ffn_width", "encoder_layers"),
}
"""Stage -> the levers that make it quicker."""
_PARTS = {"decoder": "decoder", "flow": "flow", "text": "text_encoder"}
_WIDTHS = {"decoder_width": 8, "resblock_width": 4, "ffn_width": 4}
"""Lever -> into how many even steps its width is divided."""
_COUNTS = {"branches": 1, "flows": 2, "wavenet_layers": 2, "encoder_layers": 3}
"""Lever -> how many may go, one by one."""
MULTIPLE = 4
"""Widths are a multiple of this many channels: of 8 there are too few to choose from in most decoders."""
RUNS = 5


@dataclass(frozen=True)
class Notch:
    """One lever at one value, as measured and estimated alone."""

    lever: str
    value: float | int
    time: float
    """Seconds of its stage over the original's."""
    size: float
    """Parameters of its part over the original's."""
    lost: float
    """What `channel_sensitivity` says goes with it, before anything is refitted."""


@dataclass(frozen=True)
class Proposal:
    """A combination of notches."""

    shape: Shape
    time: float
    """Predicted latency ratio."""
    mb: float
    """Predicted size of the dense file."""
    lost: float


@dataclass(frozen=True)
class Ladder:
    """All combinations of notches of a voice."""

    proposals: tuple[Proposal, ...]

    def best(self, fits: Callable[[Proposal], bool], count: int) -> list[Proposal]:
        """Those that fit, the least lost first, one for each width of the decoder: the estimate compares parts with each other badly."""
        found: dict[float, Proposal] = {}
        for one in sorted(filter(fits, self.proposals), key=lambda one: one.lost):
            found.setdefault(one.shape.decoder_width, one)
        return sorted(found.values(), key=lambda one: one.lost)[:count]


def build_ladder(voice: Voice, text: str, seed: int = 0, *, progress: Step | None = None) -> Ladder:
    """Time every lever at every value alone, on cheap cuts, and combine them.

    Args:
        voice: the original.
        text: what is spoken for timing.
        seed: of the noise and of calibration.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing.
    """
    tell = progress or (lambda _what, _share: None)
    found = channel_sensitivity(
        voice,
        texts_for(voice, PruneSpec(seed=seed)),
        seed,
        progress=lambda what, share: tell(what, 0.3 * share),
    )
    scores = {group.name: importance(found)(voice, group) for group in groups(voice)}
    notches, shares = _notches(
        voice, scores, text, seed, lambda what, share: tell(what, 0.3 + 0.7 * share)
    )
    per_stage = [_combinations(notches[stage]) for stage in STAGES]
    parameters = {stage: _parameters(voice, part) for stage, part in _PARTS.items()}
    rest, whole = 1 - sum(shares.values()), _parameters(voice)
    proposals = []
    for chosen in itertools.product(*per_stage):
        levers = {notch.lever: notch.value for combination in chosen for notch in combination}
        time, count, lost = rest, whole, 0.0
        for stage, combination in zip(STAGES, chosen, strict=True):
            time += shares[stage] * math.prod(notch.time for notch in combination)
            count -= parameters[stage] * (1 - math.prod(notch.size for notch in combination))
            lost += sum(notch.lost for notch in combination)
        if levers:
            proposals.append(Proposal(Shape(**levers, multiple=MULTIPLE), time, 4e-6 * count, lost))
    return Ladder(tuple(proposals))


def time_cut(
    voice: Voice, shape: Shape, text: str, seed: int = 0, runs: int = RUNS
) -> tuple[Voice, Spread, float]:
    """A shape without any care for what goes, which costs as much to run as one with care: (voice, latency ratio, ratio of MACs)."""
    small = cut(voice, choose(voice, shape))
    return small, *time_against(voice, small, text, seed, runs)


def time_against(
    voice: Voice, other: Voice, text: str, seed: int, runs: int
) -> tuple[Spread, float]:
    """Latency ratio and ratio of MACs of a voice over the original."""
    latency = measure_latency(voice, other, text, seed, runs=runs)
    speed = latency.speed_up
    spread = Spread(1 / speed.median, 1 / speed.high, 1 / speed.low)
    return spread, latency.pruned.dense_macs / max(1, latency.original.dense_macs)


def _notches(
    voice: Voice, scores: dict[str, np.ndarray], text: str, seed: int, tell: Step
) -> tuple[dict[str, list[Notch]], dict[str, float]]:
    """(Stage -> its notches, stage -> its share of the original's time). One cut turns one lever of every stage."""
    values = {
        stage: [(lever, value) for lever in levers for value in _values(voice, lever)]
        for stage, levers in STAGES.items()
    }
    found: dict[str, list[Notch]] = {stage: [] for stage in STAGES}
    shares: dict[str, list[float]] = {stage: [] for stage in STAGES}
    rounds = max(map(len, values.values()))
    for turn in range(rounds):
        tell(f"timing cut {turn + 1} of {rounds}", turn / rounds)
        turned = {stage: ladder[turn] for stage, ladder in values.items() if turn < len(ladder)}
        small = cut(voice, choose(voice, Shape(**dict(turned.values()), multiple=MULTIPLE)))
        latency = measure_latency(voice, small, text, seed, runs=RUNS)
        before, after = latency.original.stage_seconds, latency.pruned.stage_seconds
        for stage in STAGES:
            shares[stage].append(before[stage].median / before["total"].median)
        for stage, (lever, value) in turned.items():
            size = _parameters(small, _PARTS[stage]) / _parameters(voice, _PARTS[stage])
            time, lost = (
                after[stage].median / before[stage].median,
                _lost(voice, scores, lever, value),
            )
            found[stage].append(Notch(lever, value, min(1.0, time), size, lost))
    return found, {stage: float(np.median(ones)) if ones else 0.0 for stage, ones in shares.items()}


def _values(voice: Voice, lever: str) -> list[float | int]:
    """What a lever can be set to, apart from leaving all as it is; each makes another voice."""
    now, found = sizes_of(voice.model.config), {}
    if lever == "resblock_width" and now.inner_channels is None:
        return []
    if lever in _COUNTS:
        return [
            getattr(now, lever) - gone
            for gone in range(1, _COUNTS[lever] + 1)
            if getattr(now, lever) > gone
        ]
    for step in range(_WIDTHS[lever] - 1, 0, -1):
        value = step / _WIDTHS[lever]
        after = sizes(voice.model.config, Shape(**{lever: value}, multiple=MULTIPLE))
        if after != now:
            found.setdefault(after, value)
    return list(found.values())


def _lost(voice: Voice, scores: dict[str, np.ndarray], lever: str, value: float | int) -> float:
    """The importance of what goes."""
    kept = choose(voice, Shape(**{lever: value}, multiple=MULTIPLE), scores).kept
    return float(
        sum(
            scores[name].sum() - scores[name][list(indices)].sum() for name, indices in kept.items()
        )
    )


def _combinations(notches: Sequence[Notch]) -> list[tuple[Notch, ...]]:
    """At most one notch of each lever."""
    levers: dict[str, list[Any]] = {}
    for notch in notches:
        levers.setdefault(notch.lever, [None]).append(notch)
    return [
        tuple(notch for notch in chosen if notch) for chosen in itertools.product(*levers.values())
    ]


def _parameters(voice: Voice, part: str | None = None) -> int:
    module = voice.model if part is None else getattr(voice.model, part)
    return sum(parameter.numel() for parameter in module.parameters())
