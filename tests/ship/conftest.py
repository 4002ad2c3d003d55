"""Tiny voices of every structure that an export must write."""

from __future__ import annotations

import dataclasses
from functools import cache
from types import MappingProxyType

import pytest

from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from vits_prune import PruneSpec, load_voice, prune
from vits_prune.pruning import Shape
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.ship.formats import export_voice
from vits_prune.voices.voice import Origin

KINDS = {
    "plain": ("onnx", "fp32"),
    "plain-durations": ("piper", "fp32"),
    "speakers": ("onnx", "fp16"),
    "smaller": ("onnx", "fp32"),
    "narrow": ("piper", "int8"),
    "piper-medium": ("piper", "fp32"),
    "piper-high": ("piper", "fp16"),
    "piper-speakers": ("piper", "fp32"),
    "sparse": ("onnx", "int8"),
}
"""Kinds of voices, and the format and precision in which each is exported once a session."""
HEALED = {"steps": 12, "teacher": "joe"}


def with_history(voice):
    """The voice as if published under a licence, pruned and healed."""
    pruned = [{"method": "magnitude", "amount": 0.5, "parts": ["flow"]}]
    recipe = {**voice.recipe, "pruned": pruned, "healed": HEALED}
    origin = Origin(voice.origin.family, f"owner/{voice.name}", "0123abc", "cc-by-nc-4.0")
    return dataclasses.replace(voice, recipe=MappingProxyType(recipe), origin=origin)


class Shipped(dict):
    """Voices by kind, each made when it is first asked for."""

    def __init__(self, makers):
        super().__init__()
        self._makers = makers

    def __missing__(self, kind):
        self[kind] = with_history(self._makers[kind]())
        return self[kind]


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """Both duration predictors, one speaker and several, both ResBlocks, cut and pruned."""
    place = tmp_path_factory.mktemp("shipped")
    plain = load_voice(make_checkpoint(place / "plain"))

    def piper(name):
        shape = getattr(piper_factory, name)
        return lambda: load_voice(piper_factory.make_voice(place, shape, name))

    smaller = Shape(
        decoder_width=0.5,
        branches=1,
        ffn_width=0.5,
        encoder_layers=1,
        flows=1,
        wavenet_layers=1,
        multiple=2,
    )
    narrow = Shape(resblock_width=0.5, multiple=2)
    return Shipped(
        {
            "plain": lambda: plain,
            "plain-durations": lambda: load_voice(
                make_checkpoint(place / "plain-durations", stochastic=False, window_size=2)
            ),
            "speakers": lambda: load_voice(make_checkpoint(place / "speakers", speakers=3), 2),
            "smaller": lambda: cut(plain, choose(plain, smaller)),
            "narrow": lambda: cut(plain, choose(plain, narrow)),
            "piper-medium": piper("MEDIUM"),
            "piper-high": piper("HIGH"),
            "piper-speakers": piper("SPEAKERS"),
            "sparse": lambda: prune(plain, PruneSpec(scope="local", amount=0.5)),
        }
    )


@pytest.fixture(scope="session")
def exported(shipped, tmp_path_factory):
    """Exports of these voices by kind, each written once; tests copy what they change."""

    @cache
    def export(kind):
        place = tmp_path_factory.mktemp("exported") / "out"
        return export_voice(shipped[kind], place, *KINDS[kind])

    return export


@pytest.fixture(scope="session")
def joe_export(joe, tmp_path_factory):
    """The real voice as Piper's runtime and sherpa-onnx read it, written once."""
    return export_voice(joe, tmp_path_factory.mktemp("joe") / "out", "piper")


@pytest.fixture(scope="session")
def phonemising(tmp_path_factory):
    """A voice of espeak-ng's phonemes in transformers' layout, as kakao-enterprise/vits-ljs is."""
    return load_voice(
        make_checkpoint(tmp_path_factory.mktemp("phonemising") / "ljs", phonemize=True)
    )
