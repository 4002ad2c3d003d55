"""The metrics of a pair of voices, their bootstrap intervals, noise floors and verdicts.

A noise floor is the change that another seed of the original makes to a metric. Intervals are of
ratios over sentences; the same numbers and seed give the same interval (Efron and Tibshirani 1993,
chapter 13; Bisani and Ney 2004 for word error rates). That two voices do not differ is a claim of
its own, by two one-sided tests against a margin (Schuirmann 1987, doi 10.1007/BF01068419).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from vits_prune.measure.predictors import PREDICTORS

RESAMPLES = 2_000
CONFIDENCE = 0.95
INTERVAL_METHOD = (
    f"percentile bootstrap over sentences, {RESAMPLES:,} resamples, {CONFIDENCE:.0%} (Efron and "
    "Tibshirani 1993, chapter 13; word error rates as in Bisani and Ney 2004): sums of errors over "
    "sums of words, so long sentences weigh more"
)

FAMILIES = ("intelligibility", "naturalness", "closeness", "speaker", "rhythm", "loudness")
"""Groups of metrics that are measured together."""
NO_DIFFERENCE = "no difference found"
UNDECIDED = "undecided"
TOO_FEW = "too few sentences for a verdict"
NO_FLOOR = "no noise floor was measured"
VERDICT_RULE = (
    "A difference is claimed where the whole 95% interval lies beyond the noise floor: beyond the "
    "largest change, in either direction, that another seed makes to the original's own figure; "
    "for distances, beyond the farthest other seed. "
    f"{NO_DIFFERENCE.capitalize()!r} is claimed where the whole interval lies within the margin, "
    "on both sides (two one-sided tests, 2.5% each; for distances one): within the metric's own "
    "margin, or within the noise floor where that is wider. "
    f"Everything else is {UNDECIDED!r}: more sentences would tell."
)

Pairs = Sequence[tuple[float, float]]
"""A numerator and a denominator for each sentence: errors and words; a value and 1 for a mean;
(0, 0) where nothing could be measured."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap interval."""

    value: float
    low: float | None
    """None where there is only one sentence, as `high`."""
    high: float | None
    count: int
    """Sentences that were measured."""


def bootstrap_ratio(pairs: Pairs, seed: int = 0) -> Interval | None:
    """Return the sum of numerators over the sum of denominators; None if these are all zero."""
    table = _table(pairs)
    measured = int(np.count_nonzero(table[:, 1]))
    if not measured:
        return None
    value = float(table[:, 0].sum() / table[:, 1].sum())
    return _interval(value, _ratios(table, _weights(len(table), seed)), measured)


def bootstrap_difference(first: Pairs, second: Pairs, seed: int = 0) -> Interval | None:
    """Return the second ratio minus the first, paired: each resample takes the same sentences.

    A sentence that was not measured on both sides is left out. Both have the same sentences.
    """
    one, two = _table(first), _table(second)
    if one.shape != two.shape:
        raise ValueError("A paired difference needs the same sentences on both sides.")
    both = (one[:, 1] != 0) & (two[:, 1] != 0)
    if not both.any():
        return None
    one, two = one[both], two[both]
    weights = _weights(len(one), seed)
    value = float(two[:, 0].sum() / two[:, 1].sum() - one[:, 0].sum() / one[:, 1].sum())
    return _interval(value, _ratios(two, weights) - _ratios(one, weights), len(one))


def _table(pairs: Pairs) -> np.ndarray:
    """Return float64 [sentences, 2]."""
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(table).all() or (table[:, 1] < 0).any():
        raise ValueError("Numerators and denominators must be finite, denominators not negative.")
    return table


@functools.lru_cache(maxsize=16)
def _weights(count: int, seed: int) -> np.ndarray:
    """Return how often each resample holds each sentence, float64 [RESAMPLES, count]."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, count))))
    drawn = generator.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES)
    return drawn.astype(np.float64)


def _ratios(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the ratio of each resample, float64 [RESAMPLES], NaN where nothing was measured."""
    # Not a matrix product: BLAS may add in another order with another number of threads.
    above, below = (weights * table[:, 0]).sum(axis=1), (weights * table[:, 1]).sum(axis=1)
    return np.divide(above, below, out=np.full(len(weights), np.nan), where=below != 0)


def _interval(value: float, resampled: np.ndarray, count: int) -> Interval:
    if count < 2:
        return Interval(value, None, None, count)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.nanpercentile(resampled, (tail, 100 - tail)))
    if math.isclose(low, high, rel_tol=1e-12, abs_tol=1e-15):  # only rounding lies between
        low = high = value
    return Interval(value, low, high, count)


@dataclass(frozen=True)
class Metric:
    """The definition of a metric."""

    name: str
    title: str
    unit: str
    """Empty for shares and ratios."""
    family: str
    kind: Literal["voice", "distance", "shift"]
    """"voice": a property of each voice alone. "distance": between two voices, 0 where they are the
    same, or a similarity, largest there. "shift": of one voice against the other, with a sign."""
    better: Literal["lower", "higher", "neither"]
    margin: float = 0.0
    """A change that does not matter, by this library's choice."""
    neutral: float = 0.0
    """For a shift: the value where nothing changed."""
    source: str = ""
    """Where an Utterance holds the value: an attribute, or numerator/denominator. Empty for the
    attribute of this name in the attribute named after the family."""

    @property
    def limited_by_value(self) -> bool:
        """Whether a limit is of the value itself, a distance, and not of a change."""
        return self.kind == "distance" and self.better == "lower"


_error = partial(Metric, unit="", family="intelligibility", kind="voice", better="lower")
_opinion = partial(
    Metric,
    unit="predicted opinion, 1 to 5",
    family="naturalness",
    kind="voice",
    better="higher",
    margin=0.1,
)
_distance = partial(Metric, family="closeness", kind="distance", better="lower")
_shift = partial(Metric, unit="", family="rhythm", kind="shift", better="neither", margin=0.05)
_DURATIONS = "rhythm.second_seconds/rhythm.first_seconds"
_NEXT = "speaker similarity to the original's next sentence"

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        _error("wer", "word error rate", margin=0.02, source="words.word_errors/words.count"),
        _error(
            "cer",
            "character error rate",
            margin=0.01,
            source="words.character_errors/words.characters",
        ),
        _opinion("distillmos", "Distill-MOS", source="distillmos"),
        _opinion("dnsmos_sig", "DNSMOS, speech", source="dnsmos.sig"),
        _opinion("dnsmos_bak", "DNSMOS, background", source="dnsmos.bak"),
        _opinion("dnsmos_ovrl", "DNSMOS, overall", source="dnsmos.ovrl"),
        _opinion("visqol", "ViSQOL", family="closeness", kind="distance"),
        _distance("mcd_db", "mel-cepstral distortion", "dB", margin=0.5),
        _distance("log_mel_db", "log-mel distance", "dB", margin=0.5),
        _distance(
            "spectral_convergence", "multi-resolution STFT, spectral convergence", "", margin=0.05
        ),
        _distance(
            "log_stft_magnitude", "multi-resolution STFT, log magnitude", "nepers", margin=0.05
        ),
        _distance("f0_rmse_cents", "log-F0 RMSE", "cents", margin=20.0),
        _distance("voicing_error", "voicing error rate", "", margin=0.02),
        Metric(
            *("speaker_similarity", _NEXT, "cosine", "speaker", "voice", "higher"),
            margin=0.02,
            source="speaker_similarity",
        ),
        _shift("duration_ratio", "duration ratio", neutral=1.0, source=_DURATIONS),
        _distance("duration_drift", "duration drift a token", "", family="rhythm", margin=0.05),
        _shift("duration_shift", "duration shift a token"),
        Metric("lufs", "loudness", "LUFS", "loudness", "voice", "neither", 1.0, source="lufs"),
    )
}
"""Every metric by name, in the order of the tables."""


@dataclass(frozen=True)
class Floor:
    """The noise floor: the original against itself with other seeds."""

    low: float
    """For distances the smallest value, else minus the largest change."""
    high: float
    """For distances the largest value, else the largest change."""
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
    """Paired: pruned minus original; for distances, minus the original's farthest other seed; for
    shifts, minus the neutral value."""
    floor: Floor | None
    margin: float | None
    """Within which the difference does not matter; None without a floor."""
    verdict: str
    """NO_DIFFERENCE, "worse", "better", "higher", "lower", UNDECIDED, TOO_FEW or NO_FLOOR; by
    VERDICT_RULE."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        found = dataclasses.asdict(self)
        return {**found, "metric": self.metric.name, "unit": self.metric.unit}

    def to_row(self) -> dict[str, float | str | None]:
        """Return columns named after the metric, the same ones whatever is known."""
        name = self.metric.name
        row: dict[str, float | str | None] = {}
        for title in ("pruned", "original", "difference"):
            interval = getattr(self, title)
            prefix = name if title == "pruned" else f"{name}_{title}"
            for end, field in (("", "value"), ("_low", "low"), ("_high", "high")):
                row[prefix + end] = getattr(interval, field, None)
        for end in ("low", "high"):
            row[f"{name}_floor_{end}"] = getattr(self.floor, end, None)
        return {**row, f"{name}_margin": self.margin, f"{name}_verdict": self.verdict}


def columns(metric: Metric) -> tuple[str, ...]:
    """Return the names of `Figure.to_row`."""
    nothing = Figure(metric, None, Interval(0.0, None, None, 0), None, None, None, "")
    return tuple(nothing.to_row())


def conclude(
    metric: Metric, original: Pairs | None, pruned: Pairs, others: Sequence[Pairs], seed: int = 0
) -> Figure | None:
    """Return a metric's figure; None where no sentence could be measured.

    `original` is only for a metric of kind "voice". `pruned` is of the pruned voice, or of it
    against the original; `others` are the same of the original with each other seed.
    """
    estimate = bootstrap_ratio(pruned, seed)
    if estimate is None:
        return None
    own = difference = floor = None
    found = [
        (interval.value, other) for other in others if (interval := bootstrap_ratio(other, seed))
    ]
    if metric.kind == "voice":
        own = bootstrap_ratio(original or (), seed)
        if original and own:
            difference = bootstrap_difference(original, pruned, seed)
            changes = [bootstrap_difference(original, other, seed) for other in others]
            floor = _symmetric([change.value for change in changes if change])
    elif metric.kind == "shift":
        low, high = (
            None if end is None else end - metric.neutral for end in (estimate.low, estimate.high)
        )
        difference = Interval(estimate.value - metric.neutral, low, high, estimate.count)
        floor = _symmetric([value - metric.neutral for value, _ in found])
    elif found:
        values, sign = [value for value, _ in found], -1 if metric.better == "higher" else 1
        floor = Floor(min(values), max(values), tuple(values))
        farthest = max(found, key=lambda pair: sign * pair[0])[1]
        difference = bootstrap_difference(farthest, pruned, seed)
    margin = _margin(metric, floor)
    verdict = _verdict(metric, difference, floor, margin)
    return Figure(metric, own, estimate, difference, floor, margin, verdict)


def _symmetric(changes: list[float]) -> Floor | None:
    """Return the range in both directions: which of two seeds comes first is chance."""
    if not changes:
        return None
    largest = max(map(abs, changes))
    return Floor(0.0 - largest, largest, tuple(changes))


def _margin(metric: Metric, floor: Floor | None) -> float | None:
    if floor is None:
        return None
    # The difference of a distance is from the farthest other seed: the floor is in it already.
    return metric.margin if metric.kind == "distance" else max(metric.margin, floor.high)


def _verdict(
    metric: Metric, difference: Interval | None, floor: Floor | None, margin: float | None
) -> str:
    """Apply VERDICT_RULE."""
    if floor is None or margin is None or difference is None:
        return NO_FLOOR
    low, high = difference.low, difference.high
    if low is None or high is None:
        return TOO_FEW
    distance = metric.kind == "distance"
    if distance:  # never better: to be nearer to the original than another seed is no merit
        if metric.better == "higher":
            low, high = -high, -low
        if low > 0.0:
            return "worse"
        return NO_DIFFERENCE if high <= margin else UNDECIDED
    if low > floor.high:
        return {"lower": "worse", "higher": "better", "neither": "higher"}[metric.better]
    if high < floor.low:
        return {"lower": "better", "higher": "worse", "neither": "lower"}[metric.better]
    return NO_DIFFERENCE if -margin <= low and high <= margin else UNDECIDED


# What all figures together say

CLAIMED: Mapping[str, tuple[str, ...]] = {
    "words": ("cer",),
    "naturalness": ("distillmos", "dnsmos_ovrl"),
    "closeness": ("visqol", "log_mel_db"),
}
"""What a listener may miss, and the metrics of it, the strictest first: the first one that was
measured decides."""
NOT_MEASURED = "not measured"


_CLAIMS = {
    NO_DIFFERENCE: "No difference from the original was found",
    "a difference": "A difference from the original was found",
    UNDECIDED: "It is undecided whether there is a difference from the original",
}


def strictest(measured: Container[str]) -> dict[str, str]:
    """Return entry of CLAIMED -> its first metric that was measured, without those with none."""
    firsts = {what: [one for one in some if one in measured] for what, some in CLAIMED.items()}
    return {what: some[0] for what, some in firsts.items() if some}


def measured_by(metric: str) -> str:
    """Return the title of the predictor that a metric comes from, else of the metric."""
    titles = (one.title for one in PREDICTORS.values() if metric in one.metrics)
    return next(titles, METRICS[metric].title)


@dataclass(frozen=True)
class Claim:
    """What may be said of a pruned voice beside the original."""

    verdicts: dict[str, str]
    """By entry of CLAIMED: the verdict of its strictest metric, or NOT_MEASURED."""
    metrics: dict[str, str]
    """By entry of CLAIMED that was measured: that metric."""

    @property
    def verdict(self) -> str:
        """NO_DIFFERENCE only if every entry says so; else "a difference", or UNDECIDED."""
        found = set(self.verdicts.values())
        if found == {NO_DIFFERENCE}:
            return NO_DIFFERENCE
        return "a difference" if found & {"worse", "better"} else UNDECIDED

    def sentence(self, texts: int) -> str:
        """Return the verdict on so many sentences, and who judged; 0 where nobody knows."""
        by_verdict: dict[str, list[str]] = {}
        for what, verdict in self.verdicts.items():
            by = f" by {measured_by(self.metrics[what])}" if what in self.metrics else ""
            by_verdict.setdefault(verdict, []).append(what + by)
        first = sorted(by_verdict, key=lambda verdict: verdict not in ("worse", "better"))
        reasons = "; ".join(f"{verdict}: {', '.join(by_verdict[verdict])}" for verdict in first)
        on = f" on {texts} sentence{'s' * (texts != 1)}" if texts else ""
        return f"{_CLAIMS[self.verdict]}{on} ({reasons})."


def claim(verdicts: Mapping[str, str]) -> Claim:
    """Return what the verdicts of metrics say together: that of the strictest of each kind."""
    first = strictest(verdicts)
    said = {what: verdicts[first[what]] if what in first else NOT_MEASURED for what in CLAIMED}
    return Claim(said, first)
