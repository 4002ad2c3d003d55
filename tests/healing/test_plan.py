from __future__ import annotations

import dataclasses
import json

import pytest

from vits_prune import HealPlan, InputError


def test_goes_through_json_and_back():
    plan = HealPlan(minutes=3.5, seed=7, adversarial=True, precision="bf16", speakers="own")
    assert HealPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert hash(plan) == hash(dataclasses.replace(plan))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"minutes": 0}, "minutes must be a number from 0.05"),
        ({"minutes": float("nan")}, "minutes must be"),
        ({"minutes": None}, "needs a budget"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"steps": True}, "steps must be a whole number"),
        ({"batch": 0}, "batch must be"),
        ({"segment": 4}, "segment must be"),
        ({"joint": 1.5}, "joint must be"),
        ({"learning_rate": "fast"}, "learning_rate must be"),
        ({"precision": "fp8"}, "precision must be one of no, bf16"),
        ({"speakers": "many"}, "speakers must be one of all, own"),
        ({"adversarial": 1}, "adversarial is True or False"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_is_out_of_range_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        HealPlan(**fields)


def test_an_unknown_field_is_named():
    with pytest.raises(InputError, match="no 'epochs'"):
        HealPlan.from_dict({"epochs": 3})
