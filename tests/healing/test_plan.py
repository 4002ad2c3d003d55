from __future__ import annotations

import dataclasses
import json

import pytest

from vits_prune import HealPlan, InputError
from vits_prune.healing.plan import TIMED, UNTIMED, Clock, judging_seconds, phases, sentences_at


def test_a_plan_goes_through_json_and_back():
    plan = HealPlan(minutes=3.5, seed=7, adversarial=True, precision="bf16", speakers="own")
    assert HealPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert hash(plan) == hash(dataclasses.replace(plan))


def test_values_out_of_range_are_refused():
    for fields, words in (
        ({"minutes": 0}, "minutes must be a number from 0.05"),
        ({"minutes": float("nan")}, "minutes must be"),
        ({"minutes": None}, "needs a budget"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"batch": 0}, "batch must be"),
        ({"segment": 4}, "segment must be"),
        ({"joint": 1.5}, "joint must be"),
        ({"learning_rate": "fast"}, "learning_rate must be"),
        ({"precision": "fp8"}, "choose one of no, bf16"),
        ({"speakers": "many"}, "choose one of all, own"),
        ({"adversarial": 1}, "adversarial must be True or False"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(InputError, match=words):
            HealPlan(**fields)
    with pytest.raises(InputError, match="and no others"):
        HealPlan.from_dict({"epochs": 3})


def test_several_healings_share_a_plan_and_the_last_gets_twice_as_much():
    plan = HealPlan(steps=50, minutes=10.0)
    shares = [plan.share(index, 4) for index in range(4)]
    assert [one.steps for one in shares] == [10, 10, 10, 20]
    assert sum(one.minutes for one in shares) == pytest.approx(10)
    assert plan.share(0, 1) == plan


def no_rehearsal(done):
    raise AssertionError("every step costs the same")


def estimate(minutes, seconds, sentences, sentence=0.0, judging=0.0):
    clock = Clock(HealPlan(minutes=minutes, joint=0.0), judging)
    clock.sentence = sentence
    times = [9.0] * UNTIMED + [seconds] * TIMED
    *early, found = [clock.estimate(one, sentences, no_rehearsal) for one in times]
    assert set(early) == {None}
    return found - UNTIMED - TIMED


def test_sentences_grow_with_the_steps_up_to_what_there_is():
    counts = [sentences_at(step, 100) for step in range(400)]
    assert (counts[0], counts[-1]) == (16, 100)
    assert counts == sorted(counts)


def test_phases_of_a_plan():
    for plan, found in (
        (HealPlan(joint=0.25), [(0.0, 0.75), (0.75, 1.0)]),
        (HealPlan(joint=0.0), [(0.0, 1.0)]),
        (HealPlan(joint=1.0), [(0.0, 1.0)]),
        (HealPlan(joint=0.25, adversarial=True), [(0.0, 0.5), (0.5, 0.75), (0.75, 1.0)]),
    ):
        assert phases(plan) == found


def test_minutes_are_turned_into_steps():
    # 1,100 seconds less 84 sentences of a second each, two seconds a step
    assert estimate(20, 2.0, 100, 1.0, 100) == pytest.approx((1100 - 84) / 2, abs=2)
    # the teacher speaks until the end: a quarter of a second a step on top
    assert estimate(1, 1.0, 5_000, 1.0) == pytest.approx(60 / 1.25, abs=2)
    assert estimate(0.1, 10.0, 16, judging=1_000) == 1, "there is always a step"


def test_later_phases_are_rehearsed():
    clock, rehearsed = Clock(HealPlan(minutes=1, joint=0.5), 0), []
    for _ in range(UNTIMED + TIMED):
        found = clock.estimate(1.0, 16, rehearsed.append)
    assert set(rehearsed) == {0.75}
    assert found == pytest.approx(12 + 60 / 0.5, abs=3), "the second half costs next to nothing"


def test_half_of_the_minutes_are_for_training():
    assert judging_seconds(HealPlan(minutes=2), 30.0) == 30.0
    assert judging_seconds(HealPlan(minutes=2), 300.0) == 60.0
    assert estimate(2, 1.0, 16, judging=300) == pytest.approx(60, abs=2)


def test_a_busy_machine_makes_fewer_steps_and_a_quiet_one_as_many():
    clock = Clock(HealPlan(minutes=10), 60)
    assert [clock.revise(1.0, 52, 400, 80.0) for _ in range(40)] == [None] * 39 + [400]
    # of 600 seconds 200 are over and three quarters of the judge's are to come
    found = [clock.revise(3.0, 100, 400, 200.0) for _ in range(40)]
    assert found[-1] == 100 + int((400 - 45) / 3)
    found = [clock.revise(3.0, 300, 400, 700.0) for _ in range(40)]
    assert found[-1] == 301, "it ends at once if the minutes are over"


def test_a_number_of_steps_is_never_cut_short():
    clock = Clock(HealPlan(steps=100, minutes=0.05), 0)
    assert {clock.revise(100.0, 50, 100, 1e6) for _ in range(50)} == {None}
