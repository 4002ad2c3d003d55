"""The student: which teacher fits, which parts learn, and sentences as long as the teacher's."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from tests.healing.conftest import TEXTS
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, load_voice
from vits_prune.healing.student import LengthMatcher, check_pair, parts_to_train
from vits_prune.healing.teacher import other_texts, training_texts
from vits_prune.pruning.blocks import sentence_ids
from vits_prune.synthesis.inference import encode, predict_durations, speaker_embedding
from vits_prune.synthesis.speak import Delivery


def test_a_teacher_of_another_shape_is_refused(sparse, tmp_path):
    for words, config in {
        "vocabulary": {"symbols": "_ abcdefgh"},
        "size of the flow": {"flow_size": 8},
        "sampling rate": {"sampling_rate": 22_050},
        "hop length": {"upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4]},
        "kind of duration predictor": {"stochastic": True},
        "number of speakers": {"speakers": 3},
    }.items():
        teacher = load_voice(make_checkpoint(tmp_path / words, **{"stochastic": False, **config}))
        message = f"cannot teach this voice: its {words} is .* Give the one it was pruned from"
        with pytest.raises(InputError, match=message):
            parts_to_train(sparse, teacher)


def test_another_voice_of_the_same_shape_is_refused(sparse, tiny, tiny_folder, tmp_path):
    other = load_voice(make_checkpoint(tmp_path / "other", seed=5, stochastic=False))
    with pytest.raises(InputError, match="is not the voice that this one was pruned from"):
        parts_to_train(sparse, other)
    symbols = "_ 'zyxwvutsrqponmlkjihgfedcba-"
    letters = load_voice(make_checkpoint(tmp_path / "l", symbols=symbols, stochastic=False))
    with pytest.raises(InputError, match="its vocabulary has other symbols"):
        parts_to_train(sparse, letters)
    copy = load_voice(shutil.copytree(tiny_folder, tmp_path / "a copy"))
    assert len(parts_to_train(sparse, copy)) == 4
    with pytest.raises(InputError, match="nothing to heal"):
        parts_to_train(tiny, tiny)


def test_a_healed_voice_is_known_by_what_was_published(sparse, tmp_path):
    """Its embeddings have learnt, so only two published names that differ prove anything."""
    other = load_voice(make_checkpoint(tmp_path / "other", seed=5, stochastic=False))
    healed = dataclasses.replace(sparse, recipe={**sparse.recipe, "healed": [{}]})
    check_pair(healed, other)
    mine, theirs = (
        dataclasses.replace(
            one, origin=dataclasses.replace(one.origin, reference=name, revision="0" * 40)
        )
        for one, name in ((healed, "one/voice"), (other, "another/voice"))
    )
    message = r"another/voice\) is not the voice .* which is one/voice: give that one"
    with pytest.raises(InputError, match=message):
        check_pair(mine, theirs)


def frames(voice, sentences, seed):
    """The frames that `speak` would make, sentence by sentence."""
    pace, found = Delivery().for_voice(voice), 0
    for number, ids in enumerate(sentences):
        one = voice.with_speaker(number % len(voice.speakers)) if voice.speakers else voice
        with torch.inference_mode():
            hidden, conditioning = encode(one, ids)[0], speaker_embedding(one)
            found += predict_durations(one, hidden, conditioning, (seed, number), pace, 10**6)[
                0
            ].sum()
    return int(found)


@pytest.mark.parametrize(("kind", "factor"), [("plain", 0.93), ("speakers", 1.08)])
def test_a_voice_that_is_too_fast_or_too_slow_is_matched(families, kind, factor):
    teacher, factor = families[kind], torch.log(torch.tensor(factor))
    sentences = sentence_ids(teacher, other_texts(teacher, None, 24, 0))
    predictor = teacher.model.duration_predictor
    if teacher.model.config.use_stochastic_duration_prediction:
        name, affine = "duration_predictor.flows.0.translate", predictor.flows[0]
        moved = affine.translate.detach().clone()
        moved[0] -= factor * torch.exp(affine.log_scale[0].detach())
    else:
        name, moved = "duration_predictor.proj.bias", predictor.proj.bias.detach() + factor
    wrong = teacher.with_weights({name: moved})
    wanted = frames(teacher, sentences, 5)
    assert abs(frames(wrong, sentences, 5) / wanted - 1) > 0.02
    matched = LengthMatcher(teacher, sentences, 5).match(wrong)
    assert abs(frames(matched, sentences, 5) / wanted - 1) < 0.005


def test_outputs_that_are_not_finite_are_left_alone(families):
    voice = families["plain"]
    weight = voice.model.text_encoder.embed_tokens.weight
    infinite = torch.full_like(weight, torch.inf)
    broken = voice.with_weights({"text_encoder.embed_tokens.weight": infinite})
    assert LengthMatcher(voice, sentence_ids(voice, ["abc def."]), 0).match(broken) is broken
    assert LengthMatcher(voice, [], 0).match(voice) is voice


def test_a_healed_voice_takes_as_long_as_the_original(tiny, last):
    sentences = sentence_ids(tiny, other_texts(tiny, TEXTS, 64, 0))
    assert abs(frames(last.voice, sentences, 0) / frames(tiny, sentences, 0) - 1) < 0.02


def test_other_texts_are_not_those_learnt_from(joe):
    others = other_texts(joe, None, 64, 3)
    assert len(set(others)) == 64
    assert not set(training_texts(joe, None, 400, 3)) & set(others)
    assert other_texts(joe, ["one two"], 5, 0) == ("one two",)  # too few words to make others of
