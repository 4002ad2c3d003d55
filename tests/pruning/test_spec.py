"""PruneSpec: a value that survives JSON, and a sentence for everything else."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from vits_prune import PARTS, InputError, PruneSpec
from vits_prune.pruning.registry import METHODS, SCOPES

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
    assert PruneSpec(parts=("decoder", "text_encoder", "decoder")).parts == ("text_encoder", "decoder")
    assert PruneSpec(parts={"flow", "decoder"}) == PruneSpec(parts=["flow", "decoder"])
    assert PruneSpec(parts="flow").parts == ("flow",)
    assert PruneSpec(amount=np.float64(0.5)) == PruneSpec(amount=0.5)
    assert isinstance(PruneSpec(amount=0).amount, float)


@pytest.mark.parametrize(
    "amount", [math.nan, math.inf, -math.inf, -0.1, 1.0, 0.991, "x", "0.3", "a\nb", True, None, [0.3], 10**400, 1j], ids=repr
)
def test_bad_amounts(amount):
    refused(lambda: PruneSpec(amount=amount))


@pytest.mark.parametrize("parts", [(), [], "", None, 3, ("flow", "vocoder"), ["flow", None], [["flow"]], "all", {"flow": 1}], ids=repr)
def test_bad_parts(parts):
    refused(lambda: PruneSpec(parts=parts))


@pytest.mark.parametrize("field", ["method", "scope"])
@pytest.mark.parametrize("value", ["", "L7", None, 3, ["global"], {"a": 1}, "a\nb", "x" * 1000], ids=lambda value: repr(value)[:20])
def test_bad_methods_and_scopes(field, value):
    refused(lambda: PruneSpec(**{field: value}))


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "3", "[]", '"global"', "[" * 100_000, '{"amount": NaN}', '{"amount": 1e999}', '{"amount": 1' + "0" * 400 + "}",
        '{"amount": 0.3, "seeds": 1}', '{"method": ["magnitude"]}', '{"parts": [{}]}', '{"parts": []}', '{"scope": {}}', b"\xff",
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
