"""TextOnlySentences: exact, aligned with what a student reads, and drawn by the key alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.healing.test_exercise import batch_of, window_of

from tests.healing.conftest import TEXTS
from tests.pruning.conftest import KINDS
from vits_prune.errors import InputError
from vits_prune.healing.batches import TEXT_ONLY, TextOnlySentences
from vits_prune.healing.losses import Distillation
from vits_prune.pruning.blocks import sentence_ids
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.stages import encode, log_durations, speaker_embedding
from vits_prune.voices.voice import PARTS


def readings_of(voice, speakers=(0,)):
    return TextOnlySentences(voice, sentence_ids(voice, TEXTS), speakers)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_itself_makes_no_error(families, kind, own):
    voice = families[kind]
    exercise = Distillation(voice.model, PARTS, window_of(voice), voice.sampling_rate)
    losses, spoken = exercise(batch_of(voice) | readings_of(voice).draw(3, (0, 0, 0)), joint=own)
    assert {name: round(float(loss), 3) for name, loss in losses.items()} == dict.fromkeys(
        losses, 0.0
    )
    assert spoken.shape == (4, 16 * voice.hop_length)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_what_the_sentence_alone_is(families, kind):
    voice = families[kind]
    batch = {
        name.removeprefix(TEXT_ONLY): tensor
        for name, tensor in readings_of(voice).draw(4, (0, 1, 0)).items()
    }
    lengths = batch["token_mask"].sum(1).int().tolist()
    assert len(set(lengths)) > 1
    for row, length in enumerate(lengths):
        assert batch["ids"][row, :length].tolist() in [
            list(ids[:128]) for ids in sentence_ids(voice, TEXTS)
        ]
        alone = (
            dataclasses.replace(voice, speaker=int(batch["speaker"][row]))
            if voice.speakers
            else voice
        )
        with torch.no_grad():
            hidden, means, log_variances = encode(alone, tuple(batch["ids"][row, :length].tolist()))
            # without noise durations are those of log_durations for any key
            silent = dataclasses.replace(Delivery().for_voice(alone), noise_scale_duration=0.0)
            if not bool(batch["duration_noise"].any()):
                wanted = log_durations(
                    alone.model, hidden, speaker_embedding(alone), (0, 0), silent
                )[0, 0]
                torch.testing.assert_close(
                    batch["log_durations"][row, :length], wanted, atol=1e-4, rtol=1e-4
                )
        torch.testing.assert_close(batch["hidden"][row, :length], hidden[0].T, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(batch["means"][row, :length], means[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            batch["log_variances"][row, :length], log_variances[0], atol=1e-4, rtol=1e-4
        )
        assert not any(
            bool(batch[name][row, length:].any())
            for name in ("hidden", "means", "log_variances", "log_durations", "weights")
        )


def test_draws_depend_on_the_key_alone(tiny):
    one, same, other = (readings_of(tiny).draw(4, key) for key in ((0, 1, 0), (0, 1, 0), (0, 2, 0)))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(
        one["text_only_duration_noise"][..., :8], other["text_only_duration_noise"][..., :8]
    )


def test_only_speakers_that_are_asked_for_read(families):
    drawn = readings_of(families["speakers"], (1,)).draw(4, (0, 0, 0))
    assert drawn["text_only_speaker"].tolist() == [1, 1, 1, 1]


def test_the_text_encoder_learns_from_what_is_read_not_from_what_is_said(tiny, sparse):
    exercise = Distillation(sparse.model, PARTS, window_of(tiny), tiny.sampling_rate)
    batch, read = batch_of(tiny), readings_of(tiny).draw(4, (0, 0, 0))
    silent = batch | {
        "hidden": torch.zeros_like(batch["hidden"]),
        "log_durations": torch.zeros_like(batch["log_durations"]),
    }
    first, second = (exercise(one | read)[0] for one in (batch, silent))
    assert {name: float(first[name]) for name in ("prior", "hidden", "durations")} == {
        name: float(second[name]) for name in ("prior", "hidden", "durations")
    }
    assert first["prior"] > 0.01  # and does differ from the teacher's


@pytest.mark.parametrize("kind", ["plain", "piper-medium"])
def test_a_teacher_that_makes_no_numbers(families, kind):
    voice = families[kind]
    name = "text_encoder.embed_tokens.weight"
    weights = torch.full_like(dict(voice.model.named_parameters())[name], float("nan"))
    broken = readings_of(voice.with_weights({name: weights}))
    with pytest.raises(InputError, match="no finite number"):
        broken.draw(4, (0, 0, 0))
