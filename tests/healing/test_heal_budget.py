from __future__ import annotations

import pytest

from vits_prune import HealPlan
from vits_prune.healing.pace import COUNTED, UNCOUNTED, Pace, Watch, lessons_at, phases, reserved


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
        pace.took(10.0)
    assert pace.steps(16, lambda done: None) == UNCOUNTED + COUNTED + 1


def test_half_of_the_minutes_are_for_training():
    assert reserved(HealPlan(minutes=2), 30.0) == 30.0
    assert reserved(HealPlan(minutes=2), 300.0) == 60.0
    pace = Pace(HealPlan(minutes=2, joint=0.0), reserve=300)
    for _ in range(UNCOUNTED + COUNTED):
        pace.took(1.0)
    assert pace.steps(16, lambda done: None) == pytest.approx(12 + 60, abs=2)


def test_a_busy_machine_makes_fewer_steps_and_a_quiet_one_as_many():
    watch = Watch(HealPlan(minutes=10), reserve=60)
    assert [watch.took(1.0, 400) for _ in range(40)] == [False] * 39 + [True]
    assert watch.steps(52, 400, 80.0) == 400
    for _ in range(40):
        watch.took(3.0, 400)
    # of 600 seconds 200 are over and three quarters of the reserve are to come
    assert watch.steps(100, 400, 200.0) == 100 + int((400 - 45) / 3)
    for _ in range(40):
        watch.took(3.0, 400)
    assert watch.steps(300, 400, 700.0) == 301, "the end comes at once where the minutes are over"


def test_steps_are_never_cut_short():
    watch = Watch(HealPlan(steps=100, minutes=0.05), reserve=0)
    assert not any(watch.took(100.0, 100) for _ in range(50))
    assert watch.steps(50, 100, 1e6) == 100
