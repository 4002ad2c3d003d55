"""Quality of a pair of voices: each metric with its interval, beside what another seed of the original does to it, and a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vits_prune.measure.statistics import Interval, Pairs, bootstrap_difference, bootstrap_ratio

FAMILIES = ("intelligibility", "naturalness", "closeness", "rhythm", "loudness")
"""What can be asked for, each a few metrics."""

NO_DIFFERENCE = "no difference found"
TOO_FEW = "too few sentences for a verdict"
NO_FLOOR = "no noise floor was measured"
RULE = (
    "A difference is claimed only where the whole 95% interval lies beyond the noise floor: beyond the largest change, in either "
    "direction, that another seed makes to the original's own figure; for distances, beyond the distance of the farthest other seed. "
    f"Everything else is {NO_DIFFERENCE!r}, which with few sentences means no more than that: the interval's ends say how large a "
    "difference could hide."
)


@dataclass(frozen=True)
class Metric:
    """What a number is."""

    name: str
    title: str
    unit: str
    """Empty for shares and ratios."""
    family: str
    kind: Literal["voice", "distance", "shift"]
    """"voice": a property of each voice alone; "distance": between two, 0 where they are the same; "shift": of one against the other."""
    better: Literal["lower", "higher", "neither"]
    neutral: float = 0.0
    """For a shift: the value where nothing changed."""


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("wer", "word error rate", "", "intelligibility", "voice", "lower"),
        Metric("cer", "character error rate", "", "intelligibility", "voice", "lower"),
        Metric(
            "dnsmos_sig",
            "DNSMOS, speech",
            "predicted opinion, 1 to 5",
            "naturalness",
            "voice",
            "higher",
        ),
        Metric(
            "dnsmos_bak",
            "DNSMOS, background",
            "predicted opinion, 1 to 5",
            "naturalness",
            "voice",
            "higher",
        ),
        Metric(
            "dnsmos_ovrl",
            "DNSMOS, overall",
            "predicted opinion, 1 to 5",
            "naturalness",
            "voice",
            "higher",
        ),
        Metric("mcd_db", "mel-cepstral distortion", "dB", "closeness", "distance", "lower"),
        Metric("log_mel_db", "log-mel distance", "dB", "closeness", "distance", "lower"),
        Metric(
            "spectral_convergence",
            "multi-resolution STFT, spectral convergence",
            "",
            "closeness",
            "distance",
            "lower",
        ),
        Metric(
            "log_stft_magnitude",
            "multi-resolution STFT, log magnitude",
            "nepers",
            "closeness",
            "distance",
            "lower",
        ),
        Metric("f0_rmse_cents", "log-F0 RMSE", "cents", "closeness", "distance", "lower"),
        Metric("voicing_error", "voicing error rate", "", "closeness", "distance", "lower"),
        Metric("duration_ratio", "duration ratio", "", "rhythm", "shift", "neither", neutral=1.0),
        Metric("duration_drift", "duration drift a token", "", "rhythm", "distance", "lower"),
        Metric("duration_shift", "duration shift a token", "", "rhythm", "shift", "neither"),
        Metric("lufs", "loudness", "LUFS", "loudness", "voice", "neither"),
    )
}
"""Every metric by name, in the order of the tables."""


@dataclass(frozen=True)
class Floor:
    """The original against itself with other seeds."""

    low: float
    """Lower end of the range: for distances the nearest other seed, else minus the largest change."""
    high: float
    """Upper end: the farthest other seed, else the largest change."""
    values: tuple[float, ...]
    """By seed: the distance, or the change from the first seed."""


@dataclass(frozen=True)
class Figure:
    """One metric of a pair of voices over all sentences."""

    metric: Metric
    original: Interval | None
    """Of the original; None for distances and shifts, which are between the two."""
    pruned: Interval
    """Of the pruned voice; for distances and shifts, of the pruned voice against the original."""
    difference: Interval | None
    """Paired: pruned minus original; for distances, minus the original's farthest other seed; for shifts, minus the neutral value."""
    floor: Floor | None
    verdict: str
    """NO_DIFFERENCE, "worse", "better", "higher", "lower", TOO_FEW or NO_FLOOR; by RULE."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        found = dataclasses.asdict(self)
        return {**found, "metric": self.metric.name, "unit": self.metric.unit}

    def to_row(self) -> dict[str, float | str | None]:
        """The figure as columns named after the metric, the same ones whatever is known."""
        name, columns = self.metric.name, {}
        for title, interval in (
            ("", self.pruned),
            ("_original", self.original),
            ("_difference", self.difference),
        ):
            for end, field in (("", "value"), ("_low", "low"), ("_high", "high")):
                columns[f"{name}{title}{end}"] = getattr(interval, field) if interval else None
        columns[f"{name}_floor_low"] = self.floor.low if self.floor else None
        columns[f"{name}_floor_high"] = self.floor.high if self.floor else None
        columns[f"{name}_verdict"] = self.verdict
        return columns


def columns(metric: Metric) -> tuple[str, ...]:
    """The names of `Figure.to_row`, for a metric of which there may be no figure."""
    nothing = Figure(metric, None, Interval(0.0, None, None, 0), None, None, "")
    return tuple(nothing.to_row())


def conclude(
    metric: Metric, original: Pairs | None, pruned: Pairs, others: Sequence[Pairs], seed: int = 0
) -> Figure | None:
    """A metric's figure from its pairs (numerator, denominator), one a sentence; None where no sentence could be measured.

    Args:
        metric: which one.
        original: of the original, for a metric of kind "voice".
        pruned: of the pruned voice, or of the pruned voice against the original.
        others: the same of the original spoken with each other seed, or of that against the original.
        seed: of the bootstrap.
    """
    estimate = bootstrap_ratio(pruned, seed)
    if estimate is None:
        return None
    if metric.kind == "voice":
        own = bootstrap_ratio(original or (), seed)
        difference = bootstrap_difference(original or (), pruned, seed) if own else None
        changes = [bootstrap_difference(original, other, seed) for other in others] if own else []
        floor = _symmetric([change.value for change in changes if change])
        return Figure(metric, own, estimate, difference, floor, _verdict(metric, difference, floor))
    found = [
        (interval.value, other) for other in others if (interval := bootstrap_ratio(other, seed))
    ]
    if metric.kind == "distance":
        values = [value for value, _ in found]
        floor = Floor(min(values), max(values), tuple(values)) if values else None
        difference = (
            bootstrap_difference(max(found, key=lambda pair: pair[0])[1], pruned, seed)
            if found
            else None
        )
        return Figure(
            metric,
            None,
            estimate,
            difference,
            floor,
            _verdict(metric, difference, floor and Floor(0.0, 0.0, ())),
        )
    difference = _shifted(estimate, metric.neutral)
    floor = _symmetric([value - metric.neutral for value, _ in found])
    return Figure(metric, None, estimate, difference, floor, _verdict(metric, difference, floor))


def _symmetric(changes: list[float]) -> Floor | None:
    """The range of changes taken in both directions: which of two seeds is called the first is chance."""
    if not changes:
        return None
    largest = max(map(abs, changes))
    return Floor(0.0 - largest, largest, tuple(changes))


def _shifted(interval: Interval, by: float) -> Interval:
    low, high = (None if end is None else end - by for end in (interval.low, interval.high))
    return Interval(interval.value - by, low, high, interval.count)


def _verdict(metric: Metric, difference: Interval | None, floor: Floor | None) -> str:
    """By RULE; the floor is what the difference has to lie beyond."""
    if floor is None or difference is None:
        return NO_FLOOR
    if difference.low is None or difference.high is None:
        return TOO_FEW
    if difference.low > floor.high:
        return {"lower": "worse", "higher": "better", "neither": "higher"}[metric.better]
    # Nearer to the original than another seed of its own is no merit: a distance is never better.
    if difference.high < floor.low and metric.kind != "distance":
        return {"lower": "better", "higher": "worse", "neither": "lower"}[metric.better]
    return NO_DIFFERENCE
