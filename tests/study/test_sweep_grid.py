"""What is typed becomes the points of a sweep."""

from __future__ import annotations

import numpy as np
import pytest

from vits_prune import PARTS, InputError, PruneSpec, prune
from vits_prune.study.sweep_grid import Grid, Point, parse_amounts, parse_parts, parts_name


@pytest.mark.parametrize(
    ("typed", "amounts"),
    [
        (
            ["0:0.9:0.1"],
            (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        ),  # exactly: 3 * 0.1 is not 0.3
        (["0.1,0.3"], (0.1, 0.3)),
        (["0.5", "0.1", "0.1"], (0.1, 0.5)),
        (["0:0.25:0.1", "0.99"], (0, 0.1, 0.2, 0.99)),
        (["0.3:0.3:0.1"], (0.3,)),
    ],
)
def test_amounts(typed, amounts):
    assert parse_amounts(typed) == amounts


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "a",
        "0:1",
        "0:0.9:0",
        "0.9:0:0.1",
        "0:0.9:-0.1",
        "1",
        "-0.1",
        "nan",
        "inf",
        "0:0.9:1e-9",
        "1e999",
        "0:0.5:1e-999999",
    ],
)
def test_amounts_that_are_none(typed):
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


@pytest.mark.parametrize(
    "fields",
    [
        {"amounts": ()},
        {"amounts": (2,)},
        {"scopes": ("sideways",)},
        {"methods": ("axe",)},
        {"scopes": ()},
    ],
)
def test_a_grid_out_of_range(fields):
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
