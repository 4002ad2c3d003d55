"""The controls: which of them are in sight, what is said beside them, and uploads."""

from __future__ import annotations

import pytest

from vits_prune.errors import InputError
from vits_prune.pruning.spec import METHODS
from vits_prune.studio.descriptions import method_words
from vits_prune.ui import controls


def visible(voice=None, method="magnitude", scope="global", pattern="", steps=1, by_lever=False):
    values = {"method": method, "scope": scope, "pattern": pattern, "steps": steps}
    values["cost"] = "weights"
    found = controls.arranged(voice, {**values, "by_lever": by_lever})
    assert set(found) == set(controls.ARRANGED)
    return {name for name, update in found.items() if update.get("visible", True)}, found


def test_only_what_applies_is_in_sight(tiny, joe):
    shown, _ = visible()
    assert {"scope", "amount", "more", "floor", "steps"} <= shown
    assert not shown & {"levers", "importance", "pattern_words", "schedule", *controls.LEVERS}
    assert "schedule" in visible(steps=2)[0]
    shown, found = visible(pattern="2:4", steps=2)
    assert not shown & {"scope", "floor", "steps", "schedule"}
    assert found["amount"]["value"] == 0.5
    assert not found["amount"]["interactive"]
    assert "Ampere" in found["pattern_words"]["value"]
    assert "a CPU gains no more than from other zeros" in found["pattern_words"]["value"]
    shown, _ = visible(method="structured", pattern="2:4")
    assert not shown & {"scope", "more", "pattern_words", *controls.LEVERS}
    assert {"amount", "importance", "levers"} <= shown
    for voice, has in ((tiny, True), (joe, False)):  # joe has single convolutions in its blocks
        shown, _ = visible(voice, method="structured", by_lever=True)
        assert ("resblock_width" in shown) == has
        assert "amount" not in shown


def test_words_say_what_a_method_does_and_that_it_is_slow():
    for name, method in METHODS.items():
        words = method_words(name, "global")
        assert words.startswith(method.words)
        assert ("10 to 60 seconds" in words) == method.calibrated
    assert "needs calibration" in method_words("magnitude", "sensitivity")
    assert "decoder.conv_post" in visible(method="second_order")[1]["protect"]["info"]
    assert method_words("magic", "global") == ""


def test_levers_start_where_the_amount_has_them(joe):
    found = controls.levers_for(joe, 0.5, ["decoder", "flow"])
    counts = {"branches": controls.ALL, "encoder_layers": controls.ALL, "flows": 2}
    assert found == {"decoder_width": 0.5, "resblock_width": 1, "ffn_width": 1, **counts}
    assert controls.levers_for(joe, 0.5, None)["flows"] == controls.ALL
    values = {"method": "structured", "scope": "global", "pattern": "", "steps": 1}
    values["cost"] = "weights"
    shown = controls.arranged(joe, {**values, "by_lever": True}, found)
    assert {name: shown[name]["value"] for name in found} == found


def test_an_upload_is_one_onnx_and_one_json():
    for names in (
        [], ["a.onnx"], ["a.json"], ["a.onnx", "b.onnx"], ["a.onnx", "b.json", "c.json"],
        ["a.onnx", "b.txt"],
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"choose its \.onnx and its \.onnx\.json together"):
            controls.keep_upload({"upload": names}, None)
