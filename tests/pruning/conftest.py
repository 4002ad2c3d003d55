"""Tiny voices of every family, and a few sentences to calibrate them on."""

from __future__ import annotations

import pytest

from tests.voices import piper_factory
from tests.voices.hf_factory import make_checkpoint
from vits_prune import load_voice

SENTENCES = (
    "the birch canoe slid on the smooth planks",
    "a short one",
    "these days a chicken leg is a rare dish",
    "rice is often served",
)
KINDS = ("plain", "speakers", "piper-medium", "piper-high")
PIPER_HIGH = piper_factory.Shape(
    stochastic=False, speakers=2, resblock="1", resblock_dilations=((1, 3, 5),) * 2, initial=32
)


def in_turn(*lists):
    """Return cases in which every value of every list comes up, the shorter lists again."""
    values = [list(one) for one in lists]
    return [
        tuple(one[index % len(one)] for one in values) for index in range(max(map(len, values)))
    ]


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    """Stochastic and plain durations, one speaker and several, ResBlock1 and ResBlock2."""
    place = tmp_path_factory.mktemp("families")
    piper_medium = piper_factory.Shape(initial=32)
    return {
        "plain": load_voice(make_checkpoint(place / "plain")),
        "speakers": load_voice(
            make_checkpoint(place / "speakers", speakers=3, stochastic=False), 2
        ),
        "piper-medium": load_voice(piper_factory.make_voice(place, piper_medium, "medium")),
        "piper-high": load_voice(piper_factory.make_voice(place, PIPER_HIGH, "high"), 1),
    }
