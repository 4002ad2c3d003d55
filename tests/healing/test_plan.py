from __future__ import annotations

import dataclasses
import json

import pytest

from vits_prune import HealPlan, InputError


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
