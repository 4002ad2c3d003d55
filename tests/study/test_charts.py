"""Pictures of sweeps hold what the rows hold."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.container import ErrorbarContainer

from vits_prune import InputError
from vits_prune.study.charts import curve_figure, knee_of, save_plots, sensitivity_figure
from vits_prune.study.knee import Limit


def row(scope, amount, cer, parts="all"):
    cells = {
        "cer": cer,
        "cer_low": cer - 0.01,
        "cer_high": cer + 0.02,
        "cer_original": 0.05,
        "cer_floor_low": -0.01,
        "cer_floor_high": 0.01,
    }
    cells |= {
        "cer_difference": cer - 0.05,
        "cer_verdict": "worse" if cer > 0.2 else "no difference found",
        "wer": None,
        "lufs": -20 - amount,
    }
    cells |= {"lufs_difference": -amount, "lufs_verdict": "no difference found"}
    return {
        "voice": "v",
        "method": "magnitude",
        "scope": scope,
        "parts": parts,
        "amount": amount,
        "sparsity": amount,
        **cells,
    }


ROWS = [
    row("global", 0.6, 0.5),
    row("global", 0.0, 0.05),
    row("global", 0.3, 0.06),
    row("local", 0.0, 0.05),
    row("local", 0.3, 0.1),
]


def test_curves_with_intervals_floor_and_knee():
    figure = curve_figure(ROWS, "cer")
    (axis,) = figure.axes
    lines = [one for one in axis.containers if isinstance(one, ErrorbarContainer)]
    assert [one.get_label() for one in lines] == ["global, all", "local, all"]
    assert np.allclose(lines[0].lines[0].get_xydata(), [(0, 0.05), (30, 0.06), (60, 0.5)])
    bars = lines[0].lines[2][0].get_segments()
    assert np.allclose(bars[2], [(60, 0.49), (60, 0.52)])
    (band,) = [one for one in axis.patches if "noise floor" in one.get_label()]
    assert np.allclose((band.get_y(), band.get_height()), (0.04, 0.02))
    knees = [one for one in axis.collections if isinstance(one, PathCollection)]
    assert [tuple(one.get_offsets()[0]) for one in knees] == [(30.0, 0.06), (0.0, 0.05)]
    assert "cer within +0.02" in axis.get_title(loc="left")


def test_the_knee_of_a_curve():
    curve = sorted(ROWS[:3], key=lambda one: one["amount"])
    assert knee_of(curve, "cer")["amount"] == 0.3
    assert knee_of(curve, "cer", Limit("cer", 0.005))["amount"] == 0.0
    assert knee_of(curve, "cer", Limit("cer", 0.9)) is None
    assert knee_of(curve[2:], "cer") is None


def test_no_floor_and_no_interval_still_draw():
    bare = [{**one, "cer_low": None, "cer_high": None, "cer_floor_low": None} for one in ROWS]
    (axis,) = curve_figure(bare, "cer").axes
    assert not axis.patches
    with pytest.raises(InputError, match="not measured"):
        curve_figure(ROWS, "wer")


def test_sensitivity():
    rows = [
        row("global", amount, 0.05 + cer, part)
        for part, cer in (("flow", 0.01), ("decoder", 0.3))
        for amount in (0.3, 0.6)
    ]
    (axis,) = sensitivity_figure(rows, "cer").axes
    (image,) = axis.images
    assert np.allclose(image.get_array(), [[0.01, 0.01], [0.3, 0.3]])
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["flow", "decoder"]
    assert len(axis.lines) == 2  # a dot where a difference is claimed
    with pytest.raises(InputError):
        sensitivity_figure(rows, "wer")


def test_rows_of_several_signatures_are_not_drawn_together():
    signed = [{**one, "signature": "texts:2.ab|seeds:0"} for one in ROWS]
    curve_figure([*signed, ROWS[0]], "cer")  # a row of an old sweep has none
    other = {**ROWS[0], "signature": "texts:3.cd|seeds:0"}
    for draw in (curve_figure, sensitivity_figure):
        with pytest.raises(InputError, match=r"cannot be compared.*texts \(2\.ab and 3\.cd\)"):
            draw([*signed, other], "cer")


def test_files(tmp_path):
    written = save_plots(ROWS, tmp_path)
    assert [path.name for path in written] == [
        "curve-cer.svg",
        "curve-cer.png",
        "curve-lufs.svg",
        "curve-lufs.png",
    ]
    first = written[0].read_bytes()
    assert first.startswith(b"<?xml")
    assert written[1].read_bytes().startswith(b"\x89PNG")
    save_plots(ROWS, tmp_path)
    assert written[0].read_bytes() == first
