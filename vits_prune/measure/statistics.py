"""Intervals of means and ratios by the bootstrap: seeded, so the same numbers give the same interval, and vectorised."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
CONFIDENCE = 0.95
METHOD = (
    f"percentile bootstrap over sentences, {RESAMPLES:,} resamples, {CONFIDENCE:.0%} (Efron and Tibshirani 1993, chapter 13; "
    "word error rates as in Bisani and Ney 2004): sums of errors over sums of words, so long sentences weigh more"
)


@dataclass(frozen=True)
class Interval:
    """An estimate and where the bootstrap puts it."""

    value: float
    """The estimate from all sentences."""
    low: float | None
    """Lower end of the interval, None where there is one sentence only."""
    high: float | None
    """Upper end."""
    count: int
    """Sentences that it rests on."""


Pairs = Sequence[tuple[float, float]]
"""A numerator and a denominator for each sentence: errors and words; a value and 1 for a mean; (0, 0) where nothing could be measured."""


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Mean over sentences with its interval; None where there are no values.

    Args:
        values: one a sentence, float [sentences].
        seed: of the resampling.
    """
    return bootstrap_ratio([(float(value), 1.0) for value in values], seed)


def bootstrap_ratio(pairs: Pairs, seed: int = 0) -> Interval | None:
    """Sum of numerators over sum of denominators, sentences resampled; None where the denominators are all zero.

    Args:
        pairs: one a sentence.
        seed: of the resampling.
    """
    table = _table(pairs)
    if not table[:, 1].any():
        return None
    value = float(table[:, 0].sum() / table[:, 1].sum())
    return _interval(
        value, _ratios(table, _weights(len(table), seed)), int(np.count_nonzero(table[:, 1]))
    )


def bootstrap_difference(first: Pairs, second: Pairs, seed: int = 0) -> Interval | None:
    """Second ratio minus first, paired: each resample takes the same sentences of both, and a sentence that one of them lacks is left out.

    Args:
        first: one a sentence.
        second: the same sentences in the same order.
        seed: of the resampling.
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
    """float64 [sentences, 2]."""
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(table).all() or (table[:, 1] < 0).any():
        raise ValueError("Numerators and denominators must be finite, denominators not negative.")
    return table


@functools.lru_cache(maxsize=16)
def _weights(count: int, seed: int) -> np.ndarray:
    """How often each resample holds each sentence, float64 [RESAMPLES, count]: the same resamples for every metric of an evaluation."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, count))))
    weights = generator.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES).astype(
        np.float64
    )
    weights.flags.writeable = False
    return weights


def _ratios(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The ratio of each resample, float64 [RESAMPLES]; not a number where it drew only sentences with nothing to measure."""
    # Products and sums, not a matrix product: BLAS may add in another order with another number of threads.
    above, below = (weights * table[:, 0]).sum(axis=1), (weights * table[:, 1]).sum(axis=1)
    return np.divide(above, below, out=np.full(len(weights), np.nan), where=below != 0)


def _interval(value: float, resampled: np.ndarray, count: int) -> Interval:
    if count < 2:
        return Interval(value, None, None, count)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.nanpercentile(resampled, (tail, 100 - tail)))
    if math.isclose(
        low, high, rel_tol=1e-12, abs_tol=1e-15
    ):  # no spread: leave no rounding between the ends
        low = high = value
    return Interval(value, low, high, count)
