"""Budget: what a voice may cost and lose; Candidate: a voice that was tried; Solution."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from vits_prune.errors import InputError
from vits_prune.measure.cost import Spread
from vits_prune.measure.quality import METRICS
from vits_prune.measure.statistics import Interval
from vits_prune.pruning.spec import PruneSpec, in_words
from vits_prune.study.knee import LIMITS, Limit
from vits_prune.voices.voice import Voice

RULE = (
    "Size is that of the smaller of two lossless files, plain float32 or sparse; MB are 1,000,000 "
    "bytes. The latency ratio is the median of runs in turn with the original, on one sentence "
    "with the same number of frames. Candidates are chosen on the tuning sentences and calibrated "
    "on others; the verdict is that of the held-out ones, by the estimates."
)


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
    """What may be lost; empty to lose as little as possible by LIMITS."""

    def __post_init__(self) -> None:
        for name, title, most, span in (
            ("max_mb", "largest size in MB", math.inf, "above 0"),
            ("max_latency_ratio", "largest latency ratio", 1, "above 0 and below 1"),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value < most:
                raise InputError(f"The {title} must be a number {span}, not {str(value)[:40]!r}.")
            object.__setattr__(self, name, float(value))
        if self.max_mb is None and self.max_latency_ratio is None:
            raise InputError(
                "A budget limits the size or the latency, or both: for quality alone use `knee`."
            )
        object.__setattr__(self, "quality", tuple(self.quality))
        if len({limit.metric for limit in self.quality}) < len(self.quality):
            raise InputError("Give one limit per metric.")

    @property
    def judged(self) -> tuple[Limit, ...]:
        """What damage is measured by: the limits of quality, or LIMITS."""
        return self.quality or LIMITS

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        return dataclasses.asdict(self)

    def loads(self, candidate: Candidate) -> dict[str, float]:
        """Return how much of each limit a candidate uses, 1 at the limit; NaN if unmeasured."""
        found = {}
        if self.max_mb is not None:
            found["size"] = candidate.mb / self.max_mb
        if self.max_latency_ratio is not None:
            found["latency"] = candidate.latency_ratio.median / self.max_latency_ratio
        for limit in self.quality:
            found[limit.metric] = used(limit, candidate.quality.get(limit.metric))
        return found

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
    sign = {"neither": 0, "lower": 1, "higher": -1}[METRICS[limit.metric].better]
    lost = max(0.0, sign * interval.value) if sign else abs(interval.value)
    return 0.0 if lost == 0 else lost / max(abs(limit.change), 1e-9)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A voice that was tried."""

    specs: tuple[PruneSpec, ...]
    """What was done to the original, in order."""
    stage: Literal["cut", "chosen", "verified"]
    """Whether it was only cut and timed, measured on tuning sentences, or on held-out ones."""
    parameters: int
    file: Literal["dense", "sparse"]
    """Which lossless file is the smaller one."""
    mb: float
    """Megabytes of that file; at stage "cut" estimated from the parameters."""
    latency_ratio: Spread
    """Seconds over the original's, by run."""
    macs_ratio: float
    """Multiply-accumulates over the original's, zeros included."""
    quality: Mapping[str, Interval] = field(default_factory=lambda: MappingProxyType({}))
    """Metric -> what its limit applies to: the change from the original, or the distance."""

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
        row: dict[str, Any] = {
            "what": self.words,
            "stage": self.stage,
            "mb": self.mb,
            "file": self.file,
            "parameters": self.parameters,
            "latency_ratio": self.latency_ratio.median,
            "latency_low": self.latency_ratio.low,
            "latency_high": self.latency_ratio.high,
            "macs_ratio": self.macs_ratio,
        }
        for limit in budget.judged:
            interval = self.quality.get(limit.metric)
            for end, name in (("", "value"), ("_low", "low"), ("_high", "high")):
                row[f"{limit.metric}{end}"] = getattr(interval, name) if interval else None
        return {**row, "breaks": " ".join(budget.broken(self)) if self.stage != "cut" else ""}


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a search for a voice that keeps a budget."""

    name: str
    """Of the original."""
    budget: Budget
    chosen: Candidate
    """Verified: the least damaged candidate that keeps all limits, or else the nearest."""
    kept: bool
    """Whether it keeps all limits."""
    sentences: tuple[str, ...]
    """What was found, and which limits cannot be kept together."""
    tried: tuple[Candidate, ...]
    """In the order in which they were tried, including the chosen one."""
    voice: Voice
    """Of the chosen candidate."""
    texts: tuple[int, int]
    """On how many sentences it was chosen and verified."""
    seconds: float

    @property
    def specs(self) -> tuple[PruneSpec, ...]:
        """What to do to the original, in order."""
        return self.chosen.specs

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the voice as JSON-able values."""
        return {
            "voice": self.name,
            "budget": self.budget.to_dict(),
            "kept": self.kept,
            "sentences": list(self.sentences),
            "chosen": self.chosen.to_dict(),
            "tried": [one.to_dict() for one in self.tried],
            "texts": {"chosen on": self.texts[0], "verified on": self.texts[1]},
            "rule": RULE,
            "seconds": self.seconds,
        }


def sentences_of(budget: Budget, chosen: Candidate, tried: Sequence[Candidate]) -> tuple[str, ...]:
    """Return what a search found, in sentences.

    Args:
        budget: what was asked for.
        chosen: the verified candidate.
        tried: all candidates.
    """
    broken = budget.broken(chosen)
    if not broken:
        found = [f"All limits are kept by: {chosen.words}."]
        if not budget.quality:
            found.append("Quality was not limited: this is the least damaged of those tried.")
        return tuple(found)
    return (
        "None of the voices that were verified on the held-out sentences keeps all limits. "
        f"The nearest is: {chosen.words}; it breaks {budget.in_words(broken)}.",
        *_conflicts(budget, [one for one in tried if one.stage != "cut"]),
    )


def _conflicts(budget: Budget, measured: Sequence[Candidate]) -> list[str]:
    """Name the smallest sets of limits that nothing keeps, and what giving up one gives."""
    names = list(budget.loads(measured[0])) if measured else []
    found: list[tuple[str, ...]] = []
    for size in range(1, len(names) + 1):
        for some in itertools.combinations(names, size):
            known = any(set(smaller) <= set(some) for smaller in found)
            if not known and all(set(some) & set(budget.broken(one)) for one in measured):
                found.append(some)
    sentences = []
    for some in found:
        together = " together" if len(some) > 1 else ""
        sentences.append(f"Of all that was tried nothing keeps {budget.in_words(some)}{together}.")
        for name in some if together else ():
            kept = [one for one in some if one != name]
            fitting = [one for one in measured if not set(kept) & set(budget.broken(one))]
            if fitting:
                best = min(fitting, key=lambda one: budget.loads(one)[name])
                sentences.append(
                    f"With {budget.in_words(kept)} the best was {_value(best, name)} "
                    f"({best.words})."
                )
    return sentences


def _value(candidate: Candidate, name: str) -> str:
    if name == "size":
        return f"{candidate.mb:.1f} MB"
    if name == "latency":
        return f"{candidate.latency_ratio.median:.2f} of the time"
    if name in candidate.quality:
        return f"{name} {candidate.quality[name].value:+.3g}"
    return f"{name} that cannot be measured"
