"""Budgets: what a voice may cost and lose, which shapes are worth trying, and what was tried."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vits_prune.errors import InputError
from vits_prune.measure.cost import Spread, measure_latency
from vits_prune.measure.quality import Interval
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import Shape
from vits_prune.pruning.calibration import channel_sensitivity, texts_for
from vits_prune.pruning.spec import PruneSpec, in_words
from vits_prune.pruning.structured.couplings import groups, sizes, sizes_of
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.pruning.structured.importance import by_sensitivity
from vits_prune.study.knee import Limit, usual_limits
from vits_prune.voices.voice import Voice

BUDGET_RULE = (
    "Size is that of the smaller of two lossless files, plain float32 or sparse; MB are 1,000,000 "
    "bytes. The latency ratio is the median of runs in turn with the original, on one sentence "
    "with the same number of frames, each voice with the kernels that are best for it here. "
    "Candidates are chosen on the tuning sentences and calibrated on others; the verdict is that "
    "of the held-out ones, by the estimates."
)
STAGE_LEVERS = {
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
class Budget:
    """What a voice may cost, and how much quality it may lose.

    Raises:
        InputError: a limit is out of its range, or there is none of size or time.
    """

    max_mb: float | None = None
    """Megabytes (1,000,000 bytes) of its file."""
    max_latency_ratio: float | None = None
    """Seconds over the original's, with the same number of frames."""
    quality: tuple[Limit, ...] = ()
    """What may be lost; empty to lose as little as possible by `usual_limits`."""

    def __post_init__(self) -> None:
        size, time = self.max_mb, self.max_latency_ratio
        for value, title, most in (
            (size, "size in MB must be above 0", math.inf),
            (time, "latency ratio must be above 0 and below 1", 1),
        ):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < most):
                raise InputError(f"The largest {title}, not {str(value)[:40]!r}.")
        if size is time is None:
            raise InputError("A budget limits the size or the latency: for quality use `knee`.")
        object.__setattr__(self, "quality", tuple(self.quality))
        if len({limit.metric for limit in self.quality}) < len(self.quality):
            raise InputError("Give one limit per metric.")

    @property
    def judged(self) -> tuple[Limit, ...]:
        """What damage is measured by: the limits of quality, or the usual ones."""
        return self.quality or usual_limits()

    def loads(self, candidate: Candidate) -> dict[str, float]:
        """Return how much of each limit a candidate uses, 1 at the limit; NaN if unmeasured."""
        found = {}
        if self.max_mb is not None:
            found["size"] = candidate.mb / self.max_mb
        if self.max_latency_ratio is not None:
            found["latency"] = candidate.latency_ratio.median / self.max_latency_ratio
        quality = candidate.quality
        return found | {one.metric: used(one, quality.get(one.metric)) for one in self.quality}

    def broken(self, candidate: Candidate) -> tuple[str, ...]:
        """Return the limits that a candidate does not keep, or that were not measured."""
        return tuple(name for name, load in self.loads(candidate).items() if not load <= 1 + 1e-9)

    def damage(self, candidate: Candidate) -> float:
        """Return the largest use of a limit of quality; infinite if one was not measured."""
        found = [used(limit, candidate.quality.get(limit.metric)) for limit in self.judged]
        return math.inf if any(map(math.isnan, found)) else max(found)

    def in_words(self, names: Sequence[str]) -> str:
        """Return limits in words."""
        known = {limit.metric: f"{limit.metric} {limit.change:+g}" for limit in self.judged}
        known["size"] = f"at most {self.max_mb or 0:g} MB"
        known["latency"] = f"at most {self.max_latency_ratio or 0:g} of the time"
        return " and ".join(known[name] for name in names)


def used(limit: Limit, interval: Interval | None) -> float:
    """Return the share of a limit that a change uses; 0 for an improvement."""
    if interval is None or math.isnan(interval.value):
        return math.nan
    return max(0.0, limit.lost(interval.value)) / max(abs(limit.change), 1e-9)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A voice that was tried."""

    specs: tuple[PruneSpec, ...]
    """What was done to the original, in order."""
    stage: Literal["cut", "chosen", "verified"]
    """Only cut and timed, measured on tuning sentences, or measured on held-out ones."""
    parameters: int
    file: Literal["dense", "sparse"]
    """The smaller one of the lossless files."""
    mb: float
    """Megabytes of that file; at stage "cut" estimated from the parameters."""
    latency_ratio: Spread
    """Seconds over the original's, by run."""
    macs_ratio: float
    """Multiply-accumulates with a weight that is not zero, over the original's."""
    quality: Mapping[str, Interval] = field(default_factory=dict)
    """Metric -> what its limit applies to: the change from the original, or the distance."""
    signature: str = ""
    """All that the quality depends on besides the voices; see `signature_of`."""

    @property
    def words(self) -> str:
        """What was done, in words."""
        return ", then ".join(map(in_words, self.specs)) or "nothing"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "words": self.words,
            "specs": [spec.to_dict() for spec in self.specs],
            "latency_ratio": dataclasses.asdict(self.latency_ratio),
            "quality": {name: dataclasses.asdict(one) for name, one in self.quality.items()},
        }

    def to_row(self, budget: Budget) -> dict[str, Any]:
        """Return the same as one flat row."""
        time = self.latency_ratio
        row: dict[str, Any] = {"what": self.words}
        row |= {name: getattr(self, name) for name in ("stage", "mb", "file", "parameters")}
        row |= {"latency_ratio": time.median, "latency_low": time.low, "latency_high": time.high}
        row["macs_ratio"] = self.macs_ratio
        for limit in budget.judged:
            interval = self.quality.get(limit.metric)
            for end, name in (("", "value"), ("_low", "low"), ("_high", "high")):
                row[f"{limit.metric}{end}"] = getattr(interval, name, None)
        row["breaks"] = " ".join(budget.broken(self)) if self.stage != "cut" else ""
        return {**row, "signature": self.signature}


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a search for a voice that keeps a budget."""

    name: str
    """Of the original."""
    budget: Budget
    chosen: Candidate
    """Verified: the least damaged candidate that keeps all limits, or else the nearest."""
    kept: bool
    sentences: tuple[str, ...]
    """What was found, and which limits cannot be kept together."""
    tried: tuple[Candidate, ...]
    """In order, including the chosen one."""
    voice: Voice
    texts: tuple[int, int]
    """On how many sentences it was chosen and verified."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the voice as JSON-able values."""
        return {
            "voice": self.name,
            "budget": dataclasses.asdict(self.budget),
            "kept": self.kept,
            "sentences": list(self.sentences),
            "chosen": self.chosen.to_dict(),
            "tried": [one.to_dict() for one in self.tried],
            "texts": {"chosen on": self.texts[0], "verified on": self.texts[1]},
            "rule": BUDGET_RULE,
            "seconds": self.seconds,
        }


def sentences_of(budget: Budget, chosen: Candidate, tried: Sequence[Candidate]) -> tuple[str, ...]:
    """Return in sentences what a search found; `chosen` is verified, `tried` are all."""
    broken = budget.broken(chosen)
    if not broken:
        found = [f"All limits are kept by: {chosen.words}."]
        if not budget.quality:
            found.append("Quality was not limited: this is the least damaged of those tried.")
        return tuple(found)
    return (
        "None of the voices that were verified on the held-out sentences keeps all limits. "
        f"The nearest is: {chosen.words}; it breaks {budget.in_words(broken)}.",
        *_conflicts(budget, [one for one in tried if one.stage == "chosen"]),
    )


def _conflicts(budget: Budget, measured: Sequence[Candidate]) -> list[str]:
    """Name the smallest sets of limits that nothing keeps, and what giving up one gives.

    All are measured on the same sentences, those of the choice: figures on others do not compare.
    """
    names = list(budget.loads(measured[0])) if measured else []
    found: list[tuple[str, ...]] = []
    sets = (itertools.combinations(names, size) for size in range(1, len(names) + 1))
    for some in itertools.chain(*sets):
        known = any(set(smaller) <= set(some) for smaller in found)
        if not known and all(set(some) & set(budget.broken(one)) for one in measured):
            found.append(some)
    sentences = []
    for some in found:
        together = " together" if len(some) > 1 else ""
        nothing = f"Of all that was tried nothing keeps {budget.in_words(some)}{together}"
        sentences.append(f"{nothing}, on the tuning sentences.")
        for name in some if together else ():
            kept = [one for one in some if one != name]
            fitting = [one for one in measured if not set(kept) & set(budget.broken(one))]
            if fitting:
                best = min(fitting, key=lambda one: budget.loads(one)[name])
                values = {metric: f"{metric} {v.value:+.3g}" for metric, v in best.quality.items()}
                values["size"] = f"{best.mb:.1f} MB"
                values["latency"] = f"{best.latency_ratio.median:.2f} of the time"
                value = values.get(name, f"{name} that cannot be measured")
                with_kept = f"With {budget.in_words(kept)} the best was {value}"
                sentences.append(f"{with_kept} ({best.words}).")
    return sentences


@dataclass(frozen=True)
class LeverEstimate:
    """One lever at one value, measured and estimated alone.

    The time is of its stage, the size of its part, both over the original's; what is lost is by
    `channel_sensitivity`, before anything is refitted.
    """

    lever: str
    value: float | int
    time: float
    size: float
    lost: float


@dataclass(frozen=True)
class ShapeEstimate:
    """A combination of levers, with its predicted latency ratio and size of the dense file."""

    shape: Shape
    time: float
    mb: float
    lost: float


def best_shapes(
    estimates: Sequence[ShapeEstimate],
    count: int,
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
    """Time every lever at every value alone, speaking `text`, and combine them.

    The estimates only decide what to try first: what is claimed of a shape is measured on it.

    Raises:
        InputError: the voice can say nothing.
    """
    texts = texts_for(voice, PruneSpec(seed=seed))
    sensitivity = channel_sensitivity(voice, texts, seed, progress=progress.part(0.0, 0.3))
    scores = by_sensitivity(sensitivity, groups(voice))
    levers, shares = _estimate_levers(voice, scores, text, seed, progress.part(0.3, 1.0))
    counts = {stage: count_parameters(voice, part) for stage, part in _PARTS.items()}
    rest, whole = 1 - sum(shares.values()), count_parameters(voice)
    estimates = []
    for chosen in itertools.product(*(_combinations(levers[stage]) for stage in STAGE_LEVERS)):
        time, count, lost = rest, float(whole), 0.0
        values: dict[str, Any] = {}
        for stage, some in zip(STAGE_LEVERS, chosen, strict=True):
            time += shares[stage] * math.prod(one.time for one in some)
            count -= counts[stage] * (1 - math.prod(one.size for one in some))
            lost += sum(one.lost for one in some)
            values |= {one.lever: one.value for one in some}
        if values:
            estimates.append(ShapeEstimate(_shape(values), time, 4e-6 * count, lost))
    return tuple(estimates)


def time_against(
    voice: Voice, other: Voice, text: str, seed: int, runs: int
) -> tuple[Spread, float]:
    """Return the ratios of time and of MACs that are not by zero, of a voice to the original."""
    latency = measure_latency(voice, other, text, seed, runs=runs)
    speed = latency.speed_up
    ratio = Spread(1 / speed.median, 1 / speed.high, 1 / speed.low)
    return ratio, latency.pruned.nonzero_macs / max(1, latency.original.nonzero_macs)


def _estimate_levers(
    voice: Voice, scores: dict[str, np.ndarray], text: str, seed: int, progress: Progress
) -> tuple[dict[str, list[LeverEstimate]], dict[str, float]]:
    """Return the levers by stage, and each stage's share of the original's time.

    Each cut sets one lever of every stage, so that fewer cuts have to be timed.
    """
    values = {
        stage: [(lever, value) for lever in levers for value in _values(voice, lever)]
        for stage, levers in STAGE_LEVERS.items()
    }
    found: dict[str, list[LeverEstimate]] = {stage: [] for stage in STAGE_LEVERS}
    shares: dict[str, list[float]] = {stage: [] for stage in STAGE_LEVERS}
    sizes_before = {stage: count_parameters(voice, part) for stage, part in _PARTS.items()}
    for cuts in progress.track(list(itertools.zip_longest(*values.values())), "timing cut"):
        small = cut(voice, choose(voice, _shape(dict(filter(None, cuts)))))
        latency = measure_latency(voice, small, text, seed, runs=RUNS)
        before, after = latency.original.stage_seconds, latency.pruned.stage_seconds
        for stage, one in zip(STAGE_LEVERS, cuts, strict=True):
            shares[stage].append(before[stage].median / before["total"].median)
            if one:
                time = min(1.0, after[stage].median / before[stage].median)
                size = count_parameters(small, _PARTS[stage]) / sizes_before[stage]
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
    for value in (step / _WIDTHS[lever] for step in range(_WIDTHS[lever] - 1, 0, -1)):
        found.setdefault(sizes(voice.model.config, _shape({lever: value})), value)
    return [value for after, value in found.items() if after != now]


def _lost(voice: Voice, scores: dict[str, np.ndarray], lever: str, value: float | int) -> float:
    """Return the importance of what a lever removes."""
    kept = choose(voice, _shape({lever: value}), scores)
    return float(sum(scores[one].sum() - scores[one][list(kept[one])].sum() for one in kept))


def _shape(levers: Mapping[str, Any]) -> Shape:
    return Shape(**levers, multiple=MULTIPLE)


def _combinations(estimates: Sequence[LeverEstimate]) -> list[tuple[LeverEstimate, ...]]:
    """Return all sets with at most one value of each lever."""
    levers: dict[str, list[LeverEstimate | None]] = {}
    for one in estimates:
        levers.setdefault(one.lever, [None]).append(one)
    return [tuple(filter(None, chosen)) for chosen in itertools.product(*levers.values())]


def count_parameters(voice: Voice, part: str | None = None) -> int:
    """Return the number of parameters of a part, or of the whole voice."""
    module = voice.model if part is None else getattr(voice.model, part)
    return sum(parameter.numel() for parameter in module.parameters())
