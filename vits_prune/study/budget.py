"""Budget: what a voice may cost and lose; Candidate: one that was tried; Solution: what came of it. All are values."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from vits_prune.errors import InputError
from vits_prune.measure.latency import Spread
from vits_prune.measure.quality import METRICS
from vits_prune.measure.statistics import Interval
from vits_prune.pruning.spec import PruneSpec, in_words
from vits_prune.study.knee import LIMITS, Limit
from vits_prune.voices.voice import Voice

RULE = (
    "Size is that of the smaller of two lossless files, plain float32 or sparse; MB are 1,000,000 bytes. The latency ratio is the median "
    "of runs in turn with the original, on one sentence with the same number of frames. Candidates are chosen on the tuning sentences "
    "and calibrated on others; the verdict is that of the held-out ones, by the estimates."
)


@dataclass(frozen=True)
class Budget:
    """What a voice may cost, and how far its quality may go.

    Raises:
        InputError: a limit is out of its range, or there is none of size or time.
    """

    max_mb: float | None = None
    """Megabytes (1,000,000 bytes) of its file."""
    max_latency_ratio: float | None = None
    """Seconds over the original's, the same number of frames."""
    quality: tuple[Limit, ...] = ()
    """What may be lost; empty to lose as little as is possible by LIMITS."""

    def __post_init__(self) -> None:
        for name, title, most in (
            ("max_mb", "largest size in MB", math.inf),
            ("max_latency_ratio", "largest latency ratio", 1),
        ):
            value = getattr(self, name)
            if value is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value < most:
                span = "above 0" if most == math.inf else f"above 0 and below {most}"
                raise InputError(f"The {title} must be a number {span}, not {str(value)[:40]!r}.")
            object.__setattr__(self, name, float(value))
        if self.max_mb is None and self.max_latency_ratio is None:
            raise InputError(
                "A budget limits the size or the latency, or both: quality alone is what `knee` finds."
            )
        object.__setattr__(self, "quality", tuple(self.quality))
        names = [limit.metric for limit in self.quality]
        if len(set(names)) < len(names):
            raise InputError("Give one limit a metric.")

    @property
    def judged(self) -> tuple[Limit, ...]:
        """What damage is measured by: the limits of quality, else the usual ones."""
        return self.quality or LIMITS

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return dataclasses.asdict(self)

    def loads(self, candidate: Candidate) -> dict[str, float]:
        """Each limit -> how much of it a candidate uses, 1 at the limit; not a number where it was not measured."""
        found = {}
        if self.max_mb is not None:
            found["size"] = candidate.mb / self.max_mb
        if self.max_latency_ratio is not None:
            found["latency"] = candidate.latency_ratio.median / self.max_latency_ratio
        for limit in self.quality:
            found[limit.metric] = used(limit, candidate.quality.get(limit.metric))
        return found

    def broken(self, candidate: Candidate) -> tuple[str, ...]:
        """The limits that a candidate does not keep, or that were not measured."""
        return tuple(name for name, load in self.loads(candidate).items() if not load <= 1 + 1e-9)

    def damage(self, candidate: Candidate) -> float:
        """The largest share of what may be lost that a candidate loses: 1 at the limit; infinite where it was not measured."""
        found = [used(limit, candidate.quality.get(limit.metric)) for limit in self.judged]
        return math.inf if any(map(math.isnan, found)) else max(found)

    def words(self, name: str) -> str:
        """A limit as it is told."""
        if name == "size":
            return f"at most {self.max_mb:g} MB"
        if name == "latency":
            return f"at most {self.max_latency_ratio:g} of the time"
        return f"{name} {next(limit.change for limit in self.judged if limit.metric == name):+g}"


def used(limit: Limit, interval: Interval | None) -> float:
    """The share of a limit that a change takes up; nothing where it is an improvement."""
    if interval is None or math.isnan(interval.value):
        return math.nan
    better = METRICS[limit.metric].better
    lost = (
        abs(interval.value)
        if better == "neither"
        else max(0.0, interval.value if better == "lower" else -interval.value)
    )
    return 0.0 if lost == 0 else lost / max(abs(limit.change), 1e-9)


@dataclass(frozen=True)
class Candidate:
    """A voice that was tried."""

    specs: tuple[PruneSpec, ...]
    """What was done to the original, in order."""
    stage: Literal["cut", "chosen", "verified"]
    """How far it came: only cut, to be timed; measured on the tuning sentences; or on the held-out ones."""
    parameters: int
    file: Literal["dense", "sparse"]
    """Which lossless file is the smaller."""
    mb: float
    """Megabytes of that file, counted from its bytes; of what was only cut, from its parameters."""
    latency_ratio: Spread
    """Seconds over the original's, by run."""
    macs_ratio: float
    """Multiply-accumulates over the original's, zeros counted as work."""
    quality: Mapping[str, Interval] = field(default_factory=lambda: MappingProxyType({}))
    """Metric -> what a limit is held against: the change from the original, or the distance."""

    @property
    def words(self) -> str:
        """What was done, shortly."""
        return ", then ".join(map(in_words, self.specs)) or "nothing"

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        quality = {name: dataclasses.asdict(interval) for name, interval in self.quality.items()}
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **plain,
            "words": self.words,
            "specs": [spec.to_dict() for spec in self.specs],
            "latency_ratio": dataclasses.asdict(self.latency_ratio),
            "quality": quality,
        }

    def to_row(self, budget: Budget) -> dict[str, Any]:
        """The same as one flat row."""
        row: dict[str, Any] = {
            "what": self.words,
            "stage": self.stage,
            "mb": self.mb,
            "file": self.file,
            "parameters": self.parameters,
        }
        row |= {
            "latency_ratio": self.latency_ratio.median,
            "latency_low": self.latency_ratio.low,
            "latency_high": self.latency_ratio.high,
        }
        row["macs_ratio"] = self.macs_ratio
        for limit in budget.judged:
            interval = self.quality.get(limit.metric)
            row |= {f"{limit.metric}{end}": getattr(interval, name) if interval else None
                    for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))}  # fmt: skip
        return {**row, "breaks": " ".join(budget.broken(self)) if self.stage != "cut" else ""}


@dataclass(frozen=True, eq=False)
class Solution:
    """What a budget came to."""

    name: str
    """Of the original."""
    budget: Budget
    chosen: Candidate
    """Verified: the least damaged one that keeps all limits, or else the nearest."""
    kept: bool
    """Whether it keeps all limits."""
    sentences: tuple[str, ...]
    """What was found, and which limits cannot be had together."""
    tried: tuple[Candidate, ...]
    """In the order in which they were tried, the chosen one among them."""
    voice: Voice
    """The chosen one's."""
    texts: tuple[int, int]
    """How many sentences it was chosen and verified on."""
    seconds: float

    @property
    def specs(self) -> tuple[PruneSpec, ...]:
        """What to do to the original, in order."""
        return self.chosen.specs

    def to_dict(self) -> dict[str, Any]:
        """Everything but the voice as JSON-able values."""
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
    """What to tell of a search.

    Args:
        budget: what was asked for.
        chosen: the verified one.
        tried: everything that was tried.
    """
    broken = budget.broken(chosen)
    if not broken:
        found = [f"All limits are kept by: {chosen.words}."]
        return (
            (*found, "Quality was not limited: this is the least damaged of those tried.")
            if not budget.quality
            else tuple(found)
        )
    return (
        "None of the voices that were verified on the held-out sentences keeps all limits. "
        f"The nearest is: {chosen.words}; it breaks {_listed(budget, broken)}.",
        *_conflicts(budget, [one for one in tried if one.stage != "cut"]),
    )


def _conflicts(budget: Budget, measured: Sequence[Candidate]) -> list[str]:
    """The smallest sets of limits that no candidate keeps together, and for each limit of cost what the others would allow."""
    names = list(budget.loads(measured[0])) if measured else []
    found: list[tuple[str, ...]] = []
    for size in range(1, len(names) + 1):
        for some in itertools.combinations(names, size):
            if any(set(known) <= set(some) for known in found):
                continue
            if all(set(some) & set(budget.broken(one)) for one in measured):
                found.append(some)
    sentences = []
    for some in found:
        if len(some) == 1:
            sentences.append(f"Of all that was tried nothing keeps {_listed(budget, some)}.")
            continue
        sentences.append(f"Of all that was tried nothing keeps {_listed(budget, some)} together.")
        sentences += [
            told
            for name in some
            if (told := _instead(budget, name, [one for one in some if one != name], measured))
        ]
    return sentences


def _instead(budget: Budget, given_up: str, kept: list[str], measured: Sequence[Candidate]) -> str:
    """The least that giving up a limit costs, where the others are kept."""
    fitting = [one for one in measured if not set(kept) & set(budget.broken(one))]
    if not fitting:
        return ""
    best = min(fitting, key=lambda one: budget.loads(one)[given_up])
    value = {
        "size": f"{best.mb:.1f} MB",
        "latency": f"{best.latency_ratio.median:.2f} of the time",
    }.get(given_up)
    if value is None:
        value = (
            f"{given_up} {best.quality[given_up].value:+.3g}"
            if given_up in best.quality
            else f"{given_up} that cannot be measured"
        )
    return f"With {_listed(budget, kept)} the best was {value} ({best.words})."


def _listed(budget: Budget, names: Sequence[str]) -> str:
    return " and ".join(budget.words(name) for name in names)
