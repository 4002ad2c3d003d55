"""What a step compares: a voice makes no error against itself at any stage."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.healing.conftest import TEXTS, batch_of
from tests.pruning.conftest import KINDS
from vits_prune import PruneSpec, prune
from vits_prune.errors import InputError
from vits_prune.healing.batches import (
    TEXT_ONLY,
    TextOnlySentences,
    Window,
    draw_batch,
    draw_recordings,
)
from vits_prune.healing.losses import Distillation, weighted_sum
from vits_prune.healing.teacher import TeacherSpeech
from vits_prune.pruning.blocks import sentence_ids
from vits_prune.synthesis.inference import encode, log_durations, speaker_embedding
from vits_prune.synthesis.speak import Delivery
from vits_prune.voices.voice import PARTS


def losses_of(voice, student=None, trained=PARTS):
    student = student or voice
    window, rate = Window.of(voice, 16), voice.sampling_rate
    return Distillation(student.model, voice.model, trained, window, rate)


def text_only_of(voice, speakers=(0,)):
    return TextOnlySentences(voice, sentence_ids(voice, TEXTS), speakers)


def with_part_of(voice, other, part):
    """A voice with one part of another."""
    weights = dict(other.model.named_parameters())
    return voice.with_weights(
        {name: tensor for name, tensor in weights.items() if name.startswith(f"{part}.")}
    )


def test_no_window_lies_in_the_padding_of_a_waveform(tiny):
    speech = TeacherSpeech(tiny, ["a short one"], seed=3, segment=16).first(1)
    assert len(speech[0].waveform) // tiny.hop_length > speech[0].frames
    window = Window.of(tiny, 8)
    inside = slice(window.flow + window.decoder, window.flow + window.decoder + 8)
    for step in range(40):
        batch = draw_batch(speech, 2, (0, step, 0), window, text=True)
        assert bool(batch["frame_mask"][..., inside].bool().all())


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_itself_makes_no_error(families, kind):
    voice = families[kind]
    names = {"prior", "hidden", "durations", "flow", "mel", "stft", "level", "waveform"}
    text_only = text_only_of(voice).draw(3, (0, 0, 0))
    for step, (joint, more) in enumerate([(False, {}), (True, {}), (True, text_only)]):
        losses, (spoken, wanted) = losses_of(voice)(batch_of(voice, step) | more, joint=joint)
        assert set(losses) == names
        assert {name: round(float(one), 3) for name, one in losses.items()} == dict.fromkeys(
            losses, 0.0
        )
        assert spoken.shape == wanted.shape == (4, 16 * voice.hop_length)


def test_each_part_is_judged_by_its_own_work(families):
    voice = families["plain"]
    sparse, batch = prune(voice, PruneSpec(amount=0.5)), batch_of(voice)
    for part, expected in {
        "text_encoder": {"prior", "hidden", "durations"},
        "duration_predictor": {"durations"},
        "flow": {"flow"},
        "decoder": {"mel", "stft", "waveform"},
    }.items():
        losses, _ = losses_of(voice, with_part_of(voice, sparse, part))(batch)
        assert {name for name, loss in losses.items() if loss > 0.01} == expected


def test_jointly_the_decoder_gets_its_own_latents_and_the_target_that_belongs_to_them(tiny, sparse):
    batch = batch_of(tiny)
    student = with_part_of(tiny, sparse, "text_encoder")
    _, (alone, _) = losses_of(tiny, student)(batch)
    losses, (spoken, wanted) = losses_of(tiny, student)(batch, joint=True)
    assert losses["flow"] < 1e-3  # judged on the teacher's prior all the same
    assert losses["mel"] < 1e-3  # this decoder is the teacher's
    assert float((spoken - alone).abs().mean()) > 1e-3
    assert torch.allclose(spoken, wanted, atol=1e-6)
    both = with_part_of(tiny, sparse, "decoder")
    losses, _ = losses_of(tiny, both)(batch, joint=True)
    assert losses["mel"] > 0.01


@pytest.mark.parametrize("kind", ["plain", "speakers"])
def test_durations_do_not_shape_the_states_that_they_are_predicted_from(families, kind):
    voice = families[kind]
    copies = {name: one.detach().clone() for name, one in voice.model.named_parameters()}
    student = voice.with_weights(copies)
    student.model.requires_grad_(True)
    losses, _ = losses_of(voice, student)(batch_of(voice))
    (losses["durations"] + 1).backward()
    learning = {
        name.partition(".")[0]
        for name, tensor in student.model.named_parameters()
        if tensor.grad is not None and tensor.grad.any()
    }
    assert learning <= {"duration_predictor", "embed_speaker"}


def test_a_decoder_alone_needs_no_text_and_recordings_are_judged_by_their_spectra(tiny):
    alone = losses_of(tiny, trained=("decoder",))
    assert not alone.needs_text
    batch = batch_of(tiny, text=False)
    assert set(alone(batch, joint=True)[0]) == {"mel", "stft", "level", "waveform"}
    one = TeacherSpeech(tiny, TEXTS, seed=3, segment=16).first(1)[0]
    recordings = [(one.latents, one.waveform[: one.frames * tiny.hop_length])]
    batch |= draw_recordings(recordings, 2, (0, 0, 0), Window.of(tiny, 16))
    losses, _ = alone(batch | {"recorded_speaker": torch.zeros(2, dtype=torch.long)})
    assert {"recorded_mel", "recorded_stft"} <= set(losses)
    assert losses["recorded_mel"] < 0.02
    assert float(weighted_sum(losses)) >= float(losses["recorded_mel"])


def test_a_batch_is_a_function_of_its_key_and_has_few_shapes(tiny):
    one, same, other = batch_of(tiny, 7), batch_of(tiny, 7), batch_of(tiny, 8)
    assert all(one[name].equal(same[name]) for name in one)
    assert any(
        one[name].shape != other[name].shape or not one[name].equal(other[name]) for name in one
    )
    shapes = {tuple(tensor.shape for tensor in batch_of(tiny, step).values()) for step in range(9)}
    assert len(shapes) <= 3
    first, same, other = (
        text_only_of(tiny).draw(4, key) for key in ((0, 1, 0), (0, 1, 0), (0, 2, 0))
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first[f"{TEXT_ONLY}ids"], other[f"{TEXT_ONLY}ids"])


@pytest.mark.parametrize("kind", ["plain", "piper-high"])
def test_a_row_of_text_only_sentences_is_what_the_sentence_alone_is(families, kind):
    voice = families[kind]
    drawn = text_only_of(voice).draw(4, (0, 1, 0))
    batch = {name.removeprefix(TEXT_ONLY): tensor for name, tensor in drawn.items()}
    lengths = batch["token_mask"].sum(1).int().tolist()
    assert len(set(lengths)) > 1
    known = [list(ids[:128]) for ids in sentence_ids(voice, TEXTS)]
    for row, length in enumerate(lengths):
        ids = batch["ids"][row, :length].tolist()
        assert ids in known
        alone = voice
        if voice.speakers:
            alone = dataclasses.replace(voice, speaker=int(batch["speaker"][row]))
        with torch.no_grad():
            hidden, means, log_variances = encode(alone, tuple(ids))
            expected = {"hidden": hidden[0].T, "means": means[0], "log_variances": log_variances[0]}
            if not bool(batch["duration_noise"].any()):
                silent = dataclasses.replace(Delivery().for_voice(alone), noise_scale_duration=0.0)
                embedding = speaker_embedding(alone)
                logs = log_durations(alone.model, hidden, embedding, (0, 0), silent)
                expected["log_durations"] = logs[0, 0]
        for name, tensor in expected.items():
            torch.testing.assert_close(batch[name][row, :length], tensor, atol=1e-4, rtol=1e-4)
        names = ("hidden", "means", "log_variances", "log_durations", "weights")
        assert not any(bool(batch[name][row, length:].any()) for name in names)


def test_only_the_given_speakers_read(families):
    drawn = text_only_of(families["speakers"], (1,)).draw(4, (0, 0, 0))
    assert drawn[f"{TEXT_ONLY}speaker"].tolist() == [1, 1, 1, 1]


def test_the_text_encoder_learns_from_text_only_sentences(tiny, sparse):
    losses, batch = losses_of(tiny, sparse), batch_of(tiny)
    text_only = text_only_of(tiny).draw(4, (0, 0, 0))
    changed = {name: torch.zeros_like(batch[name]) for name in ("hidden", "log_durations")}
    first, second = (losses(one | text_only)[0] for one in (batch, batch | changed))
    for name in ("prior", "hidden", "durations"):
        assert float(first[name]) == float(second[name])
    assert first["prior"] > 0.01


@pytest.mark.parametrize("kind", ["plain", "piper-medium"])
def test_a_teacher_whose_output_is_not_finite_is_refused(families, kind):
    voice, name = families[kind], "text_encoder.embed_tokens.weight"
    weight = torch.full_like(voice.model.text_encoder.embed_tokens.weight, float("nan"))
    broken = voice.with_weights({name: weight})
    with pytest.raises(InputError, match="not finite"):
        text_only_of(broken).draw(4, (0, 0, 0))
    with pytest.raises(InputError, match="is not finite: load the voice again"):
        TeacherSpeech(broken, TEXTS, seed=0, segment=16).first(1)
