"""The curve, the sensitivity, the knee and the fader, from a tiny voice."""

from __future__ import annotations

import base64
import dataclasses
import io
import json

import pandas as pd
import pytest
import soundfile

from tests.nearly import nearly
from vits_prune import PARTS, InputError, PruneSpec, measure_sparsity, prune, speak
from vits_prune.progress import Progress
from vits_prune.pruning.spec import in_words
from vits_prune.studio import evidence
from vits_prune.studio.evidence import CurvePoint, Points
from vits_prune.studio.plots import curve_value, heat_value, tried_table
from vits_prune.studio.request import at_amount
from vits_prune.study.evaluation import Settings, evaluate, evaluate_against, prepare_reference
from vits_prune.study.knee import LIMITS, RESOLUTION, Limit, compared
from vits_prune.synthesis.speak import Delivery
from vits_prune.ui.tabs import curve

TEXT = "hi there you"
FAMILIES = ["rhythm", "loudness"]
TEXTS = ("hi there",)


def curves(request, step, last, families=FAMILIES, token=None, told=None):
    progress = Progress(lambda message, _: told.append(message)) if told is not None else Progress()
    wanted = evidence.amount_row(request.spec, step, last)
    return list(evidence.measure_points(request, token, wanted, 2, families, progress))


def cells(request, amounts, families=FAMILIES):
    wanted = evidence.parts_alone(request.spec, amounts)
    return list(evidence.measure_points(request, None, wanted, 2, families))


def test_the_curve_grows_point_by_point(request_):
    found = curves(request_, 0.2, 0.4)
    assert [len(one.points) for one in found] == [1, 2, 3]
    assert [one.complete for one in found] == [False, False, True]
    value = curve_value(found[-1])
    json.dumps(value)
    points = value["series"][0]["points"]
    assert [point["amount"] for point in points] == [0.0, 0.2, 0.4]
    assert points[0]["figures"]["duration_ratio"][0] == 1.0
    assert points[2]["sparsity"] == pytest.approx(0.4, abs=0.01)
    low, high = value["metrics"]["lufs"]["floor"]
    assert low <= points[0]["figures"]["lufs"][0] <= high
    assert curve_value(curves(request_, 0.2, 0.4)[-1]) == value


@pytest.mark.parametrize("method", ["second_order", "structured"])
def test_the_curve_of_a_calibrated_method(request_, method):
    floor = 0.3 if method == "second_order" else 0.0
    spec, told = PruneSpec(method, amount=0.3, texts=TEXTS, floor=floor), []
    request = request_.at(spec)
    value = curve_value(curves(request, 0.4, 0.8, ["rhythm"], told=told)[-1])
    (series,) = value["series"]
    assert series["name"] == in_words(spec, amount=False)
    assert [PruneSpec.from_dict(point["spec"]) for point in series["points"]] == [
        at_amount(spec, amount)
        for amount in (0.0, 0.4, 0.8)
        if method == "structured" or amount < 0.8
    ], "0.8 cannot be reached above a floor of 0.3"
    assert ("gone" in value["axis"]) == (method == "structured")
    assert series["points"][1]["sparsity"] > 0.1
    second = f"point 2 of {len(series['points'])}, {in_words(at_amount(spec, 0.4))}: "
    assert any(message.startswith(second) for message in told)
    if method == "structured":
        points = evidence.fader_renditions(request, None)["points"]
        assert [point["amount"] for point in points] == list(evidence.FEWER_AMOUNTS)
        assert "zeros or gone" in points[1]["numbers"]


def test_no_measure_is_refused(request_):
    with pytest.raises(InputError, match="at least one measure"):
        curves(request_, 0.2, 0.4, [])
    with pytest.raises(InputError, match="at least one measure"):
        cells(request_, [0.3], [])


# Sensitivity


def test_cell_after_cell_each_part_alone(request_, tiny):
    amounts = evidence.sensitivity_amounts([0.8, 0.4])
    assert amounts == [0.4, 0.8]
    assert len(evidence.sensitivity_amounts([])) > 1, "none chosen means the usual ones"
    found = cells(request_, amounts)
    assert [len(one.points) for one in found] == list(range(1, 1 + 2 * len(PARTS)))
    value = heat_value(found[-1], amounts)
    json.dumps(value)
    assert (value["scope"], value["amounts"]) == ("local", [0.4, 0.8])
    assert [row["part"] for row in value["rows"]] == list(PARTS)
    table = found[-1].table(parts="part")
    alone = prune(tiny, PruneSpec(scope="local", amount=0.8, parts=("flow",)))
    row = table[(table["part"] == "flow") & (table["amount"] == 0.8)].iloc[0]
    assert row["sparsity"] == pytest.approx(measure_sparsity(alone).overall)
    flow, decoder = (value["rows"][list(PARTS).index(part)]["cells"] for part in PARTS[2:])
    assert row["lufs_difference"] == pytest.approx(flow[1]["changes"]["lufs"])
    # The decoder has no say in the rhythm.
    assert [cell["changes"]["duration_ratio"] for cell in decoder] == [0.0, 0.0]


def test_a_part_that_a_method_protects_is_left_out(request_):
    request = request_.at(PruneSpec("activation", texts=TEXTS))
    *_, found = cells(request, [0.4])
    value = heat_value(found, [0.4])
    assert [row["part"] for row in value["rows"]] == ["text_encoder", "flow", "decoder"]
    assert "left out where the method protects it" in value["hint"]
    assert "duration predictor" in value["hint"]
    expected = PruneSpec("activation", amount=0.4, parts=("flow",), texts=TEXTS)
    assert value["rows"][1]["cells"][0]["spec"] == expected.to_dict()


def test_a_cell_is_the_change_that_a_limit_is_held_against(tiny):
    settings = Settings(metrics=("loudness", "closeness"), noise_seeds=1)
    reference = prepare_reference(tiny, ["the birch canoe slid"], settings)
    spec = PruneSpec(amount=0.7, parts=("decoder",))
    found = evaluate_against(reference, prune(tiny, spec))
    value = heat_value(Points((CurvePoint(spec, 0.5, found),), 1, "note"), [0.3, 0.7])
    (row,) = value["rows"]
    assert row["cells"][0] is None
    for name, figure in found.figures.items():
        assert row["cells"][1]["changes"][name] == compared(figure).value
        assert row["cells"][1]["verdicts"][name] == figure.verdict
    assert value["metrics"]["mcd_db"]["distance"]
    assert value["metrics"]["lufs"]["title"].endswith("change from the original")


# The knee


def test_the_knee_is_bisected_within_the_limits(request_, tiny):
    """Loudness stands in for the words and the opinions, which a tiny voice has not."""
    told = []
    progress = Progress(lambda message, _: told.append(message))
    found, note = evidence.find_knee(request_, None, 2, [Limit("lufs", 0.5)], progress)
    assert any("amount 0.50" in message for message in told)
    assert note.startswith("2 held-out")
    table = tried_table(found.rows())
    assert len(table) <= 7
    assert [words.split(",")[0] for words in table["limit is"]] == [
        "kept" if float(amount) <= found.amount else "broken" for amount in table["amount"]
    ]
    texts = evidence.measuring_texts(tiny, TEXT, 2)[0]
    settings = Settings(seed=2, metrics=("loudness",), noise_seeds=0)
    for amount, kept in ((found.amount, True), (found.amount + RESOLUTION, False)):
        pruned = prune(tiny, PruneSpec(scope="local", amount=round(amount, 2)))
        figure = evaluate(tiny, pruned, texts, settings).figures["lufs"]
        assert (abs(figure.difference.value) <= 0.5) == kept


def test_the_knee_is_shown(request_, monkeypatch):
    limits = lambda metric, change: Limit("lufs", abs(change))  # noqa: E731
    monkeypatch.setattr(curve, "Limit", limits)
    values = {"voice": "someone/tiny", "text": TEXT, "curve_texts": 2, "knee_dnsmos": None}
    *_, shown = curve.find_knee({**values, "knee_cer": 50.0}, None, Progress())
    knee = shown["status"].split()[-1].rstrip(".")
    assert f"**Knee: amount {knee}** (magnitude (L1), global, 2 held-out" in shown["knee_words"]
    assert "--strict" not in shown["knee_words"]
    kept = [row[4].startswith("kept") for row in shown["knee_table"].value["data"]]
    assert list(pd.read_csv(shown["knee_csv"].value["path"])["kept"]) == kept


def test_the_knee_needs_a_limit_that_can_be_measured(request_):
    with pytest.raises(InputError, match="at least one limit"):
        evidence.find_knee(request_, None, 2, [])


def test_the_knee_of_the_curve_is_before_the_first_lost_limit():
    rows = [
        {"cer_difference": cer, "dnsmos_ovrl_difference": dnsmos}
        for cer, dnsmos in ((0, 0), (0.02, -0.05), (0.0, -0.2), (0.0, 0.0))
    ]

    class Found:
        def __init__(self, row):
            self.figures, self.to_row = dict.fromkeys(("cer", "dnsmos_ovrl")), lambda: row

    points = tuple(
        CurvePoint(PruneSpec(amount=i / 10), i / 20, Found(row)) for i, row in enumerate(rows)
    )
    assert Points(points, 4, "").knee == 0.05
    assert Points(points[:2], 4, "").knee is None
    assert [limit.metric for limit in LIMITS] == ["cer", "dnsmos_ovrl"]


# The fader


def test_the_fader_holds_aligned_renditions(request_, tiny):
    points = evidence.fader_renditions(request_, None)["points"]
    assert [point["amount"] for point in points] == list(evidence.FADER_AMOUNTS)
    sounds = [
        soundfile.read(io.BytesIO(base64.b64decode(point["wav"])), dtype="int16")[0]
        for point in points
    ]
    assert len({len(sound) for sound in sounds}) == 1
    original = speak(tiny, TEXT, 2)
    half = prune(tiny, PruneSpec(scope="local", amount=0.5))
    assert nearly(sounds[0], original.pcm16())
    assert nearly(sounds[5], speak(half, TEXT, 2, timing=original).pcm16())
    assert points[5]["numbers"]["zeros"] == "50.0%"


def test_the_fader_shows_figures_of_the_same_voice_speaker_text_and_delivery_alone(
    request_, tiny, monkeypatch
):
    # So that the visitor's own text is measured.
    monkeypatch.setattr(evidence, "spoken_language", lambda voice: "de")
    request_ = dataclasses.replace(request_, reference="someone/measured")

    def shown(request, token=None):
        points = evidence.fader_renditions(request, token)["points"]
        return [point["numbers"].get("duration ×") for point in points]

    curves(request_, 0.3, 0.3, ["rhythm"], token="hf_mine")
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
    known = evidence.measured_before(request_, "hf_mine", tiny, specs)
    assert list(known) == [at_amount(request_.spec, 0.0), *specs]
    other = dataclasses.replace(tiny, speaker=1)
    assert evidence.measured_before(request_, "hf_mine", other, specs) == {}


def test_a_long_text_is_refused_by_the_fader(request_, monkeypatch):
    monkeypatch.setattr(evidence, "MAX_FADER_SECONDS", 0.0)
    with pytest.raises(InputError, match="shorten the text"):
        evidence.fader_renditions(request_, None)
