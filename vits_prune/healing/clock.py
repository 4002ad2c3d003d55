"""The clock of a healing: minutes become steps, and fewer of them if the machine gets slower."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

from vits_prune.healing.plan import HealPlan
from vits_prune.healing.teacher import SHARD

WARM_UP, TIMED = 4, 8
"""Steps in which torch prepares its kernels, and steps that are timed after them."""
_REHEARSALS = 3
_REVISIONS = 10
_TOLERANCE = 0.05
"""Share of the minutes by which a healing may be late."""
STEPS_PER_SENTENCE = 4
"""On two cores to speak a sentence costs as much as a step: one a step would halve the steps."""


def sentences_at(step: int, sentences: int) -> int:
    """Return the number of sentences that a step may draw from: it grows a file at a time."""
    return min(sentences, SHARD * (1 + step // (SHARD * STEPS_PER_SENTENCE)))


def phases(plan: HealPlan) -> list[tuple[float, float]]:
    """Return the phases in which every step costs the same, (begin, end) as shares of the whole."""
    marks = {0.0, 1.0, 1 - plan.joint} | ({plan.adversarial_from} if plan.adversarial else set())
    return [(low, high) for low, high in itertools.pairwise(sorted(marks)) if high > low]


def judging_seconds(plan: HealPlan, wanted: float) -> float:
    """Return the seconds that are kept for judging: at most half of the plan's minutes."""
    return min(wanted, 30 * (plan.minutes or 0.0))


class Clock:
    """Times the steps of one call of heal.

    Args:
        plan: with minutes. One with steps is never cut short.
        judging: seconds that the judge takes.
    """

    def __init__(self, plan: HealPlan, judging: float) -> None:
        self._plan, self._start = plan, time.perf_counter()
        self._seconds = 60 * (plan.minutes or 0.0)
        self._judging = judging_seconds(plan, judging)
        self._steps: list[float] = []
        self.sentence = 0.0
        """Seconds that the teacher takes for a sentence."""

    def estimate(
        self, took: float, sentences: int, rehearse: Callable[[float], object]
    ) -> int | None:
        """Count a step; return how many there can be in all once enough have been timed.

        Args:
            took: seconds of the step.
            sentences: how many the teacher will speak.
            rehearse: does the work of a step at a share of the training, without learning.
        """
        self._steps.append(took)
        done = len(self._steps)
        if done < WARM_UP + TIMED:
            return None
        step = sum(
            (high - low) * self._seconds_of_a_step(low, high, rehearse)
            for low, high in phases(self._plan)
        )
        self._steps = []
        left = self._seconds - self._judging - (time.perf_counter() - self._start)
        to_speak = max(0, sentences - sentences_at(done, sentences))
        steps = (left - to_speak * self.sentence) / step
        if steps < to_speak * STEPS_PER_SENTENCE:  # the teacher speaks until the end
            steps = left / (step + self.sentence / STEPS_PER_SENTENCE)
        return done + max(1, int(steps))

    def _seconds_of_a_step(
        self, low: float, high: float, rehearse: Callable[[float], object]
    ) -> float:
        """Return the median of the steps that were timed, or of rehearsals of a later phase."""
        if low == 0:
            return statistics.median(self._steps[WARM_UP:])
        seconds = []
        for _ in range(1 + _REHEARSALS):
            start = time.perf_counter()
            rehearse((low + high) / 2)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])

    def revise(self, took: float, step: int, of: int, seconds: float) -> int | None:
        """Count a step; return how many there can be in all, None between two looks at the clock.

        Args:
            took: seconds of the step.
            step: steps that are done.
            of: steps that were planned. The answer is never higher.
            seconds: since the healing began.
        """
        self._steps.append(took)
        if self._plan.steps is not None or len(self._steps) < max(TIMED, of // _REVISIONS):
            return None
        if step >= of:
            return of
        each, self._steps = statistics.fmean(self._steps), []
        left = self._seconds - seconds - self._judging * (1 - step / of)
        if (of - step) * each <= left + _TOLERANCE * self._seconds:
            return of
        return min(of, step + max(1, int(left / each)))
