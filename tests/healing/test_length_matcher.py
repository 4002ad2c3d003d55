"""A healed voice takes as long as the original, on sentences that it did not learn from."""

from __future__ import annotations

import pytest
import torch

from tests.pruning.conftest import KINDS
from vits_prune.healing import HealPlan, heal
from vits_prune.healing.corpus import other_texts, training_texts
from vits_prune.healing.student import LengthMatcher
from vits_prune.pruning import PruneSpec, prune
from vits_prune.pruning.blocks import sentence_ids
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.stages import (
    draw_duration_noise,
    encode,
    predict_durations,
    speaker_embedding,
)


def frames(voice, sentences, seed):
    """What `speak` would take, sentence by sentence."""
    pace, found = Delivery().for_voice(voice), 0
    for number, ids in enumerate(sentences):
        one = voice.with_speaker(number % len(voice.speakers)) if voice.speakers else voice
        with torch.inference_mode():
            durations, _ = predict_durations(
                one, encode(one, ids)[0], speaker_embedding(one), (seed, number), pace, 10**6
            )
        found += int(durations.sum())
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.93, 1.08])
def test_a_voice_that_takes_too_long_or_too_short_is_levelled(families, kind, factor):
    teacher = families[kind]
    sentences = sentence_ids(teacher, other_texts(teacher, None, 24, 0))
    predictor = teacher.model.duration_predictor
    if teacher.model.config.use_stochastic_duration_prediction:
        name = "duration_predictor.flows.0.translate"
        moved = predictor.flows[0].translate.detach().clone()
        moved[0] -= torch.log(torch.tensor(factor)) * torch.exp(
            predictor.flows[0].log_scale[0].detach()
        )
    else:
        name, moved = (
            "duration_predictor.proj.bias",
            predictor.proj.bias.detach() + torch.log(torch.tensor(factor)),
        )
    wrong = teacher.with_weights({name: moved})
    lengths = LengthMatcher(teacher, sentences, 5)
    assert draw_duration_noise((5, 0), 3).shape == (1, 2, 3)
    wanted = frames(teacher, sentences, 5)
    assert abs(frames(wrong, sentences, 5) / wanted - 1) > 0.02
    levelled = wrong.with_weights(lengths.level(wrong))
    assert abs(frames(levelled, sentences, 5) / wanted - 1) < 0.005


def test_what_is_no_number_is_left_alone(tiny):
    lengths = LengthMatcher(tiny, sentence_ids(tiny, ["abc def."]), 0)
    name = next(
        name for name, _ in tiny.model.named_parameters() if name.startswith("text_encoder.embed")
    )
    broken = tiny.with_weights({name: torch.full_like(tiny.model.get_parameter(name), torch.inf)})
    try:
        assert lengths.level(broken) == {}
    except ValueError:
        pytest.fail("the spline's own error came out")
    assert LengthMatcher(tiny, [], 0).level(tiny) == {}


def test_others_are_not_those_learnt_from(joe):
    learnt = set(training_texts(joe, None, 400, 3))
    others = other_texts(joe, None, 64, 3)
    assert len(set(others)) == 64
    assert not learnt & set(others)
    assert other_texts(joe, ["one two"], 5, 0) == ("one two",)  # too few words to make others of


def test_healing_ends_with_sentences_as_long_as_the_original(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.5, parts=("text_encoder",)))
    healed = heal(
        pruned, tiny, plan=HealPlan(minutes=None, steps=2, batch=2, segment=16, lessons=4), cpu=True
    )
    sentences = sentence_ids(tiny, other_texts(tiny, None, 64, 0))
    assert abs(frames(healed, sentences, 0) / frames(tiny, sentences, 0) - 1) < 0.01
