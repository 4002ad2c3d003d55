"""Tiny voices of every family with what pruning made of them, and a plan that takes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.pruning.conftest import families  # noqa: F401 (a fixture)
from vits_prune import HealPlan, PruneSpec, Shape, prune

TEXTS = (
    "the birch canoe slid on the smooth planks",
    "glue the sheet to the dark blue background",
    "it is easy to tell the depth of a well",
    "these days a chicken leg is a rare dish",
    "rice is often served in round bowls",
    "a short one",
)
QUICK = HealPlan(
    minutes=None, steps=12, lessons=20, batch=2, segment=16, learning_rate=2e-3, checkpoint_every=5
)
SMALLER = PruneSpec(method="structured", shape=Shape(decoder_width=0.5, flows=1, encoder_layers=1))


@dataclass(frozen=True)
class Scores:
    """A judge that measures nothing."""

    score: Callable
    checks: int = 0
    reserve: float = 0.0

    def __call__(self, step, voice):
        return self.score(step, voice)


@pytest.fixture(scope="session")
def sparse(tiny):
    """The tiny voice with half of its weights at zero."""
    return prune(tiny, PruneSpec(amount=0.5))


@pytest.fixture(scope="session")
def smaller(tiny):
    """The tiny voice with fewer channels, couplings and layers."""
    return prune(tiny, SMALLER)


def same_weights(one, other):
    """Names of the parameters that differ."""
    theirs = dict(other.model.named_parameters())
    return [name for name, tensor in one.model.named_parameters() if not tensor.equal(theirs[name])]
