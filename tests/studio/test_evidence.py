"""The curve, the sensitivity and the knee, from a tiny voice."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import re

import gradio as gr
import pandas as pd
import pytest

from vits_prune import PARTS, HealPlan, InputError, PruneSpec, measure_sparsity, prune
from vits_prune.caches import Bounded
from vits_prune.measure import predictors
from vits_prune.measure.predictors import INSTALL, PREDICTORS
from vits_prune.measure.quality import METRICS, Figure, Floor, Interval
from vits_prune.progress import Progress
from vits_prune.pruning.spec import in_words
from vits_prune.studio import evidence, rows, workbench
from vits_prune.studio.evidence import CurvePoint, Points
from vits_prune.studio.plots import curve_value, heat_value, tried_rows
from vits_prune.studio.request import Order, at_amount
from vits_prune.study.comparison import PART_NAMES
from vits_prune.study.evaluation import Settings, evaluate, evaluate_against, prepare_reference
from vits_prune.study.knee import RESOLUTION, Limit, compared, usual_limits
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
    assert value["amounts"] == [0.4, 0.8]
    assert [row["name"] for row in value["rows"]] == [PART_NAMES[part] for part in PARTS]
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
    assert [row["name"] for row in value["rows"]] == ["text encoder", "flow", "decoder"]
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


def test_layer_after_layer_of_a_part(request_, tiny):
    wanted = evidence.layers_alone(request_, None, "text_encoder", [0.5])
    names = [one.layer for one in wanted]
    assert len(names) == len(set(names)) > 3
    *_, found = evidence.measure_points(request_, None, wanted[:2], 2, ["loudness"])
    value = heat_value(found, [0.5])
    assert [row["name"] for row in value["rows"]] == names[:2]
    assert not any(row["cells"][0]["spec"] for row in value["rows"]), "the stage cannot do it"
    assert list(found.table()["layer"]) == names[:2]
    alone = measure_sparsity(wanted[1].apply(tiny)).overall
    assert found.points[1].sparsity == pytest.approx(alone)


def test_a_healed_voice_is_measured_and_not_mixed_up_with_the_pruned_one(request_, tiny):
    order = Order(request_, HealPlan(), 2, "")
    healed = dataclasses.replace(request_, healed=order.key)
    with pytest.raises(InputError, match="press Heal again"):
        workbench.bench.pruned(healed)
    workbench.bench.keep_healed(order.key, tiny)

    def measured(request):
        *_, found = evidence.measure_points(request, None, [request.spec], 2, ["loudness"])
        return found.points[0].sparsity

    assert measured(request_) > 0
    assert measured(healed) == 0, "the voice that stands for the healed one has no zeros"
    assert measured(request_) > 0
    assert workbench.bench.pruned(request_) is not tiny
    row = rows.row_of(healed)
    assert row is not rows.row_of(request_)
    assert row.amounts == ()


# The knee


def test_the_knee_is_bisected_within_the_limits(request_, tiny):
    """Loudness stands in for the words and the opinions, which a tiny voice has not."""
    told = []
    progress = Progress(lambda message, _: told.append(message))
    found, note = evidence.find_knee(request_, None, 2, [Limit("lufs", 0.5)], progress)
    assert any("amount 0.50" in message for message in told)
    assert note.startswith("2 held-out")
    tried = tried_rows(found.rows())
    assert len(tried) <= 7
    assert [row[4].split(",")[0] for row in tried] == [
        "kept" if float(row[0].rstrip("%")) <= 100 * found.amount else "broken" for row in tried
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
    values = {"voice": "someone/tiny", "text": TEXT, "curve_texts": 2}
    values |= {"knee_naturalness": None, "knee_closeness": None}
    *_, shown = curve.find_knee({**values, "knee_cer": 50.0}, None, Progress())
    knee = shown["status"].split()[-1].rstrip(".")
    assert f"**Knee: {knee}** (magnitude (L1), global, 2 held-out" in shown["knee_words"]
    assert "--strict" not in shown["knee_words"]
    assert "Signature: `texts:2." in shown["knee_words"]
    last = re.findall(r"<td>(kept|broken)[^<]*</td></tr>", shown["knee"])
    kept = [word == "kept" for word in last]
    assert list(pd.read_csv(shown["knee_csv"].value["path"])["kept"]) == kept


def test_the_knee_needs_a_limit_that_can_be_measured(request_):
    with pytest.raises(InputError, match="at least one limit"):
        evidence.find_knee(request_, None, 2, [])


def curve_of(rows, tiny):
    """Points whose figures have these changes."""
    points = []
    for i, row in enumerate(rows):
        figures = {name: figure(name, change) for name, change in row.items()}
        settings = Settings(metrics=("intelligibility", "naturalness", "closeness"), noise_seeds=1)
        found = dataclasses.replace(measured(tiny), settings=settings, figures=figures)
        points.append(CurvePoint(PruneSpec(amount=i / 10), i / 20, found))
    return Points(tuple(points), len(points), "2 sentences")


def figure(name, change):
    known = Interval(change, change, change, 5)
    return Figure(METRICS[name], None, known, known, Floor(4.7, 4.7, (4.7,)), 0.1, "worse")


@functools.lru_cache(maxsize=1)
def measured(tiny):
    """An Evaluation, whose figures the tests replace."""
    return evaluate(tiny, tiny, TEXTS, Settings(metrics=("loudness",), noise_seeds=0))


def test_the_knee_of_the_curve_is_before_the_first_lost_limit(tiny):
    rows = [
        {"cer": cer, "dnsmos_ovrl": dnsmos}
        for cer, dnsmos in ((0, 0), (0.02, -0.05), (0.0, -0.2), (0.0, 0.0))
    ]
    assert curve_of(rows, tiny).knee == 0.05
    assert curve_of(rows[:2], tiny).knee is None
    hint = curve_value(curve_of(rows, tiny))["hint"]
    lost = "2 points more character errors and 0.1 less DNSMOS, overall"
    assert hint.startswith(f"Knee: the last point with at most {lost}, at 5%. Measured on 2 sent")
    assert "DNSMOS judges a voice alone; it was trained on noisy calls" in hint
    assert "Distill-MOS" not in hint


def test_the_knee_of_the_curve_is_by_the_strictest_predictors(tiny):
    rows = [
        {"cer": 0.0, "distillmos": opinion, "dnsmos_ovrl": 0.0, "visqol": closeness}
        for opinion, closeness in ((0, 0.1), (-0.05, -0.2), (-0.05, -0.3), (-0.2, -0.3))
    ]
    found = curve_of(rows, tiny)
    assert found.knee == 0.05, "ViSQOL is more than 0.25 below another seed"
    value = curve_value(found)
    assert "0.1 less Distill-MOS and 0.25 less ViSQOL than another seed" in value["hint"]
    assert "Distill-MOS judges a voice alone; it does not know the original" in value["hint"]
    del rows[2]["visqol"], rows[3]["visqol"], rows[0]["visqol"], rows[1]["visqol"]
    assert curve_of(rows, tiny).knee == 0.1


def test_a_similarity_in_the_heat_map_is_its_change_from_another_seed(tiny):
    found = curve_of([{"visqol": -0.3, "log_mel_db": 6.0}], tiny)
    value = heat_value(found, [0.0])
    assert value["metrics"]["visqol"]["title"].endswith("change from another seed of the original")
    assert not value["metrics"]["visqol"]["distance"]
    assert value["metrics"]["log_mel_db"]["distance"]


@pytest.mark.parametrize("there", [True, False])
def test_the_limits_of_the_knee_are_those_that_can_be_measured_here(there, monkeypatch):
    monkeypatch.setattr(
        predictors,
        "problem",
        lambda name: "" if there or name not in predictors.OPTIONAL else "No.",
    )
    monkeypatch.setattr(predictors.Predictor, "checked", there)
    with gr.Blocks():
        made = curve.curve_tab()
    assert made["knee_naturalness"].label.startswith("Distill-MOS" if there else "DNSMOS:")
    assert made["knee_closeness"].visible == there
    asked = []

    def find_knee(request, token, texts, limits, progress):
        asked.extend(limits)
        raise InputError("enough.")

    monkeypatch.setattr(evidence, "find_knee", find_knee)
    names = ("knee_cer", "knee_naturalness", "knee_closeness")
    values = {"voice": "someone/tiny", "text": TEXT, "curve_texts": 2}
    values |= {name: made[name].value for name in names}
    with pytest.raises(InputError, match="enough"):
        next(curve.find_knee(values, None, Progress()))
    assert tuple(asked) == usual_limits()
    values |= dict.fromkeys(names[1:])
    with pytest.raises(InputError, match="enough"):
        next(curve.find_knee(values, None, Progress()))
    assert asked[-1] == Limit("cer", 0.02)


def test_what_is_missing_is_said_with_one_line_to_install_it(request_, monkeypatch):
    version = importlib.metadata.version

    def without(package):
        if package in {one.package for one in PREDICTORS.values()} - {"speechmos"}:
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(predictors, "_loaded", Bounded(8, lambda _: 1))
    monkeypatch.setattr(importlib.metadata, "version", without)
    *_, found = curves(request_, 0.2, 0.2, ["loudness", "closeness", "speaker"])
    said = found.unmeasured
    assert said.count(INSTALL) == 1
    assert "ViSQOL is not installed: pip install" in said
    assert "Resemblyzer is not installed: see above." in said
    assert "not trained on" not in said
    value = curve_value(found)
    assert said in value["hint"]
    assert "A spectral distance judges" in value["hint"]
    assert "visqol" not in value["metrics"]
    assert found.knee is None, "no limit can be held against what was measured"


def test_notes_of_the_voice_are_said_beside_the_figures(tiny):
    found = dataclasses.replace(measured(tiny), unmeasured={"a": "No a."}, notes=("Foreign.",))
    assert evidence.gaps(found) == "No a. Foreign."
    assert Points((CurvePoint(PruneSpec(), 0.0, found),), 1, "").unmeasured == "No a. Foreign."
