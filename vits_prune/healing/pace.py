"""Minutes as a number of steps: found once from the first steps; later only ever lowered, where the machine turns out to be too busy."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

from vits_prune.healing.lessons import SHARD
from vits_prune.healing.plan import HealPlan

UNCOUNTED, COUNTED = 4, 8
"""Steps before the clock counts (torch prepares its kernels), and steps that are timed."""
_REHEARSALS = 3
_LOOKS = 10
"""So often a healing looks at the clock after that."""
_SLACK = 0.05
"""Share of the minutes that it may take longer."""
STEPS_A_LESSON = 4
"""On two cores a lesson costs about as much as a step: a new one each step would halve the number of steps."""


def lessons_at(step: int, lessons: int) -> int:
    """Lessons that a step may see: more as it goes on, a file of them at a time."""
    return min(lessons, SHARD * (1 + step // (SHARD * STEPS_A_LESSON)))


def phases(plan: HealPlan) -> list[tuple[float, float]]:
    """Stretches of the training in which every step costs the same: (begin, end) as shares of the whole."""
    marks = {0.0, 1.0, 1 - plan.joint} | ({plan.adversarial_from} if plan.adversarial else set())
    ordered = sorted(marks)
    return [(low, high) for low, high in itertools.pairwise(ordered) if high > low]


def reserved(plan: HealPlan, reserve: float) -> float:
    """Seconds that are kept for measuring: as many as it needs, but half of the plan's minutes are for training."""
    return min(reserve, 30 * (plan.minutes or 0.0))


class Watch:
    """The clock of a healing whose number of steps is known: on a machine that others keep busy, fewer fit into the minutes.

    Args:
        plan: one with steps is never cut short.
        reserve: seconds of its minutes that are not for training.
    """

    def __init__(self, plan: HealPlan, reserve: float) -> None:
        self._seconds = None if plan.steps is not None else 60 * (plan.minutes or 0.0)
        self._reserve = reserved(plan, reserve)
        self._steps: list[float] = []

    def took(self, seconds: float, of: int) -> bool:
        """Count a step; whether it is time to look at the clock."""
        self._steps.append(seconds)
        return self._seconds is not None and len(self._steps) >= max(COUNTED, of // _LOOKS)

    def steps(self, step: int, of: int, seconds: float) -> int:
        """How many steps there are to be, those done included: `of`, or fewer where steps like those of late would take too long.

        Args:
            step: steps done.
            of: steps that were to be.
            seconds: since healing began.
        """
        if self._seconds is None or step >= of:
            return of
        each = statistics.fmean(self._steps)
        self._steps = []
        left = self._seconds - seconds - self._reserve * (1 - step / of)
        if (of - step) * each <= left + _SLACK * self._seconds:
            return of
        return min(of, step + max(1, int(left / each)))


class Pace:
    """The clock of a healing that was given minutes.

    Args:
        plan: with minutes.
        reserve: seconds of them that are not for training, half of them at most.
    """

    def __init__(self, plan: HealPlan, reserve: float) -> None:
        self._plan, self._start = plan, time.perf_counter()
        self._seconds = 60 * (plan.minutes or 0.0) - reserved(plan, reserve)
        self._steps: list[float] = []
        self._lesson = 0.0

    def took(self, seconds: float) -> bool:
        """Count a step; whether there are enough now."""
        self._steps.append(seconds)
        return len(self._steps) == UNCOUNTED + COUNTED

    def lessons_took(self, seconds: float, count: int) -> None:
        """Count lessons that were made."""
        self._lesson = seconds / max(1, count)

    def steps(self, lessons: int, rehearse: Callable[[float], object]) -> int:
        """How many steps there are to be, those done included.

        Args:
            lessons: how many there will be.
            rehearse: runs a step as it will be when a share of the training is over, without learning from it.
        """
        done = len(self._steps)
        step = self._of_a_step(rehearse)
        left = self._seconds - (time.perf_counter() - self._start)
        to_make = max(0, lessons - lessons_at(done, lessons))
        steps = (left - to_make * self._lesson) / step
        if steps < to_make * STEPS_A_LESSON:  # lessons are made to the end
            steps = left / (step + self._lesson / STEPS_A_LESSON)
        return done + max(1, int(steps))

    def _of_a_step(self, rehearse: Callable[[float], object]) -> float:
        """Mean seconds of a step over the whole training."""
        mean = 0.0
        for low, high in phases(self._plan):
            seconds = self._steps[UNCOUNTED:]
            if low > 0:
                seconds = [_timed(rehearse, (low + high) / 2) for _ in range(1 + _REHEARSALS)][1:]
            mean += (high - low) * statistics.median(seconds)
        return mean


def _timed(rehearse: Callable[[float], object], done: float) -> float:
    start = time.perf_counter()
    rehearse(done)
    return time.perf_counter() - start
