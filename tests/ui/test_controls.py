"""The controls of pruning: what they make of what is set, and which of them are in sight."""

from __future__ import annotations

import pytest

from vits_prune import PruneSpec
from vits_prune.errors import InputError
from vits_prune.pruning.registry import METHODS, SCOPES
from vits_prune.pruning.shape import Shape
from vits_prune.ui import controls
from vits_prune.voices.voice import PARTS

GOOD = {"method": "magnitude", "scope": "global", "amount": 0.3, "parts": list(PARTS)}


def spec_of(**changes):
    return controls.spec_of(**{**GOOD, **changes})


def test_as_they_stand_at_first_they_are_the_default_spec():
    assert spec_of() == PruneSpec()
    assert list(controls.NAMES) == list(controls.spec_of.__annotations__)[: len(controls.NAMES)]


@pytest.mark.parametrize(
    "spec",
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
def test_a_spec_that_is_taken_over_comes_back(spec):
    assert spec_of(**controls.values_of(spec)) == spec


def test_what_does_not_apply_has_no_say():
    elsewhere = {"protect": ["decoder"], "floor": 0.5, "pattern": "2:4", "steps": 4}
    assert spec_of(method="structured", scope="local", **elsewhere) == PruneSpec("structured")
    levers = {"by_lever": True, "decoder_width": 0.5, "branches": 1, "importance": "activation"}
    assert spec_of(**levers) == PruneSpec()
    patterned = spec_of(pattern="2:4", floor=0.5, steps=4, amount=0.9, scope="sensitivity")
    assert patterned == PruneSpec(scope="local", amount=0.5, pattern="2:4")
    assert patterned.protects("duration_predictor.conv_pre"), "it cannot be grouped"
    assert spec_of(pattern="2:4", method="activation").protect is None


@pytest.mark.parametrize(
    "changes",
    [
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
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_what_cannot_be_used_gets_one_sentence(changes):
    with pytest.raises(InputError, match=r"^[^\n]{10,300}\.$"):
        spec_of(**changes)


def visible(voice=None, method="magnitude", scope="global", pattern="", steps=1, by_lever=False):
    found = controls.arranged(voice, method, scope, pattern, steps, by_lever)
    assert set(found) == set(controls.ARRANGED)
    return {name for name, update in found.items() if getattr(update, "visible", True)}, found


def test_only_what_applies_is_in_sight(tiny, joe):
    shown, _ = visible()
    assert {"scope", "amount", "more", "floor", "steps"} <= shown
    assert not shown & {"levers", "importance", "pattern_words", "schedule", *controls.LEVERS}
    assert "schedule" in visible(steps=2)[0]
    shown, found = visible(pattern="2:4", steps=2)
    assert not shown & {"scope", "floor", "steps", "schedule"}
    assert found["amount"].value == 0.5
    assert not found["amount"].interactive
    assert "Ampere" in found["pattern_words"].value
    assert "a CPU gains nothing" in found["pattern_words"].value
    shown, _ = visible(method="structured", pattern="2:4")
    assert not shown & {"scope", "more", "pattern_words", *controls.LEVERS}
    assert {"amount", "importance", "levers"} <= shown
    for voice, has in ((tiny, True), (joe, False)):  # joe has single convolutions in its blocks
        shown, _ = visible(voice, method="structured", by_lever=True)
        assert ("resblock_width" in shown) == has
        assert "amount" not in shown


def test_words_say_what_a_method_does_and_that_it_is_slow():
    for name, method in METHODS.items():
        words = controls.method_words(name, "global")
        assert words.startswith(method.words)
        assert ("10 to 60 seconds" in words) == method.calibrated
    assert "needs calibration" in controls.method_words("magnitude", "sensitivity")
    assert [name for _, name in controls._scope_choices()] == list(SCOPES)
    assert "decoder.conv_post" in controls._protect_info("second_order")
    assert controls.method_words("magic", "global") == ""


def test_levers_start_where_the_amount_has_them(joe):
    found = controls.levers_for(joe, 0.5, ["decoder", "flow"])
    counts = {"branches": controls.ALL, "encoder_layers": controls.ALL, "flows": 2}
    assert found == {"decoder_width": 0.5, "resblock_width": 1, "ffn_width": 1, **counts}
    assert controls.levers_for(joe, 0.5, None)["flows"] == controls.ALL
    shown = controls.arranged(joe, "structured", "global", "", 1, True, found)
    assert {name: shown[name].value for name in found} == found


def test_another_amount_of_the_same_spec():
    spec = PruneSpec("second_order", "local", 0.5, protect=("decoder",), pattern="2:4")
    assert controls.at_amount(spec, 0.7, ("flow",)) == PruneSpec(
        "second_order", "local", 0.7, ("flow",), ("decoder",)
    )
    assert controls.at_amount(PruneSpec("structured", shape=Shape(0.5)), 0.2) == PruneSpec(
        "structured", amount=0.2
    )
