"""Shape: a value that survives JSON, and the sizes that it makes of a voice."""

from __future__ import annotations

import json
import math

import pytest
from transformers import VitsConfig

from vits_prune import InputError
from vits_prune.pruning import Shape
from vits_prune.pruning.structured.couplings import sizes, sizes_of
from vits_prune.voices.architecture import NarrowVitsConfig, PiperVitsConfig

MMS = VitsConfig()
MEDIUM = PiperVitsConfig(
    upsample_initial_channel=256, upsample_rates=[8, 8, 4], upsample_kernel_sizes=[16, 16, 8]
)
SHAPES = [
    Shape(),
    Shape(decoder_width=0.5, branches=2, ffn_width=0.25),
    Shape(resblock_width=0.5, encoder_layers=3, flows=2, wavenet_layers=1, multiple=4),
]


def refused(make, match=None):
    with pytest.raises(InputError, match=match) as error:
        make()
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_the_same_after_json(shape):
    assert Shape.from_json(shape.to_json()) == shape
    assert Shape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


def test_a_value():
    assert len({*SHAPES, *(Shape.from_json(shape.to_json()) for shape in SHAPES)}) == len(SHAPES)
    assert Shape(decoder_width=1) == Shape()
    with pytest.raises(AttributeError):
        Shape().flows = 1


@pytest.mark.parametrize("name", ["decoder_width", "resblock_width", "ffn_width"])
@pytest.mark.parametrize(
    "width", [0, -0.5, 1.01, math.nan, math.inf, "0.5", None, True, "x" * 1000]
)
def test_widths_that_cannot_be(name, width):
    refused(lambda: Shape(**{name: width}), name)


@pytest.mark.parametrize(
    "name", ["branches", "encoder_layers", "flows", "wavenet_layers", "multiple"]
)
@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, math.nan])
def test_counts_that_cannot_be(name, count):
    refused(lambda: Shape(**{name: count}), name)


@pytest.mark.parametrize("fields", [{"width": 0.5}, [], None, 3, {"decoder_width": {}}], ids=repr)
def test_what_is_no_shape(fields):
    refused(lambda: Shape.from_dict(fields))
    refused(lambda: Shape.from_json(json.dumps(fields)))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, None])
def test_what_is_no_json(text):
    refused(lambda: Shape.from_json(text), "JSON")


def test_all_stays_by_default():
    for config in (MMS, MEDIUM):
        assert sizes(config, Shape()) == sizes_of(config)


@pytest.mark.parametrize(
    ("config", "width", "initial"),
    [(MMS, 0.75, 384), (MMS, 0.5, 256), (MMS, 0.3, 128), (MMS, 0.01, 128), (MMS, 0.9, 512),
     (MEDIUM, 0.75, 192), (MEDIUM, 0.5, 128), (MEDIUM, 0.6, 128), (MEDIUM, 0.01, 64)],
)  # fmt: skip
def test_the_decoder_keeps_a_multiple_in_every_stage(config, width, initial):
    found = sizes(config, Shape(decoder_width=width))
    assert found.initial_channels == initial
    assert found.stage_channels == tuple(
        initial // 2 ** (stage + 1) for stage in range(len(config.upsample_rates))
    )
    assert all(channels % 8 == 0 for channels in found.stage_channels)
    assert found.inner_channels == (None if config is MEDIUM else found.stage_channels)


def test_small_decoders_are_rounded_to_less():
    config = VitsConfig(
        upsample_initial_channel=32, upsample_rates=[4, 4], upsample_kernel_sizes=[8, 8]
    )
    assert [
        sizes(config, Shape(decoder_width=width)).initial_channels
        for width in (0.01, 0.5, 0.7, 0.8, 1)
    ] == [8, 16, 24, 24, 32]


@pytest.mark.parametrize(
    ("width", "ffn"), [(0.5, 384), (0.33, 256), (0.001, 8), (0.999, 768), (1, 768)]
)
def test_feed_forward_widths(width, ffn):
    assert sizes(MMS, Shape(ffn_width=width)).ffn_channels == ffn


def test_a_width_below_one_multiple_keeps_all():
    assert sizes(VitsConfig(ffn_dim=6), Shape(ffn_width=0.5)).ffn_channels == 6


def test_inner_channels_shrink_with_their_stage():
    assert sizes(MMS, Shape(resblock_width=0.5)).inner_channels == (128, 64, 32, 16)
    assert sizes(MMS, Shape(resblock_width=0.5, decoder_width=0.5)).inner_channels == (
        64,
        32,
        16,
        8,
    )
    narrow = NarrowVitsConfig(resblock_inner_channels=[128, 64, 32, 16])
    assert sizes(narrow, Shape()) == sizes_of(narrow)
    assert sizes(narrow, Shape(decoder_width=0.5)).inner_channels == (64, 32, 16, 8)
    assert sizes(narrow, Shape(resblock_width=0.5)).inner_channels == (64, 32, 16, 8)


def test_levers_that_a_voice_has_not():
    refused(lambda: sizes(PiperVitsConfig(resblock="2"), Shape(resblock_width=0.5)), "ResBlock2")
    assert sizes(PiperVitsConfig(resblock="1"), Shape(resblock_width=0.5)).inner_channels == (
        128,
        64,
        32,
        16,
    )


@pytest.mark.parametrize(
    ("name", "there"), [("branches", 3), ("encoder_layers", 6), ("flows", 4), ("wavenet_layers", 4)]
)
def test_more_than_there_is(name, there):
    assert getattr(sizes(MMS, Shape(**{name: there})), name) == there
    refused(
        lambda: sizes(MMS, Shape(**{name: there + 1})), f"{there} .*{name} cannot be {there + 1}"
    )
