"""The sensitivity's picture, from a tiny voice."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest
from vits_prune.ui.heat import EMPTY, heat_value
from vits_prune.ui.sensitivity import sensitivity_steps

from tests.ui.test_evidence import request_  # noqa: F401 (a fixture)
from vits_prune import PARTS, PruneSpec, measure_sparsity, prune
from vits_prune.errors import InputError
from vits_prune.study.evaluation import Settings, evaluate_against, prepare_reference
from vits_prune.study.knee import compared

FAMILIES = ["rhythm", "loudness"]


def shown(request, amounts=(0.8, 0.4)):
    return [
        step
        for step in sensitivity_steps(request, None, 2, list(amounts), FAMILIES)
        if "heat" in step
    ]


def test_cell_after_cell_each_part_alone(request_, tiny):  # noqa: F811
    steps = shown(request_)
    cells = [
        sum(cell is not None for row in step["heat"]["rows"] for cell in row["cells"])
        for step in steps
    ]
    assert cells == list(range(1, 1 + 2 * len(PARTS)))
    value = steps[-1]["heat"]
    json.dumps(value)
    assert (value["scope"], value["amounts"]) == ("local", [0.4, 0.8])
    assert [row["part"] for row in value["rows"]] == list(PARTS)
    assert "Press a cell" in steps[-1]["status"]
    table = pd.read_csv(steps[-1]["heat_csv"].value["path"])
    alone = prune(tiny, PruneSpec(scope="local", amount=0.8, parts=("flow",)))
    row = table[(table["part"] == "flow") & (table["amount"] == 0.8)].iloc[0]
    assert row["sparsity"] == pytest.approx(measure_sparsity(alone).overall)
    assert row["lufs_difference"] == pytest.approx(
        value["rows"][list(PARTS).index("flow")]["cells"][1]["changes"]["lufs"]
    )
    decoder = value["rows"][list(PARTS).index("decoder")]["cells"]
    assert [cell["changes"]["duration_ratio"] for cell in decoder] == [
        0.0,
        0.0,
    ]  # the decoder has no say in the rhythm


def test_a_part_that_a_method_protects_is_left_out(request_):  # noqa: F811
    request = dataclasses.replace(request_, spec=PruneSpec("activation", texts=("hi there",)))
    value = shown(request, (0.4,))[-1]["heat"]
    assert [row["part"] for row in value["rows"]] == ["text_encoder", "flow", "decoder"]
    assert "left out where the method protects it" in value["hint"]
    assert "duration predictor" in value["hint"]
    assert (
        value["rows"][1]["cells"][0]["spec"]
        == PruneSpec("activation", amount=0.4, parts=("flow",), texts=("hi there",)).to_dict()
    )


def test_a_cell_is_the_change_that_a_limit_is_held_against(tiny):
    reference = prepare_reference(
        tiny, ["the birch canoe slid"], Settings(metrics=("loudness", "closeness"), noise_seeds=1)
    )
    spec = PruneSpec(amount=0.7, parts=("decoder",))
    evaluation = evaluate_against(reference, prune(tiny, spec))
    value = heat_value([(spec, evaluation)], [0.3, 0.7], "hint")
    (row,) = value["rows"]
    assert row["cells"][0] is None
    for name, figure in evaluation.figures.items():
        assert row["cells"][1]["changes"][name] == compared(figure).value
        assert row["cells"][1]["verdicts"][name] == figure.verdict
    assert value["metrics"]["mcd_db"]["distance"]
    assert value["metrics"]["lufs"]["title"].endswith("change from the original")


def test_nothing_measured_is_drawn_as_nothing():
    assert heat_value([], [0.3], "hint")["rows"] == EMPTY["rows"] == []


def test_no_amount_means_the_usual_ones_and_no_measure_is_refused(request_):  # noqa: F811
    with pytest.raises(InputError, match="at least one measure"):
        next(sensitivity_steps(request_, None, 2, [], []))
