"""Sweeps, knees and sensitivities of pruning with more than a method, a scope and an amount."""

from __future__ import annotations

import json

import pytest

from vits_prune import PARTS, InputError, PruneSpec
from vits_prune.cli.main import main
from vits_prune.pruning.shape import Shape
from vits_prune.study.evaluation import Settings, prepare_reference
from vits_prune.study.knee import Limit, find_knee, prune_until_knee
from vits_prune.study.sweep_grid import Grid, Point, layer_points, part_points

TEXTS = ["the birch canoe slid", "on the smooth planks"]
CHEAP = Settings(metrics=("rhythm",), noise_seeds=0)
BASE = PruneSpec(protect=("flow",), floor=0.1, seed=3)


def test_a_column_of_options():
    assert "options" not in Point(PruneSpec(amount=0.5)).columns()
    options = Point(BASE).columns()["options"]
    assert json.loads(options) == {"protect": ["flow"], "floor": 0.1, "seed": 3}
    assert options == Point(PruneSpec.from_json(BASE.to_json())).columns()["options"]
    texts = Point(PruneSpec(texts=("a long text",) * 100)).options()
    assert "a long text" not in texts
    assert len(texts) < 100
    assert texts != Point(PruneSpec(texts=("another",))).options()


def test_a_base_for_all_points():
    specs = Grid(methods=("magnitude", "random"), amounts=(0.2, 0.4), base=BASE).specs()
    assert len(specs) == 4
    assert {(spec.protect, spec.floor, spec.seed, spec.parts) for spec in specs} == {
        (("flow",), 0.1, 3, PARTS)
    }
    assert (
        Grid(amounts=(0.5,), base=PruneSpec(pattern="2:4", amount=0.5)).specs()[0].pattern == "2:4"
    )
    for base in (
        PruneSpec(method="structured", shape=Shape(decoder_width=0.5)),
        PruneSpec(amounts=(0.1, 0.3)),
        {"floor": 1},
    ):
        with pytest.raises(InputError):
            Grid(base=base)
    with pytest.raises(InputError, match="pattern"):
        Grid(base=PruneSpec(pattern="2:4", amount=0.5))


def test_structured_and_second_order_from_the_command_line(tiny_folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    line = [
        "sweep",
        "--voice",
        str(tiny_folder),
        "--text-file",
        str(tmp_path / "texts.txt"),
        "--metrics",
        "rhythm",
        "--noise-seeds",
        "0",
    ]
    methods = [
        "--method",
        "structured",
        "second_order",
        "--amount",
        "0,0.25",
        "--prune-seed",
        "2",
        "--parts",
        "text_encoder+decoder",
    ]
    assert main([*line, *methods, "--out", str(tmp_path / "sweep")]) == 0
    shown = capsys.readouterr().out
    assert "4 points" in shown
    assert "second_order" in shown
    assert "sensitivity" not in shown
    assert (
        main(
            [
                *line,
                "--pattern",
                "2:4",
                "--protect",
                "duration_predictor",
                "--parts",
                "flow",
                "--out",
                str(tmp_path / "pattern"),
            ]
        )
        == 0
    )
    assert '"pattern":"2:4"' in (tmp_path / "pattern" / "sweep.csv").read_text().replace('""', '"')
    assert main([*line, "--steps", "0.1,0.2", "--out", str(tmp_path / "x")]) == 2
    assert "amount of its own" in capsys.readouterr().err


def test_a_knee_with_options(tiny):
    limits = [Limit("duration_drift", 1e6)]
    knee = find_knee(
        tiny,
        limits=limits,
        texts=TEXTS,
        base=PruneSpec(protect=("duration_predictor",)),
        method="random",
    )
    assert knee.spec.protect == ("duration_predictor",)
    assert knee.spec.method == "random"
    assert (
        0.5 < knee.amount < 0.99
    )  # not all that is wished can be taken from what is not protected: that breaks the limits
    with pytest.raises(InputError, match="pattern"):
        find_knee(tiny, limits=limits, texts=TEXTS, base=PruneSpec(pattern="2:4", amount=0.5))
    with pytest.raises(InputError, match="no layer"):  # every amount is refused: the reason is told
        find_knee(
            tiny, limits=limits, texts=TEXTS, base=PruneSpec(protect=("mouth",)), method="random"
        )


def test_sensitivity_of_what_a_method_protects(tiny):
    points = part_points((0.5,), method="second_order")
    assert [point.spec.protect for point in points] == [None, (), None, None]
    assert [point.spec.parts for point in part_points((0.5,), method="structured")] == [
        ("text_encoder",),
        ("flow",),
        ("decoder",),
    ]
    (one,) = layer_points(tiny, (0.5,), ["decoder.conv_post"], method="activation")
    pruned = one.apply(tiny)
    assert (pruned.model.get_parameter("decoder.conv_post.weight") == 0).float().mean() >= 0.4
    with pytest.raises(InputError, match="alone"):
        layer_points(tiny, (0.5,), method="structured")
    with pytest.raises(InputError, match="alone"):
        Point(PruneSpec(method="structured"), "decoder.conv_pre").apply(tiny)


def test_gradual_pruning_stops_where_a_limit_breaks(tiny):
    reference, kept = prepare_reference(tiny, TEXTS, CHEAP), []
    spec = PruneSpec(amounts=(0.05, 0.5, 0.95), amount=0.95)
    loose = prune_until_knee(tiny, spec, reference, [Limit("duration_drift", 1e6)])
    drifts = [step.decisions[0].interval.value for step in loose.steps]
    assert loose.amount == 0.95
    between = (drifts[0] + drifts[1]) / 2
    shares = []
    found = prune_until_knee(
        tiny, spec, reference, [Limit("duration_drift", between)],
        on_voice=lambda number, _: kept.append(number), progress=lambda _, share: shares.append(share),
    )  # fmt: skip
    assert ([step.kept for step in found.steps], found.amount, kept) == (
        [True, False],
        0.05,
        [1, 2],
    )
    assert found.voice.recipe["pruned"][-1]["amount"] == 0.05
    assert shares[-1] == 1.0
    nothing = prune_until_knee(tiny, spec, reference, [Limit("duration_drift", 0.0)])
    assert (nothing.voice, nothing.amount, len(nothing.steps)) == (None, 0.0, 1)
    for wrong in ((PruneSpec(), [Limit("duration_drift", 1.0)]), (spec, [Limit("lufs", 1.0)])):
        with pytest.raises(InputError):
            prune_until_knee(tiny, wrong[0], reference, wrong[1])
