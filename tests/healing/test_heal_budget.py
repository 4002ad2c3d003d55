from __future__ import annotations

import pytest

from vits_prune import HealPlan
from vits_prune.healing.budget import COUNTED, UNCOUNTED, Pace, lessons_at, phases


def test_lessons_grow_with_the_steps_up_to_what_there_is():
    counts = [lessons_at(step, 100) for step in range(400)]
    assert counts[0] == 16
    assert counts == sorted(counts)
    assert counts[-1] == 100


@pytest.mark.parametrize(
    ("plan", "found"),
    [
        (HealPlan(joint=0.25), [(0.0, 0.75), (0.75, 1.0)]),
        (HealPlan(joint=0.0), [(0.0, 1.0)]),
        (HealPlan(joint=1.0), [(0.0, 1.0)]),
        (HealPlan(joint=0.25, adversarial=True), [(0.0, 0.5), (0.5, 0.75), (0.75, 1.0)]),
    ],
)
def test_phases_of_a_plan(plan, found):
    assert phases(plan) == found


def test_minutes_over_the_seconds_of_a_step():
    pace = Pace(HealPlan(minutes=20, joint=0.0), reserve=100)
    pace.lessons_took(16.0, 16)
    enough = [pace.took(9.0 if index < UNCOUNTED else 2.0) for index in range(UNCOUNTED + COUNTED)]
    assert enough == [False] * (len(enough) - 1) + [True]
    # 1100 seconds less 84 lessons of a second each, two seconds a step
    assert pace.steps(100, lambda done: None) == pytest.approx(len(enough) + (1100 - 84) / 2, abs=2)


def test_where_lessons_are_made_to_the_end_they_count_with_every_step():
    pace = Pace(HealPlan(minutes=1, joint=0.0), reserve=0)
    pace.lessons_took(16.0, 16)
    for _ in range(UNCOUNTED + COUNTED):
        pace.took(1.0)
    assert pace.steps(5_000, lambda done: None) == pytest.approx(12 + 60 / 1.25, abs=2)


def test_there_is_always_a_step():
    pace = Pace(HealPlan(minutes=0.1, joint=0.0), reserve=1_000)
    for _ in range(UNCOUNTED + COUNTED):
        pace.took(1.0)
    assert pace.steps(16, lambda done: None) == UNCOUNTED + COUNTED + 1
