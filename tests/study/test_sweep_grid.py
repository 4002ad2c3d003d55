"""What is typed becomes the points of a sweep."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vits_prune import PARTS, InputError, PruneSpec, prune
from vits_prune.pruning import Shape
from vits_prune.study.sweep_grid import (
    Grid,
    Point,
    layer_points,
    parse_amounts,
    parse_parts,
    part_points,
    parts_name,
)

BASE = PruneSpec(protect=("flow",), floor=0.1, seed=3)


def test_amounts():
    for typed, amounts in (
        (["0:0.9:0.1"], (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),  # 3 * 0.1 is not 0.3
        (["0.1,0.3"], (0.1, 0.3)),
        (["0.5", "0.1", "0.1"], (0.1, 0.5)),
        (["0:0.25:0.1", "0.99"], (0, 0.1, 0.2, 0.99)),
        (["0.3:0.3:0.1"], (0.3,)),
    ):
        assert parse_amounts(typed) == amounts
    for typed in (
        *("", "a", "0:1", "0:0.9:0", "0.9:0:0.1", "0:0.9:-0.1", "1", "-0.1", "nan", "inf"),
        *("0:0.9:1e-9", "1e999", "0:0.5:1e-999999"),
    ):
        with pytest.raises(InputError):
            parse_amounts([typed])


def test_parts():
    assert parse_parts("all") == PARTS
    assert parse_parts("decoder+flow") == ("flow", "decoder")
    for group in (PARTS, ("flow", "decoder"), ("decoder",)):
        assert parse_parts(parts_name(group)) == group
    for typed in ("", "mouth", "flow+", "flow,decoder"):
        with pytest.raises(InputError):
            parse_parts(typed)


def test_a_grid_in_order():
    grid = Grid(scopes=("global", "local"), parts_groups=(PARTS, ("decoder",)), amounts=(0.5, 0))
    specs = grid.specs()
    assert len(specs) == 8
    assert specs[:4] == tuple(
        PruneSpec(scope=scope, amount=amount)
        for scope in ("global", "local")
        for amount in (0, 0.5)
    )
    assert {spec.parts for spec in specs[4:]} == {("decoder",)}
    assert [point.untouched for point in grid.points()] == [True, False] * 4
    assert (
        len(
            Grid(
                scopes=("local", "local"),
                amounts=(0.1, 0.1),
                parts_groups=(("flow", "decoder"), ("decoder", "flow")),
            ).specs()
        )
        == 1
    )


def test_a_grid_out_of_range():
    for fields in (
        *({"amounts": ()}, {"amounts": (2,)}, {"scopes": ("sideways",)}, {"methods": ("axe",)}),
        {"scopes": ()},
    ):
        with pytest.raises(InputError):
            Grid(**fields)


def test_a_point_is_a_value():
    point = Point(PruneSpec(amount=0.3, scope="local", parts=("decoder",)), "decoder.conv_pre")
    assert Point.from_dict(point.to_dict()) == point
    assert list(point.columns()) == ["method", "scope", "parts", "layer", "amount"]
    assert list(Point(point.spec).columns()) == ["method", "scope", "parts", "amount"]


def test_a_point_of_one_layer(tiny):
    spec = PruneSpec(scope="local", amount=0.5, parts=("decoder",))
    name = "decoder.conv_pre"
    one, whole = Point(spec, name).apply(tiny), prune(tiny, spec)
    changed = [
        key
        for key, tensor in one.model.named_parameters()
        if not np.array_equal(tensor, tiny.model.get_parameter(key))
    ]
    assert changed == [f"{name}.weight"]
    assert np.array_equal(
        one.model.get_parameter(changed[0]), whole.model.get_parameter(changed[0])
    )
    with pytest.raises(InputError, match="no layer"):
        Point(spec, "flow.nothing").apply(tiny)


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


def test_sensitivity_of_what_a_method_protects(tiny):
    points = part_points((0.5,), PruneSpec(method="second_order"))
    assert [point.spec.protect for point in points] == [None, (), None, None]
    assert [point.spec.parts for point in part_points((0.5,), PruneSpec(method="structured"))] == [
        ("text_encoder",),
        ("flow",),
        ("decoder",),
    ]
    (one,) = layer_points(tiny, (0.5,), ["decoder.conv_post"], PruneSpec(method="activation"))
    pruned = one.apply(tiny)
    assert (pruned.model.get_parameter("decoder.conv_post.weight") == 0).float().mean() >= 0.4
    with pytest.raises(InputError, match="alone"):
        layer_points(tiny, (0.5,), base=PruneSpec(method="structured"))
    with pytest.raises(InputError, match="alone"):
        Point(PruneSpec(method="structured"), "decoder.conv_pre").apply(tiny)
    names = [point.layer for point in layer_points(tiny, (0.2,), ["decoder.conv_pre", "flow"])]
    assert "decoder.conv_pre" in names
    assert all(name == "decoder.conv_pre" or name.startswith("flow.") for name in names)
    assert len(layer_points(tiny, (0.2,))) > len(names) > 1
    with pytest.raises(InputError, match="no layer"):
        layer_points(tiny, (0.2,), ["decoder.nothing"])


def test_a_grid_weighs_arithmetic_where_that_can_be():
    base = PruneSpec("second_order", "global", 0.5, cost="macs")
    grid = Grid(
        methods=("magnitude", "second_order"), scopes=("local", "global"), amounts=(0.5,), base=base
    )
    weighing = [spec for spec in grid.specs() if spec.cost == "macs"]
    assert len(grid.specs()) == 4
    assert [(spec.method, spec.scope) for spec in weighing] == [("second_order", "global")]
