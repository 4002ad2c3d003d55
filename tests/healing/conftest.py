"""Tiny voices of every family with what pruning made of them, and one healing that many read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pruning.conftest import families  # noqa: F401 (a fixture)
from tests.voices.hf_factory import make_checkpoint
from vits_prune import HealPlan, PruneSpec, Shape, load_voice, prune
from vits_prune.healing import HealData, HealRun, heal, run
from vits_prune.healing.batches import Window, draw_batch
from vits_prune.healing.teacher import TeacherSpeech
from vits_prune.synthesis.speak import Delivery

TEXTS = (
    "the birch canoe slid on the smooth planks",
    "glue the sheet to the dark blue background",
    "it is easy to tell the depth of a well",
    "these days a chicken leg is a rare dish",
    "rice is often served in round bowls",
    "a short one",
)
DATA = HealData(TEXTS)
QUICK = HealPlan(
    minutes=None, steps=8, lessons=20, batch=2, segment=16, learning_rate=2e-3, checkpoint_every=3
)
SMALLER = Shape(decoder_width=0.5, flows=1, encoder_layers=1)


@dataclass(frozen=True)
class Scores:
    """A judge that measures nothing."""

    scores: Callable[[int], float | None]
    wanted: tuple[int, ...] = ()
    seconds: float = 0.0

    def wants(self, step, of):
        return step in self.wanted

    def score(self, step, of, voice):
        return self.scores(step)


class Stop(Exception):
    """Ends a healing from outside."""


def stopping(step):
    """An observer that stops after a step."""

    def observe(training_step):
        if training_step.step == step:
            raise Stop

    return observe


def stopped_at(step, pruned, teacher, folder, plan=QUICK, data=DATA, **options):
    """Heal until a step, and leave checkpoints in a folder."""
    with pytest.raises(Stop):
        heal(
            pruned,
            teacher,
            plan,
            data=data,
            run=HealRun(folder, observer=stopping(step)),
            **options,
        )


@dataclass(frozen=True)
class Whole:
    """A healing that was not interrupted."""

    result: Any
    steps: tuple[Any, ...]
    """What the observer was given."""
    folder: Path


@pytest.fixture(scope="session", autouse=True)
def little_text():
    """Fewer sentences than a real voice needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "MAX_TEXT_ONLY", 60)
        patch.setattr(run, "LENGTH_TEXTS", 16)
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A checkpoint with plain durations, which cost a tenth of stochastic ones."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", stochastic=False)


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The voice of that checkpoint."""
    return load_voice(tiny_folder)


@pytest.fixture(scope="session")
def sparse(tiny):
    """The tiny voice with half of its weights at zero."""
    return prune(tiny, PruneSpec(amount=0.5))


@pytest.fixture(scope="session")
def smaller(tiny):
    """The tiny voice with fewer channels, couplings and layers."""
    return prune(tiny, PruneSpec(method="structured", shape=SMALLER))


@pytest.fixture(scope="session")
def whole(tiny, sparse, tmp_path_factory):
    """The sparse voice healed by the quick plan; the voice of step 3 has the best score."""
    folder, steps = tmp_path_factory.mktemp("healing") / "whole", []
    where = HealRun(folder, observer=steps.append)
    result = heal(sparse, tiny, QUICK, data=DATA, run=where, judge=Scores(SCORES.get))
    return Whole(result, tuple(steps), folder)


SCORES = {3: 1.0, 6: 3.0, 8: 2.0}


@pytest.fixture(scope="session")
def last(tiny, sparse):
    """The same healing without a judge: the voice of the last step."""
    return heal(sparse, tiny, QUICK, data=DATA)


def same_weights(one, other):
    """Names of the parameters that differ."""
    theirs = dict(other.model.named_parameters())
    return [name for name, tensor in one.model.named_parameters() if not tensor.equal(theirs[name])]


def batch_of(voice, step=0, size=4, text=True, segment=16):
    """A batch of the teacher's own speech."""
    utterances = TeacherSpeech(voice, TEXTS, seed=3, segment=segment).first(6)
    scale = Delivery().for_voice(voice).noise_scale
    window = Window.of(voice, segment)
    return draw_batch(utterances, size, (0, step, 0), window, text=text, noise_scale=scale)
