"""PruneSpec: a value that survives JSON, and a sentence for everything else."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from vits_prune import PARTS, InputError, PruneSpec
from vits_prune.pruning import Shape
from vits_prune.pruning.spec import IMPORTANCES, METHODS, SCHEDULES, SCOPES, in_words

SPECS = [
    PruneSpec(),
    PruneSpec(scope="local", amount=0.99, parts=("flow",)),
    PruneSpec(amount=0),
    PruneSpec(amount=0.1, parts=["decoder", "text_encoder"]),
]


def refused(make):
    with pytest.raises(InputError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 250


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_the_same_after_json(spec):
    assert PruneSpec.from_json(spec.to_json()) == spec
    assert PruneSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert set(spec.to_dict()) == {"method", "scope", "amount", "parts"}


def test_a_value():
    assert len({*SPECS, *(PruneSpec.from_json(spec.to_json()) for spec in SPECS)}) == len(SPECS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPECS[0].amount = 0.5
    assert PruneSpec() == PruneSpec(method="magnitude", scope="global", amount=0.3, parts=PARTS)


def test_fields_are_put_in_order():
    assert PruneSpec(parts=("decoder", "text_encoder", "decoder")).parts == (
        "text_encoder",
        "decoder",
    )
    assert PruneSpec(parts={"flow", "decoder"}) == PruneSpec(parts=["flow", "decoder"])
    assert PruneSpec(parts="flow").parts == ("flow",)
    assert PruneSpec(amount=np.float64(0.5)) == PruneSpec(amount=0.5)
    assert isinstance(PruneSpec(amount=0).amount, float)


@pytest.mark.parametrize(
    "amount",
    [
        math.nan,
        math.inf,
        -math.inf,
        -0.1,
        1.0,
        0.991,
        "x",
        "0.3",
        "a\nb",
        True,
        None,
        [0.3],
        10**400,
        1j,
    ],
    ids=repr,
)
def test_bad_amounts(amount):
    refused(lambda: PruneSpec(amount=amount))


@pytest.mark.parametrize(
    "parts",
    [(), [], "", None, 3, ("flow", "vocoder"), ["flow", None], [["flow"]], "all", {"flow": 1}],
    ids=repr,
)
def test_bad_parts(parts):
    refused(lambda: PruneSpec(parts=parts))


@pytest.mark.parametrize("field", ["method", "scope"])
@pytest.mark.parametrize(
    "value",
    ["", "L7", None, 3, ["global"], {"a": 1}, "a\nb", "x" * 1000],
    ids=lambda value: repr(value)[:20],
)
def test_bad_methods_and_scopes(field, value):
    refused(lambda: PruneSpec(**{field: value}))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "3", "[]", '"global"', "[" * 100_000, '{"amount": NaN}',
        '{"amount": 1e999}', '{"amount": 1' + "0" * 400 + "}",
        '{"amount": 0.3, "seeds": 1}', '{"method": ["magnitude"]}', '{"parts": [{}]}',
        '{"parts": []}', '{"scope": {}}', b"\xff",
    ],
    ids=lambda text: ascii(text)[:30],
)  # fmt: skip
def test_bad_json(text):
    refused(lambda: PruneSpec.from_json(text))


def test_fields_left_out_have_their_defaults():
    assert PruneSpec.from_json("{}") == PruneSpec()
    assert PruneSpec.from_json('{"amount": 0.5}') == PruneSpec(amount=0.5)


def test_what_there_is_to_choose_from():
    assert "magnitude" in METHODS
    assert set(SCOPES) == {"global", "local", "sensitivity"}
    for scope in SCOPES:
        assert PruneSpec(scope=scope).scope == scope


OPTIONS = [
    {"protect": ()}, {"protect": ("decoder.conv_post", "flow.flows.*.conv_pre")}, {"floor": 0.1},
    {"pattern": "2:4", "amount": 0.5},
    {"steps": 3}, {"steps": 3, "schedule": "linear"}, {"schedule": "linear"}, {"amounts": (0.1,
    0.3)}, {"seed": 7},
    {"texts": ("one sentence", "ein zweiter Satz")}, {"method": "structured",
    "shape": Shape(decoder_width=0.5, branches=2)},
    {"method": "structured", "importance": "second_order"},
    {"method": "second_order", "scope": "sensitivity", "steps": 4, "floor": 0.05, "seed": 1,
    "texts": ("x",)},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_field_after_json(options):
    spec = PruneSpec(**options)
    assert PruneSpec.from_json(spec.to_json()) == spec
    assert hash(PruneSpec.from_json(spec.to_json())) == hash(spec)
    assert list(spec.to_dict())[:4] == ["method", "scope", "amount", "parts"]
    assert set(spec.to_dict()) == {"method", "scope", "amount", "parts"} | set(options)
    for name, value in options.items():
        default = {field.name: field.default for field in dataclasses.fields(PruneSpec)}[name]
        assert PruneSpec(**{name: default}) == PruneSpec()
        assert value != default


def test_lists_are_as_good_as_tuples():
    lists = PruneSpec(protect=["decoder"], amounts=[0.1, 0.3], texts=["a"])
    assert lists == PruneSpec(protect=("decoder",), amounts=(0.1, 0.3), texts=("a",))
    assert PruneSpec(protect="decoder", texts="a sentence") == PruneSpec(
        protect=("decoder",), texts=("a sentence",)
    )
    assert PruneSpec(seed=3.0, steps=np.int64(2)) == PruneSpec(seed=3, steps=2)
    assert PruneSpec.from_dict({"method": "structured", "shape": {"flows": 1}}).shape == Shape(
        flows=1
    )
    assert PruneSpec.from_dict({"protect": None, "shape": None}) == PruneSpec()


BAD = {
    "protect": [3, (None,), ("",), ("  ",), ("x" * 201,), ("decoder",) * 1001, {"decoder": 1}, ""],
    "floor": [-0.1, 1.1, math.nan, math.inf, "0.1", True, None, [0.1]],
    "pattern": ["2", "4:2", "4:4", "0:4", "2:4:8", "a:b", "-1:4", "2:100", 24, None, " 2:4", ("2",
        "4"), "2:4\n", "x" * 500, "1:4"],
    "steps": [0, -1, 65, 1.5, math.nan, math.inf, "3", True, None, [3]],
    "schedule": ["", "square", None, 3, ["cubic"], {"a": 1}, "x" * 500],
    "amounts": [
        (0.3, 0.2, 0.3), (0.1, 0.1, 0.3), (0.1, 0.2), (0.5,), (math.nan, 0.3), (-0.1, 0.3), ("0.1",
        0.3), (True, 0.3), "0.1", 0.3, None,
        tuple(0.3 * step / 70 for step in range(71)), {"a": 1},
    ],
    "seed": [-1, 2**32, 0.5, math.nan, math.inf, "1", True, None, 10**400],
    "texts": [3, None, (3,), ("",), (" \n",), ("a" * 1001,), ("a",) * 1001, {"a"}],
    "importance": ["", "norm", None, 3, ["sensitivity"], "second_order"],
    "shape": [0.5, {"decoder_width": 0.5}, "half", Shape(decoder_width=0.5)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in BAD.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_bad_values(field, value):
    if value is None and field in ("protect", "shape"):
        return
    refused(lambda: PruneSpec(**{field: value}))
    if field != "shape" and not isinstance(value, set):
        refused(lambda: PruneSpec.from_dict({field: value}))


def test_what_does_not_go_together():
    for options in (
        {"pattern": "2:4"}, {"pattern": "2:4", "amount": 0.6}, {"pattern": "2:4", "amount": 0.5,
        "steps": 2},
        {"pattern": "2:4", "amount": 0.5, "floor": 0.1}, {"pattern": "2:4", "amount": 0.5,
        "amounts": (0.2, 0.5)},
        {"method": "structured", "pattern": "2:4", "amount": 0.5}, {"amounts": (0.1, 0.3),
        "steps": 2},
        {"method": "structured", "floor": 0.1}, {"method": "structured", "protect": ("decoder",)},
        {"method": "structured", "shape": Shape(flows=1), "steps": 2},
        {"method": "structured", "shape": Shape(flows=1), "amounts": (0.1, 0.3)},
    ):  # fmt: skip
        refused(lambda options=options: PruneSpec(**options))


@pytest.mark.parametrize(
    "shape",
    [{"decoder_width": 0}, {"decoder_width": 2}, {"flows": 0}, {"vocoder": 1}, [], 3, "half"],
    ids=str,
)
def test_bad_shapes_in_json(shape):
    refused(lambda: PruneSpec.from_dict({"method": "structured", "shape": shape}))


@pytest.mark.parametrize("amount", [0.0, 1e-6, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 5, 64])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_rise_to_the_amount(amount, steps, schedule):
    found = PruneSpec(amount=amount, steps=steps, schedule=schedule).schedule_amounts()
    assert found[-1] == amount
    assert all(before < after for before, after in itertools.pairwise(found))
    assert PruneSpec(amount=amount, amounts=found).schedule_amounts() == found
    assert len(found) <= steps
    if amount >= 0.3 and steps <= 5:
        assert len(found) == steps


def test_the_shape_of_schedules():
    linear, cubic = (
        PruneSpec(amount=0.8, steps=4, schedule=schedule).schedule_amounts()
        for schedule in ("linear", "cubic")
    )
    assert linear == pytest.approx((0.2, 0.4, 0.6, 0.8))
    assert cubic == pytest.approx(
        [0.8 * (1 - (1 - step / 4) ** 3) for step in (1, 2, 3, 4)], abs=1e-6
    )
    assert PruneSpec(amount=0.8, amounts=(0.5, 0.8)).schedule_amounts() == (0.5, 0.8)


def test_what_is_protected():
    spec = PruneSpec(protect=("decoder.conv_post", "flow.flows.*.conv_pre", "duration_predictor"))
    for name in (
        "decoder.conv_post",
        "flow.flows.3.conv_pre",
        "duration_predictor.flows.2.conv_dds.0",
        "duration_predictor",
    ):
        assert spec.protects(name)
    for name in (
        "decoder.conv_pre",
        "decoder",
        "flow.flows.3.conv_post",
        "decoder.conv_posterior",
        "flow.conv_pre",
    ):
        assert not spec.protects(name)
    assert not PruneSpec().protected
    assert PruneSpec("second_order").protects("duration_predictor.conv_pre")
    assert not PruneSpec("second_order", protect=()).protected


def test_what_has_no_effect_is_as_in_the_default():
    shape = Shape(decoder_width=0.5)
    plain = PruneSpec("structured", shape=shape)
    assert PruneSpec("structured", "local", 0.7, ("decoder",), shape=shape) == plain
    assert hash(
        PruneSpec.from_dict({"method": "structured", "amount": 0.5, "shape": shape.to_dict()})
    ) == hash(plain)
    assert plain.amount == PruneSpec().amount
    assert dataclasses.replace(plain, shape=None, amount=0.2).amount == 0.2


def test_specs_written_before_there_was_an_importance():
    spec = PruneSpec.from_json(
        '{"method": "structured", "scope": "global", "amount": 0.5, "parts": ["decoder"]}'
    )
    assert spec.importance == "sensitivity"
    assert "importance" not in spec.to_dict()


def test_arithmetic_is_weighed_where_damage_is_measured():
    PruneSpec("second_order", "sensitivity", 0.5, cost="macs")
    PruneSpec("activation", "global", 0.5, cost="macs")
    for wrong in (
        {},
        {"method": "structured"},
        {"method": "second_order", "scope": "local"},
        {"method": "second_order", "amount": 0.5, "pattern": "2:4"},
    ):
        with pytest.raises(InputError, match="give cost weights"):
            PruneSpec(**wrong, cost="macs")


def test_an_importance_is_for_a_structured_method():
    for name in IMPORTANCES:
        assert PruneSpec("structured", importance=name).importance == name
    with pytest.raises(InputError, match="structured"):
        PruneSpec("magnitude", importance="weight_norm")


def test_a_pattern_leaves_alone_what_it_cannot_group():
    assert PruneSpec(amount=0.5, pattern="2:4").protects("duration_predictor.conv_pre")
    assert PruneSpec("random", amount=0.5, pattern="2:4").protected == ("duration_predictor",)
    assert not PruneSpec(amount=0.5, pattern="2:4", protect=()).protected
    assert "duration_predictor" in PruneSpec("activation", amount=0.5, pattern="2:4").protected


def test_in_words():
    for spec, words in (
        (PruneSpec(), "magnitude (L1), 30%, global"),
        (PruneSpec("second_order", "sensitivity", 0.75), "second order, 75%, by sensitivity"),
        (PruneSpec(amount=0.5, pattern="2:4"), "magnitude (L1), pattern 2:4"),
        (
            PruneSpec("random", "local", 0.125, ("flow", "decoder"), floor=0.05, steps=3),
            "random, 12.5%, local, flow and decoder only, floor 5%, 3 steps",
        ),
        (PruneSpec(steps=2, schedule="linear"), "magnitude (L1), 30%, global, 2 linear steps"),
        (PruneSpec("structured", importance="weight_norm"), "structured, 30%, by weight norm"),
        (
            PruneSpec("structured", shape=Shape(decoder_width=0.5, flows=2)),
            "structured, decoder width 50%, flows 2",
        ),
        (PruneSpec("structured", shape=Shape()), "structured, everything stays"),
    ):
        assert in_words(spec) == words
    assert in_words(PruneSpec(steps=3), amount=False) == "magnitude (L1), global, 3 steps"


def test_fields_describe_themselves():
    for kind in (PruneSpec, Shape):
        for field in dataclasses.fields(kind):
            assert field.metadata["help"]
    fields = {field.name: field for field in dataclasses.fields(PruneSpec)}
    assert set(fields["method"].metadata["choices"]) == set(METHODS)
    assert fields["amount"].metadata["high"] == 0.99
