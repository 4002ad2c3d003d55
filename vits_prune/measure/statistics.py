"""Bootstrap intervals of ratios over sentences. The same numbers and seed give the same interval.

Sources: Efron and Tibshirani 1993, chapter 13; Bisani and Ney 2004 for word error rates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
CONFIDENCE = 0.95
METHOD = (
    f"percentile bootstrap over sentences, {RESAMPLES:,} resamples, {CONFIDENCE:.0%} (Efron and "
    "Tibshirani 1993, chapter 13; word error rates as in Bisani and Ney 2004): sums of errors over "
    "sums of words, so long sentences weigh more"
)


@dataclass(frozen=True)
class Interval:
    """An estimate and its bootstrap interval."""

    value: float
    low: float | None
    """None where there is only one sentence, as `high`."""
    high: float | None
    count: int
    """Sentences that were measured."""


Pairs = Sequence[tuple[float, float]]
"""A numerator and a denominator for each sentence: errors and words; a value and 1 for a mean;
(0, 0) where nothing could be measured."""


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
