"""Tiny voices of every structure that an export must write."""

from __future__ import annotations

import pytest

from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from vits_prune import PruneSpec, load_voice, prune
from vits_prune.pruning import Shape
from vits_prune.pruning.structured.cut import choose, cut

KINDS = (
    "plain",
    "plain-durations",
    "speakers",
    "smaller",
    "narrow",
    "piper-medium",
    "piper-high",
    "piper-speakers",
    "sparse",
)


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """Stochastic and plain durations, one speaker and several, ResBlock1 and ResBlock2, cut and pruned."""
    place = tmp_path_factory.mktemp("shipped")
    plain = load_voice(make_checkpoint(place / "plain"))
    piper = {
        name: load_voice(piper_factory.make_voice(place, getattr(piper_factory, name), name))
        for name in ("MEDIUM", "HIGH", "SPEAKERS")
    }
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
    return {
        "plain": plain,
        "plain-durations": load_voice(
            make_checkpoint(place / "plain-durations", stochastic=False, window_size=2)
        ),
        "speakers": load_voice(make_checkpoint(place / "speakers", speakers=3), 2),
        "smaller": cut(plain, choose(plain, smaller)),
        "narrow": cut(plain, choose(plain, narrow)),
        "piper-medium": piper["MEDIUM"],
        "piper-high": piper["HIGH"],
        "piper-speakers": piper["SPEAKERS"],
        "sparse": prune(plain, PruneSpec(scope="local", amount=0.5)),
    }


@pytest.fixture(scope="session")
def phonemising(tmp_path_factory):
    """A voice of espeak-ng's phonemes in transformers' layout, as kakao-enterprise/vits-ljs is."""
    return load_voice(
        make_checkpoint(tmp_path_factory.mktemp("phonemising") / "ljs", phonemize=True)
    )
