"""What a listener hears, from the answers of a blind test: rule, fit and interval in one posterior.

An ABX test over the amount is an adaptive Bayesian grid: QUEST+ (Watson 2017, doi 10.1167/17.3.10),
asking about the threshold alone (Prins 2013, doi 10.1167/13.7.3). The packages questplus and
psignifit do the like under the GPL-3, on which this package, under Apache-2.0, cannot stand.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from vits_prune.pruning.spec import PruneSpec, in_words

TARGET = 0.75
"""At the threshold a listener is right in this share of trials; half are right by chance."""
LEAST_TRIALS = 12
"""Fewer answers say nothing about a threshold."""
_SLOPES = np.array([1.0, 1.8, 3.0, 5.0, 9.0])
_LAPSES = np.array([0.0, 0.02, 0.05])
_BEYOND = 1.5
"""Thresholds go so many times beyond the last amount: there nothing in the row is heard."""
_FINE = 120
_CURVE = 96


class Estimate(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


class Share(NamedTuple):
    """How often something was answered, with the 95% interval of Wilson (1927)."""

    hits: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share, NaN where there is no trial."""
        return self.hits / self.of if self.of else float("nan")


def share_of(count: int, of: int) -> Share:
    """Return a share with Wilson's interval, which is 0 to 1 where there is no trial."""
    if not of:
        return Share(0, 0, 0.0, 1.0)
    low, high = binomtest(count, of).proportion_ci(method="wilson")
    return Share(count, of, float(low), float(high))


def name_of(spec: PruneSpec, amount: bool = False) -> str:
    """Return a spec as a listener reads it, such as "L1 global" or "second order 75% global"."""
    return re.sub(r"\w+ \((\w+)\)", r"\1", in_words(spec, amount=amount)).replace(", ", " ")


# The posterior


def share_right(
    amounts: np.ndarray, thresholds: np.ndarray, slopes: np.ndarray, lapses: np.ndarray
) -> np.ndarray:
    """Return the share of right answers: a Weibull function that is 1/2 where nothing is pruned.

    The arrays broadcast against each other.
    """
    at_threshold = -np.log1p(-(TARGET - 0.5) / (0.5 - lapses))
    heard = -np.expm1(-at_threshold * (amounts / thresholds) ** slopes)
    return 0.5 + (0.5 - lapses) * heard


@functools.lru_cache(maxsize=32)
def _grid(first: float, last: float) -> np.ndarray:
    """Return the thresholds, close together where they are small."""
    return np.linspace(first**0.5 / 2, (_BEYOND * last) ** 0.5, _FINE) ** 2


@functools.lru_cache(maxsize=32)
def _table(amounts: tuple[float, ...], first: float, last: float) -> np.ndarray:
    """Return the share of right answers, float64 [amounts, thresholds, slopes x lapses]."""
    slopes, lapses = (one.ravel() for one in np.meshgrid(_SLOPES, _LAPSES))
    at = np.array(amounts)[:, None, None]
    found = share_right(at, _grid(first, last)[:, None], slopes, lapses)
    return np.clip(found, 0.5, 1 - 1e-9)


def _bits(p: np.ndarray) -> np.ndarray:
    """Return the entropy of an answer that is right with probability p."""
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the answers say about threshold, slope and lapses.

    Args:
        amounts: that can be played, rising, above 0.
        weights: float64 [thresholds, slopes x lapses], of sum 1; None before the first answer.
    """

    amounts: tuple[float, ...]
    weights: np.ndarray | None = None

    @property
    def _shares(self) -> np.ndarray:
        return _table(self.amounts, self.amounts[0], self.amounts[-1])

    @property
    def _weights(self) -> np.ndarray:
        if self.weights is not None:
            return self.weights
        shape = self._shares.shape[1:]
        return np.full(shape, 1 / np.prod(shape))

    def after(self, amount: float, right: bool) -> Posterior:
        """Return the posterior after one more answer at one of the amounts."""
        share = self._shares[self.amounts.index(amount)]
        weights = self._weights * (share if right else 1 - share)
        return dataclasses.replace(self, weights=weights / weights.sum())

    def next_amount(self) -> float:
        """Return the amount whose answer leaves the least expected entropy of the threshold."""
        joint = (self._shares * self._weights).sum(axis=2)
        at_threshold = self._weights.sum(axis=1)
        known = _bits(np.clip(joint / np.maximum(at_threshold, 1e-300), 1e-12, 1 - 1e-12))
        gained = _bits(joint.sum(axis=1)) - known @ at_threshold
        return self.amounts[int(np.argmax(gained))]

    def threshold(self) -> Estimate:
        """Return the posterior median and the central 95% interval of the threshold."""
        thresholds = np.sqrt(_grid(self.amounts[0], self.amounts[-1]))
        mass = self._weights.sum(axis=1).cumsum()
        edges = np.append(thresholds[0] - 1e-9, (thresholds[1:] + thresholds[:-1]) / 2)
        edges = np.append(edges, thresholds[-1])
        found = np.interp([0.5, 0.025, 0.975], np.append(0.0, mass), edges) ** 2
        return Estimate(*(float(one) for one in found))

    def curve(self) -> list[tuple[float, float, float, float]]:
        """Return (amount, mean share right, its 2.5% and 97.5% points) from 0 to the last."""
        at = tuple(np.linspace(0, self.amounts[-1], _CURVE).tolist())
        shares = _table(at, self.amounts[0], self.amounts[-1]).reshape(_CURVE, -1)
        weights = self._weights.ravel()
        order = np.argsort(shares, axis=1)
        mass = weights[order].cumsum(axis=1)
        ends = [
            np.take_along_axis(shares, order, 1)[np.arange(_CURVE), (mass < end).sum(axis=1)]
            for end in (0.025, 0.975 * mass[0, -1])
        ]
        rows = zip(at, shares @ weights, *ends, strict=True)
        return [(amount, float(p), float(low), float(high)) for amount, p, low, high in rows]


# Results


@dataclass(frozen=True, eq=False)
class Hearing:
    """What an ABX test found."""

    name: str
    """Of what was pruned, such as "L1 global"."""
    posterior: Posterior
    shares: dict[float, Share]
    """Right answers by amount."""

    @property
    def trials(self) -> int:
        """The number of trials at all amounts."""
        return sum(one.of for one in self.shares.values())

    @property
    def right(self) -> int:
        """The number of right answers at all amounts."""
        return sum(one.hits for one in self.shares.values())

    def range_words(self) -> str:
        """Return the threshold, such as "17% (95%: 12 to 22%)", as far as the answers tell it."""
        first, last = self.posterior.amounts[0], self.posterior.amounts[-1]
        value, low, high = self.posterior.threshold()
        if self.trials < LEAST_TRIALS:
            return "too few answers"
        if value > last:
            return f"above {_percent(min(low, last))} (not heard up to {_percent(last)})"
        if value < first:
            return f"below {_percent(high)} (all heard from {_percent(first)} on)"
        start = f"below {_percent(first)}" if low < first else _percent(low)[:-1]
        end = f"beyond {_percent(last)}" if high > last else _percent(high)
        return f"{_percent(value)} (95%: {start} to {end})"

    def sentence(self) -> str:
        """Return what the listener hears, in one sentence that claims no more than was found."""
        first, last = self.posterior.amounts[0], self.posterior.amounts[-1]
        value, low, high = self.posterior.threshold()
        if self.trials < LEAST_TRIALS:
            return (
                f"{self.trials} answers are too few to say from which amount on you hear "
                f"{self.name}: give at least {LEAST_TRIALS}."
            )
        if value > last:
            found = (
                f"You did not reliably hear {self.name} up to {_percent(last)}, the end of the "
                f"row: {self.right} of {self.trials} answers were right, and guessing gives half"
            )
            return f"{found} (95%: above {_percent(low)})." if low < last else f"{found}."
        if value < first:
            return (
                f"You heard {self.name} at every amount, from the first, {_percent(first)}, on: "
                f"your threshold is below {_percent(high)} (95%)."
            )
        start, _, interval = self.range_words().partition(" ")
        if high > last:
            return (
                f"You may hear {self.name} from {start} on, but {self.trials} answers cannot "
                f"tell this from guessing {interval}."
            )
        return f"You hear {self.name} from {start} on {interval}."


@dataclass(frozen=True)
class Preference:
    """How often the first of two settings sounded better than the second."""

    names: tuple[str, str]
    share: Share

    @property
    def p(self) -> float:
        """Of the exact two-sided binomial test against no preference."""
        return float(binomtest(self.share.hits, self.share.of).pvalue) if self.share.of else 1.0

    def words(self) -> str:
        """Return the share of the first with its interval, and p."""
        low, high = (f"{100 * one:.0f}" for one in self.share[2:])
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"
        return f"{100 * self.share.value:.0f}% (95%: {low} to {high}%), {p}"

    def sentence(self) -> str:
        """Return what the listener prefers, in one sentence, and whether chance explains it."""
        count, of = self.share[:2]
        if not of:
            return "There is no answer yet, so there is no preference."
        if 2 * count < of:
            other = Preference((self.names[1], self.names[0]), share_of(of - count, of))
            return other.sentence()
        found = f"You chose {self.names[0]} over {self.names[1]} in {count} of {of} trials"
        if self.p < 0.05:
            return f"{found}, {self.words()}: you prefer it."
        return f"{found}, {self.words()}: chance alone explains that."


def hearing(
    name: str, answers: Iterable[tuple[float, bool]], amounts: Sequence[float] = ()
) -> Hearing:
    """Fit the answers of an ABX test.

    Args:
        name: of what was pruned.
        answers: (amount, whether it was right).
        amounts: of the row; those of the answers are added.
    """
    counts = Counter(answers)
    row = tuple(sorted({*amounts, *(amount for amount, _ in counts)}))
    posterior, shares = Posterior(row), {}
    for amount in sorted({amount for amount, _ in counts}):
        right, wrong = counts[amount, True], counts[amount, False]
        shares[amount] = share_of(right, right + wrong)
        for answer in (*[True] * right, *[False] * wrong):
            posterior = posterior.after(amount, answer)
    return Hearing(name, posterior, shares)


def _percent(amount: float) -> str:
    return f"{100 * amount:.2g}%"
