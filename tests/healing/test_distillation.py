"""What a step compares: a voice beside itself makes no error at any stage, which is to say that everything is aligned."""

from __future__ import annotations

import pytest
import torch

from tests.healing.conftest import TEXTS
from tests.pruning.conftest import KINDS
from vits_prune.healing.batches import Window, draw_batch, draw_recordings
from vits_prune.healing.losses import Distillation, weighted_sum
from vits_prune.healing.teacher import TeacherSpeech, decoder_context, flow_context
from vits_prune.synthesis.speak import Delivery
from vits_prune.voices.voice import PARTS


def window_of(voice, segment=16):
    return Window(
        segment,
        decoder_context(voice.model.config),
        flow_context(voice.model.config),
        voice.hop_length,
    )


def batch_of(voice, step=0, size=4, text=True):
    lessons = TeacherSpeech(voice, TEXTS, seed=3, segment=16).first(6)
    scale = Delivery().for_voice(voice).noise_scale
    return draw_batch(lessons, size, (0, step, 0), window_of(voice), text=text, noise_scale=scale)


def test_no_window_lies_in_what_a_waveform_is_filled_up_with(tiny):
    lessons = TeacherSpeech(tiny, ["a short one"], seed=3, segment=16).first(1)
    frames, filled = lessons[0].frames, len(lessons[0].waveform) // tiny.hop_length
    assert filled > frames
    window = window_of(tiny, segment=8)
    inside = slice(window.flow + window.decoder, window.flow + window.decoder + 8)
    for step in range(40):
        assert bool(
            draw_batch(lessons, 2, (0, step, 0), window, text=True)["frame_mask"][..., inside]
            .bool()
            .all()
        )


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_itself_makes_no_error(families, kind, own):
    voice = families[kind]
    exercise = Distillation(voice.model, PARTS, window_of(voice), voice.sampling_rate)
    for step in range(4):
        losses, spoken = exercise(batch_of(voice, step), joint=own)
        # Phases are compared only where the latents are the teacher's.
        assert set(losses) == {"prior", "hidden", "durations", "flow", "mel", "stft", "level"} | (
            set() if own else {"waveform"}
        )
        assert {name: round(float(loss), 3) for name, loss in losses.items()} == dict.fromkeys(
            losses, 0.0
        )
        assert spoken.shape == (4, 16 * voice.hop_length)


def test_each_part_is_judged_by_its_own_work(tiny, sparse):
    batch = batch_of(tiny)
    for part in PARTS:
        weights = {
            name: tensor
            for name, tensor in sparse.model.named_parameters()
            if name.startswith(f"{part}.")
        }
        exercise = Distillation(
            tiny.with_weights(weights).model, PARTS, window_of(tiny), tiny.sampling_rate
        )
        wrong = {name for name, loss in exercise(batch)[0].items() if loss > 0.01}
        assert (
            wrong
            == {
                "text_encoder": {"prior", "hidden", "durations"},
                "duration_predictor": {"durations"},
                "flow": {"flow"},
                "decoder": {"mel", "stft", "waveform"},
            }[part]
        )


def test_on_its_own_work_a_later_part_hears_the_earlier_ones(tiny, sparse):
    weights = {
        name: tensor
        for name, tensor in sparse.model.named_parameters()
        if name.startswith("text_encoder.")
    }
    exercise = Distillation(
        tiny.with_weights(weights).model, PARTS, window_of(tiny), tiny.sampling_rate
    )
    losses, _ = exercise(batch_of(tiny), joint=True)
    assert losses["flow"] < 1e-3  # judged on the teacher's prior all the same
    assert losses["mel"] > 0.01


@pytest.mark.parametrize("kind", ["plain", "speakers"])
def test_durations_do_not_shape_the_states_that_they_are_read_off(families, kind):
    model = (
        families[kind]
        .with_weights(
            {name: t.detach().clone() for name, t in families[kind].model.named_parameters()}
        )
        .model
    )
    model.requires_grad_(True)
    exercise = Distillation(model, PARTS, window_of(families[kind]), families[kind].sampling_rate)
    losses, _ = exercise(batch_of(families[kind]))
    (losses["durations"] + 1).backward()
    learning = {
        name.partition(".")[0]
        for name, tensor in model.named_parameters()
        if tensor.grad is not None and tensor.grad.any()
    }
    assert learning <= {"duration_predictor", "embed_speaker"}


def test_a_decoder_alone_needs_no_text(tiny):
    exercise = Distillation(tiny.model, ("decoder",), window_of(tiny), tiny.sampling_rate)
    assert not exercise.needs_text
    losses, _ = exercise(batch_of(tiny, text=False), joint=True)
    assert set(losses) == {"mel", "stft", "level", "waveform"}


def test_recordings_are_judged_by_their_spectra(tiny):
    lesson = TeacherSpeech(tiny, TEXTS, seed=3, segment=16).first(1)[0]
    clips = [(lesson.latents, lesson.waveform[: lesson.frames * tiny.hop_length])]
    batch = (
        batch_of(tiny, text=False)
        | draw_recordings(clips, 2, (0, 0, 0), window_of(tiny))
        | {"recorded_speaker": torch.zeros(2, dtype=torch.long)}
    )
    losses, _ = Distillation(tiny.model, ("decoder",), window_of(tiny), tiny.sampling_rate)(batch)
    assert {"recorded_mel", "recorded_stft"} <= set(losses)
    assert losses["recorded_mel"] < 0.02
    assert float(weighted_sum(losses)) >= float(losses["recorded_mel"])


def test_a_batch_is_a_function_of_its_key(tiny):
    one, same, other = batch_of(tiny, 7), batch_of(tiny, 7), batch_of(tiny, 8)
    assert all(one[name].equal(same[name]) for name in one)
    assert any(
        one[name].shape != other[name].shape or not one[name].equal(other[name]) for name in one
    )


def test_the_lengths_of_a_batch_are_few(tiny):
    shapes = {tuple(tensor.shape for tensor in batch_of(tiny, step).values()) for step in range(12)}
    assert len(shapes) <= 3
