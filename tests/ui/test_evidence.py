"""The curve's and the fader's values, from a tiny voice."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import soundfile

from vits_prune import InputError, PruneSpec, prune, speak
from vits_prune.ui import curve, evidence, fader, steps
from vits_prune.workbench import Request, Workbench

TEXT = "hi there you"


@pytest.fixture
def request_(tiny, monkeypatch):
    bench = Workbench()
    monkeypatch.setattr(steps, "bench", bench)
    monkeypatch.setattr(bench, "voice", lambda *args, **named: tiny)
    return Request("someone/tiny", TEXT, PruneSpec(scope="local", amount=0.3), seed=2, timing="locked")


def test_the_curve_grows_point_by_point(request_, tiny):
    shown = [step for step in evidence.curve_steps(request_, None, 2, 0.2, 0.4, ["rhythm", "loudness"]) if "curve" in step]
    assert [len(step["curve"]["series"][0]["points"]) for step in shown] == [1, 2, 3]
    value = shown[-1]["curve"]
    json.dumps(value)
    points = value["series"][0]["points"]
    assert [point["amount"] for point in points] == [0.0, 0.2, 0.4]
    assert points[0]["figures"]["duration_ratio"][0] == 1.0
    assert points[2]["sparsity"] == pytest.approx(0.4, abs=0.01)
    low, high = value["metrics"]["lufs"]["floor"]
    assert low <= points[0]["figures"]["lufs"][0] <= high
    assert "Press a point" in shown[-1]["status"]
    again = [step for step in evidence.curve_steps(request_, None, 2, 0.2, 0.4, ["rhythm", "loudness"]) if "curve" in step]
    assert again[-1]["curve"] == value


def test_no_measure_is_refused(request_):
    with pytest.raises(InputError, match="at least one measure"):
        list(evidence.curve_steps(request_, None, 2, 0.2, 0.4, []))


def test_the_fader_holds_aligned_renditions(request_, tiny):
    *_, last = evidence.fader_steps(request_, None)
    points = last["fader"]["points"]
    assert [point["amount"] for point in points] == list(evidence.FADER_AMOUNTS)
    sounds = [soundfile.read(io.BytesIO(base64.b64decode(point["wav"])), dtype="int16")[0] for point in points]
    assert len({len(sound) for sound in sounds}) == 1
    original = speak(tiny, TEXT, 2)
    assert np.array_equal(sounds[0], original.pcm16())
    assert np.array_equal(sounds[5], speak(prune(tiny, PruneSpec(scope="local", amount=0.5)), TEXT, 2, timing=original).pcm16())
    assert points[5]["numbers"]["zeros"] == "50.0%"


def test_a_long_text_is_refused_by_the_fader(request_, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_FADER_SECONDS", 0.0)
    with pytest.raises(InputError, match="shorten the text"):
        list(evidence.fader_steps(request_, None))


def test_empty_values_are_drawn_as_nothing():
    assert curve.curve_value([], {}, "hint") == {"series": [], "metrics": {}, "hint": "hint"}
    assert fader.fader_value([], [], [])["points"] == []
