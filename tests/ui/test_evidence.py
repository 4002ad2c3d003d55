"""The curve's and the fader's values, from a tiny voice."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from vits_prune import InputError, PruneSpec, prune, speak
from vits_prune.caches import Bounded
from vits_prune.pruning.spec import in_words
from vits_prune.studio.workbench import Request, Workbench
from vits_prune.study.knee import LIMITS, RESOLUTION
from vits_prune.synthesis.speak import Delivery
from vits_prune.ui import curve, evidence, fader, steps
from vits_prune.ui.controls import at_amount

TEXT = "hi there you"


@pytest.fixture
def request_(tiny, monkeypatch):
    bench = Workbench()
    monkeypatch.setattr(steps, "bench", bench)
    monkeypatch.setattr(bench, "voice", lambda *args, **named: tiny)
    return Request(
        "someone/tiny", TEXT, PruneSpec(scope="local", amount=0.3), seed=2, timing="locked"
    )


def test_the_curve_grows_point_by_point(request_, tiny):
    shown = [
        step
        for step in evidence.curve_steps(request_, None, 2, 0.2, 0.4, ["rhythm", "loudness"])
        if "curve" in step
    ]
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
    again = [
        step
        for step in evidence.curve_steps(request_, None, 2, 0.2, 0.4, ["rhythm", "loudness"])
        if "curve" in step
    ]
    assert again[-1]["curve"] == value


@pytest.mark.parametrize(("method", "last"), [("second_order", 0.8), ("structured", 0.4)])
def test_the_curve_of_a_calibrated_method(request_, tiny, method, last):
    spec = PruneSpec(
        method, amount=0.3, texts=("hi there",), floor=0.3 if method == "second_order" else 0.0
    )
    request = dataclasses.replace(request_, spec=spec)
    found = list(evidence.curve_steps(request, None, 2, 0.4, 0.8, ["rhythm"]))
    value = [step for step in found if "curve" in step][-1]["curve"]
    (series,) = value["series"]
    assert series["name"] == in_words(spec, amount=False)
    assert [PruneSpec.from_dict(point["spec"]) for point in series["points"]] == [
        at_amount(spec, amount)
        for amount in (0.0, 0.4, 0.8)
        if method == "structured" or amount < 0.8
    ], "0.8 cannot be reached above a floor of 0.3"
    assert ("gone" in value["axis"]) == (method == "structured")
    assert series["points"][1]["sparsity"] > 0.1
    assert any(
        f"point 2 of {len(series['points'])}, {in_words(at_amount(spec, 0.4))}: "
        in step.get("status", "")
        for step in found
    )
    if method == "structured":
        *_, faded = evidence.fader_steps(request, None)
        assert [point["amount"] for point in faded["fader"]["points"]] == list(
            evidence.FEWER_AMOUNTS
        )
        assert "zeros or gone" in faded["fader"]["points"][1]["numbers"]


def test_no_measure_is_refused(request_):
    with pytest.raises(InputError, match="at least one measure"):
        list(evidence.curve_steps(request_, None, 2, 0.2, 0.4, []))


def test_the_knee_is_bisected_within_the_limits(request_, tiny, monkeypatch):
    """Loudness stands in for the words and the opinions, which a tiny voice has not."""
    from vits_prune.study.evaluation import Settings, evaluate
    from vits_prune.study.knee import Limit

    monkeypatch.setattr(
        evidence,
        "Limit",
        lambda metric, change: Limit("lufs" if metric == "cer" else "duration_ratio", abs(change)),
    )
    found = list(evidence.knee_steps(request_, None, 2, 50.0, None))
    assert all(set(step) == {"status"} for step in found[:-1])
    assert any("amount 0.50" in step["status"] for step in found)
    last, table = found[-1], found[-1]["knee"].value["data"]
    knee = float(last["status"].split()[-1].rstrip("."))
    assert f"**Knee: amount {knee:.2f}** (magnitude (L1), local, 2 held-out" in last["knee_words"]
    assert "--strict" not in last["knee_words"]
    assert len(table) <= 7
    assert [row[4].split(",")[0] for row in table] == [
        "kept" if float(row[0]) <= knee else "broken" for row in table
    ]
    assert list(pd.read_csv(last["knee_csv"].value["path"])["kept"]) == [
        row[4].startswith("kept") for row in table
    ]
    texts = evidence.texts_for(tiny, TEXT, 2)[0]
    for amount, kept in ((knee, True), (knee + RESOLUTION, False)):
        pruned = prune(tiny, PruneSpec(scope="local", amount=round(amount, 2)))
        difference = (
            evaluate(tiny, pruned, texts, Settings(seed=2, metrics=("loudness",), noise_seeds=0))
            .figures["lufs"]
            .difference.value
        )
        assert (abs(difference) <= 0.5) == kept


def test_the_knee_needs_a_limit(request_):
    with pytest.raises(InputError, match="at least one limit"):
        next(evidence.knee_steps(request_, None, 2, None, None))


def test_the_knee_of_the_curve_is_before_the_first_lost_limit(tiny):
    rows = [
        {"cer_difference": cer, "dnsmos_ovrl_difference": dnsmos}
        for cer, dnsmos in ((0, 0), (0.02, -0.05), (0.0, -0.2), (0.0, 0.0))
    ]

    class Found:
        def __init__(self, row):
            self.figures, self.to_row = dict.fromkeys(("cer", "dnsmos_ovrl")), lambda: row

    points = [(PruneSpec(amount=i / 10), i / 20, Found(row)) for i, row in enumerate(rows)]
    assert evidence.knee_of(points) == 0.05
    assert evidence.knee_of(points[:2]) is None
    assert [limit.metric for limit in LIMITS] == ["cer", "dnsmos_ovrl"]


def test_the_fader_holds_aligned_renditions(request_, tiny):
    *_, last = evidence.fader_steps(request_, None)
    points = last["fader"]["points"]
    assert [point["amount"] for point in points] == list(evidence.FADER_AMOUNTS)
    sounds = [
        soundfile.read(io.BytesIO(base64.b64decode(point["wav"])), dtype="int16")[0]
        for point in points
    ]
    assert len({len(sound) for sound in sounds}) == 1
    original = speak(tiny, TEXT, 2)
    assert np.array_equal(sounds[0], original.pcm16())
    assert np.array_equal(
        sounds[5],
        speak(prune(tiny, PruneSpec(scope="local", amount=0.5)), TEXT, 2, timing=original).pcm16(),
    )
    assert points[5]["numbers"]["zeros"] == "50.0%"


def test_the_fader_shows_figures_of_the_same_voice_speaker_text_and_delivery_alone(
    request_, tiny, monkeypatch
):
    monkeypatch.setattr(evidence, "_points", Bounded(400, lambda _: 1))
    monkeypatch.setattr(
        evidence, "spoken_language", lambda voice: "de"
    )  # so that the visitor's own text is measured

    def shown(request, token=None):
        *_, last = evidence.fader_steps(request, token)
        return [point["numbers"].get("duration ×") for point in last["fader"]["points"]]

    for _ in evidence.curve_steps(request_, "hf_mine", 2, 0.3, 0.3, ["rhythm"]):
        pass
    found = shown(request_, "hf_mine")
    assert found[0] == "1.00"
    assert found[3] is not None
    assert found[5] is None, "was not measured"
    assert not any(shown(request_)), "measured with another visitor's token"
    for change in (
        {"text": "you hi"},
        {"seed": 3},
        {"delivery": Delivery(speaking_rate=0.9)},
        {"reference": "someone/other"},
    ):
        assert not any(shown(dataclasses.replace(request_, **change), "hf_mine")), change
    specs = [at_amount(request_.spec, 0.3)]
    assert list(evidence._measured_points(request_, "hf_mine", tiny, specs)) == [
        at_amount(request_.spec, 0.0),
        *specs,
    ]
    assert (
        evidence._measured_points(request_, "hf_mine", dataclasses.replace(tiny, speaker=1), specs)
        == {}
    ), "of another speaker"


def test_a_long_text_is_refused_by_the_fader(request_, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_FADER_SECONDS", 0.0)
    with pytest.raises(InputError, match="shorten the text"):
        list(evidence.fader_steps(request_, None))


def test_empty_values_are_drawn_as_nothing():
    assert {**curve.curve_value([], {}, "hint"), "axis": ""} == {
        "series": [],
        "metrics": {},
        "hint": "hint",
        "axis": "",
    }
    assert fader.fader_value([], [], [])["points"] == []
