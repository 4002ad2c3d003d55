"""What the page asks for: the Request, and what the controls make of what is set."""

from __future__ import annotations

import pickle

import pytest

from vits_prune import PruneSpec
from vits_prune.errors import InputError
from vits_prune.pruning import Shape
from vits_prune.studio.request import (
    MAX_CHARACTERS,
    PRUNING,
    Request,
    at_amount,
    request_of,
    spec_of,
    values_of,
)
from vits_prune.synthesis.speak import Delivery
from vits_prune.voices.voice import PARTS

GOOD = {"method": "magnitude", "scope": "global", "amount": 0.3, "parts": list(PARTS)}


def spec(**changes):
    return spec_of({**GOOD, **changes})


def test_as_they_stand_at_first_they_are_the_default_spec():
    assert spec() == PruneSpec()
    assert set(PRUNING) == set(values_of(PruneSpec("structured", shape=Shape(1, 1, 1, 1, 1, 1))))


@pytest.mark.parametrize(
    "wanted",
    [
        PruneSpec(),
        PruneSpec("random", "local", 0.5, ("flow",), ("flow.flows.0", "decoder"), 0.25),
        PruneSpec("second_order", "sensitivity", 0.7, protect=(), steps=3, schedule="linear"),
        PruneSpec("activation", "local", 0.5, pattern="2:4"),
        PruneSpec("structured", amount=0.4, parts=("decoder",)),
        PruneSpec("structured", shape=Shape(0.5, 2, 0.75, 0.5, 4, 2)),
        PruneSpec("structured", amount=0.4, importance="weight_norm"),
    ],
    ids=str,
)
def test_a_spec_that_is_taken_over_comes_back(wanted):
    assert spec(**values_of(wanted)) == wanted


def test_what_does_not_apply_has_no_say():
    elsewhere = {"protect": ["decoder"], "floor": 0.5, "pattern": "2:4", "steps": 4}
    assert spec(method="structured", scope="local", **elsewhere) == PruneSpec("structured")
    levers = {"by_lever": True, "decoder_width": 0.5, "branches": 1, "importance": "activation"}
    assert spec(**levers) == PruneSpec()
    patterned = spec(pattern="2:4", floor=0.5, steps=4, amount=0.9, scope="sensitivity")
    assert patterned == PruneSpec(scope="local", amount=0.5, pattern="2:4")
    assert patterned.protects("duration_predictor.conv_pre"), "it cannot be grouped"
    assert spec(pattern="2:4", method="activation").protect is None


BAD = [
    {"method": "magic"},
    {"method": None},
    {"method": ["magnitude"]},
    {"scope": "sideways"},
    {"scope": None},
    {"amount": float("nan")},
    {"amount": 1.0},
    {"amount": None},
    {"amount": "0.3"},
    {"parts": []},
    {"parts": None},
    {"parts": 5},
    {"protect": "decoder"},
    {"protect": [5]},
    {"protect": {"decoder": 1}},
    {"protect": ["nothing", "decoder"]},
    {"protect": ["a" * 201]},
    {"protect": ["x" + str(i) for i in range(1001)]},
    {"protect": [" "]},
    {"floor": float("inf")},
    {"floor": "high"},
    {"pattern": "4:2"},
    {"pattern": ["2:4"]},
    {"pattern": "9" * 999},
    {"steps": 0},
    {"steps": 1.5},
    {"steps": float("nan")},
    {"steps": 2, "schedule": "never"},
    {"steps": 2, "schedule": ["linear"]},
    {"method": "structured", "importance": "beauty"},
    {"method": "structured", "importance": None},
    {"method": "structured", "by_lever": True, "decoder_width": 0},
    {"method": "structured", "by_lever": True, "decoder_width": float("nan")},
    {"method": "structured", "by_lever": True, "ffn_width": "wide"},
    {"method": "structured", "by_lever": True, "branches": -1},
    {"method": "structured", "by_lever": True, "flows": 1.5},
    {"method": "structured", "by_lever": True, "flows": float("inf")},
]


def test_what_cannot_be_used_gets_one_sentence():
    for changes in BAD:
        with pytest.raises(InputError, match=r"^[^\n]{10,300}\.$"):
            pytest.fail(f"{changes} makes {spec(**changes)}")


def test_the_controls_become_a_request():
    values = {"voice": " joe ", "speaker": "", "text": "hi", "seed": None, "speaking_rate": 1.5}
    assert request_of(values) == Request("joe", "hi", delivery=Delivery(1.5))
    pruning = {"method": "random", "scope": "local", "amount": 0.4, "parts": ["flow"], "floor": 0.1}
    found = request_of({**values, **pruning, "protect": ["flow.flows.0"], "timing": "locked"})
    assert found.spec == PruneSpec("random", "local", 0.4, ("flow",), ("flow.flows.0",), 0.1)
    assert (found.timing, found.delivery.noise_scale) == ("locked", None)
    assert request_of(values, PruneSpec(amount=0.5)).spec == PruneSpec(amount=0.5)
    assert found.checked() is found
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(pickle.loads(pickle.dumps(found))) == hash(found)


def test_a_request_that_cannot_be_used():
    for changes, words in (
        ({"text": ""}, "no text"),
        ({"text": None}, "no text"),
        ({"text": " \n"}, "no text"),
        ({"text": "a" * 100_000}, f"has 100,000 characters and the page speaks {MAX_CHARACTERS:,}"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**32}, "seed must be"),
        ({"seed": float("nan")}, "seed must be"),
        ({"timing": "never"}, "own or locked"),
        ({"timing": None}, "own or locked"),
        ({"steps": 9}, "8 steps at most"),
        ({"protect": ["flow"] * 5 + [f"x{i}" for i in range(100)]}, "100 protected layers"),
        ({"speaking_rate": 9}, "speaking_rate"),
        ({"noise_scale": float("nan")}, "noise_scale"),
        ({"noise_scale_duration": -1}, "noise_scale_duration"),
    ):
        with pytest.raises(InputError, match=rf"(?s)^(?=[^\n]+\.$).*{words}"):
            pytest.fail(f"{changes} makes {request_of({'voice': 'joe', 'text': 'hi', **changes})}")
    for texts in (("hi",) * 61, ("a" * 301,)):
        with pytest.raises(InputError, match="60 sentences"):
            request_of({"voice": "joe", "text": "hi"}, PruneSpec("activation", texts=texts))


def test_another_amount_of_the_same_spec():
    spec = PruneSpec("second_order", "local", 0.5, protect=("decoder",), pattern="2:4")
    assert at_amount(spec, 0.7, ("flow",)) == PruneSpec(
        "second_order", "local", 0.7, ("flow",), ("decoder",)
    )
    assert at_amount(PruneSpec("structured", shape=Shape(0.5)), 0.2) == PruneSpec(
        "structured", amount=0.2
    )
