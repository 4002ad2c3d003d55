"""speak: noise from the seed alone, the samples of plain transformers, runaway durations."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import VitsModel

from tests.nearly import nearly
from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError, PruneSpec, load_voice, prune, speak
from vits_prune.progress import Cancelled, Progress
from vits_prune.synthesis import inference
from vits_prune.synthesis import speak as speaking
from vits_prune.synthesis.inference import MAX_SENTENCE_SECONDS, draw_noise
from vits_prune.synthesis.speak import (
    STAGES,
    Delivery,
    join,
    predict_rhythm,
    read_text,
    speak_sentences,
)

TEXT = "Glue the sheet."
LETTERS = "the birch canoe slid"


def is_one_sentence(error):
    message = str(error.value)
    return "\n" not in message and message.endswith(".") and len(message) < 250


def same(first, second):
    return nearly(first.waveform, second.waveform) and np.array_equal(
        first.durations, second.durations
    )


@pytest.fixture(scope="module")
def spoken(joe):
    return speak(joe, TEXT, 3)


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(joe, spoken):
    torch.manual_seed(99)
    assert same(speak(joe, TEXT, 3), spoken)
    assert not same(speak(joe, TEXT, 4), spoken)


def test_torchs_random_state_is_left_alone(joe):
    before = torch.get_rng_state()
    speak(joe, "Go.", 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_speech_is_made_of(joe, spoken):
    assert spoken.waveform.dtype == np.float32
    assert spoken.waveform.ndim == 1
    assert 0.05 < np.abs(spoken.waveform).max() <= 1
    assert (
        len(spoken.waveform)
        == spoken.durations.sum() * spoken.hop_length
        == spoken.durations.sum() * 256
    )
    assert spoken.sampling_rate == 22_050
    assert spoken.audio_seconds == len(spoken.waveform) / 22_050
    assert tuple(spoken.seconds) == STAGES
    assert all(second > 0 for second in spoken.seconds.values())
    assert len(spoken.tokens) == len(spoken.durations) > 10
    assert (spoken.dropped, spoken.cut_short) == ((), False)
    pcm = spoken.pcm16()
    assert pcm.dtype == np.int16
    assert np.abs(pcm / 32767 - spoken.waveform).max() <= 0.5 / 32767 + 1e-7


def in_double_precision(voice):
    return voice.with_weights({n: p.detach().double() for n, p in voice.model.named_parameters()})


@pytest.mark.parametrize(
    ("options", "speaker"),
    [
        ({}, None),
        ({"stochastic": False}, None),
        ({"speakers": 3}, 2),
        ({"speakers": 3, "stochastic": False}, 1),
    ],
    ids=["stochastic", "plain-durations", "speakers", "speakers-plain-durations"],
)
def test_the_samples_of_plain_transformers_given_the_same_draws(
    tmp_path, monkeypatch, options, speaker
):
    """Computed in float64, the two differ by the rounding of the folded weights only.

    In float32 they differ by a few millionths, because transformers applies weight norm at every
    call.
    """
    folder, seed = make_checkpoint(tmp_path / "tiny", **options), 11
    single = load_voice(folder, speaker)
    voice = in_double_precision(single)
    plain = VitsModel.from_pretrained(folder).eval().double()
    ids = torch.tensor([read_text(voice, LETTERS)[0][0].ids])
    drawn = []

    def randn(*size, **_):
        assert size == (1, 2, ids.shape[1])
        drawn.append("durations")
        return torch.from_numpy(draw_noise((seed, 0), 0, size[2], 2)).T[None].double()

    def randn_like(means):
        drawn.append("prior")
        noise = draw_noise((seed, 0), 1, means.shape[2], means.shape[1])
        return torch.from_numpy(noise).T[None].double()

    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setattr(torch, "randn_like", randn_like)
    set_values = {"speaking_rate": 1.3, "noise_scale": 0.4, "noise_scale_duration": 0.5}
    for delivery in ({}, set_values):
        drawn.clear()
        for name, value in delivery.items():
            setattr(plain, name, value)
        chosen = {} if speaker is None else {"speaker_id": speaker}
        with torch.no_grad():
            expected = plain(ids, **chosen).waveform[0].numpy()
        stochastic = options.get("stochastic", True)
        assert drawn == (["durations", "prior"] if stochastic else ["prior"])
        assert expected.std() > 0
        speech = speak(voice, LETTERS, seed, Delivery(**delivery))
        assert len(speech.waveform) == len(expected)
        assert np.abs(speech.waveform - expected).max() < 1e-6
        speech = speak(single, LETTERS, seed, Delivery(**delivery))
        assert np.abs(speech.waveform - expected).max() < 2e-5


def test_equal_weights_give_equal_samples_in_two_voices(joe, spoken):
    assert same(speak(prune(joe, PruneSpec(amount=0)), TEXT, 3), spoken)


def test_locked_timing_takes_the_durations_over(joe, spoken):
    pruned = prune(joe, PruneSpec(scope="local", amount=0.5))
    own, locked = speak(pruned, TEXT, 3), speak(pruned, TEXT, 3, timing=spoken)
    assert not np.array_equal(own.durations, spoken.durations)
    assert np.array_equal(locked.durations, spoken.durations)
    assert len(locked.waveform) == len(spoken.waveform)
    assert not nearly(locked.waveform, spoken.waveform)
    assert same(speak(joe, TEXT, 3, timing=spoken), spoken)
    [predicted] = speak_sentences(pruned, TEXT, 3, timing=spoken, always_predict=True)
    assert same(predicted, locked)


def test_timing_that_is_neither_own_nor_speech(tiny):
    for timing in ("locked", None, 3):
        with pytest.raises(InputError) as error:
            speak(tiny, LETTERS, timing=timing)
        assert is_one_sentence(error)


def test_timing_of_another_text(joe, spoken):
    with pytest.raises(InputError, match="another text") as error:
        speak(joe, "Other words.", timing=spoken)
    assert is_one_sentence(error)


def test_sentences_one_by_one(joe):
    text, seen = "Go on. Come back! Why?", []
    whole = speak(joe, text, 5, progress=Progress(lambda *at: seen.append(at)))
    thirds = [(f"sentence {i + 1} of 3", i / 3) for i in range(3)]
    assert seen == [*thirds, ("spoken", 1.0)]
    pieces = list(speak_sentences(joe, text, 5))
    assert [len(piece.sentences) for piece in pieces] == [1, 1, 1]
    assert same(join(pieces), whole)
    assert (
        len(whole.waveform)
        == sum(len(piece.waveform) for piece in pieces)
        == whole.durations.sum() * whole.hop_length
    )
    assert same(speak(joe, text, 5, timing=whole), whole)
    assert same(pieces[0], speak(joe, "Go on.", 5))


def test_speaking_can_be_cancelled(joe):
    seen = []
    progress = Progress(lambda message, _: seen.append(message), cancelled=lambda: len(seen) == 2)
    with pytest.raises(Cancelled):
        speak(joe, "Go on. Come back! Why?", progress=progress)
    assert seen == ["sentence 1 of 3", "sentence 2 of 3"]


def with_broken_durations(voice, value):
    """The voice with log-durations of about `value` for every token."""
    name = (
        "flows.0.translate"
        if voice.model.config.use_stochastic_duration_prediction
        else "proj.bias"
    )
    name = f"duration_predictor.{name}"
    old = dict(voice.model.named_parameters())[name]
    return voice.with_weights(
        {name: torch.full_like(old, -value if name.endswith("translate") else value)}
    )


@pytest.fixture(scope="module", params=[True, False], ids=["stochastic", "plain-durations"])
def slow(request, tmp_path_factory):
    """A voice of 1,000 samples a second, so that a minute of it is soon spoken."""
    voice = load_voice(
        make_checkpoint(tmp_path_factory.mktemp("slow") / "tiny", stochastic=request.param)
    )
    return dataclasses.replace(voice, sampling_rate=1_000)


@pytest.mark.parametrize("value", [30.0, 1e30, math.inf])
def test_durations_that_run_away_are_cut(slow, value):
    speech = speak(with_broken_durations(slow, value), LETTERS)
    assert speech.cut_short
    assert speech.audio_seconds == pytest.approx(MAX_SENTENCE_SECONDS, abs=0.1)
    assert speech.audio_seconds <= MAX_SENTENCE_SECONDS
    assert len(speech.waveform) == speech.durations.sum() * speech.hop_length
    assert np.isfinite(speech.waveform).all()


@pytest.mark.parametrize("value", [math.nan, -1e30, -math.inf])
def test_durations_that_are_not_numbers_or_vanish(slow, value):
    speech = speak(with_broken_durations(slow, value), LETTERS)
    assert not speech.cut_short
    assert 1 <= speech.durations.sum() <= len(speech.tokens)
    assert len(speech.waveform) == speech.durations.sum() * speech.hop_length
    assert np.isfinite(speech.waveform).all()


def test_runaway_durations_on_the_real_voice(joe, monkeypatch):
    monkeypatch.setattr(inference, "MAX_SENTENCE_SECONDS", 1.0)
    speech = speak(with_broken_durations(joe, 50.0), "Go.")
    assert speech.cut_short
    assert speech.durations.sum() == 22_050 // 256
    assert np.isfinite(speech.waveform).all()


def test_a_whole_text_that_runs_away_is_cut(slow, monkeypatch):
    monkeypatch.setattr(speaking, "MAX_SPEECH_SECONDS", 150.0)
    voice, frames = with_broken_durations(slow, 1e30), 1_000 / slow.hop_length
    pieces = list(speak_sentences(voice, "go. go. go. go. go."))
    assert [len(piece.durations) for piece in pieces] == [5] * 5
    assert [int(piece.durations.sum()) for piece in pieces] == [
        int(60 * frames),
        int(60 * frames),
        int(30 * frames),
        1,
        1,
    ]
    assert join(pieces).cut_short


def test_a_single_token_that_runs_away_is_told(slow):
    hidden = torch.zeros(1, slow.model.config.hidden_size, 1)
    own = Delivery().for_voice(slow)
    durations, cut_short = inference.predict_durations(
        with_broken_durations(slow, 1e30), hidden, None, (0, 0), own, most_frames=10**9
    )
    assert durations.tolist() == [int(MAX_SENTENCE_SECONDS * 1_000 / slow.hop_length)]
    assert cut_short


def test_a_decoder_that_answers_nan_still_gives_pcm(tiny):
    name, old = next(
        (n, p) for n, p in tiny.model.named_parameters() if n == "decoder.conv_pre.bias"
    )
    pcm = speak(tiny.with_weights({name: torch.full_like(old, math.nan)}), LETTERS).pcm16()
    assert pcm.size
    assert not pcm.any()


def test_text_that_cannot_be_spoken(joe):
    long = ("x" * 100_000, "word " * 1_001)
    for text in ("", "   ", "\n", *long, None, 5, "\ud800", "a \udcff", "\x00", "\u200b"):
        with pytest.raises(InputError) as error:
            speak(joe, text)
        assert is_one_sentence(error)


@pytest.mark.parametrize(
    "text", ["🙂🙂", "!!!", "Hello 🙂 мир 你好", "…", "1,000,000 $", "\t a \r\n b"], ids=ascii
)
def test_odd_text_is_spoken_or_refused_in_a_sentence(joe, tiny, text):
    for voice in (joe, tiny):
        sayable = any(sentence.ids for sentence in voice.tokenizer.sentences(text))
        if not sayable:
            with pytest.raises(InputError) as error:
                speak(voice, text)
            assert is_one_sentence(error)
            continue
        speech = speak(voice, text)
        assert np.isfinite(speech.waveform).all()
        assert speech.waveform.size


def test_nothing_in_the_text_can_be_said(tiny):
    with pytest.raises(InputError, match="cannot speak any of this text"):
        speak(tiny, "🙂🙂")


def test_what_was_dropped_is_told_once(tiny):
    assert speak(tiny, "go 9 on 9").dropped == ("9",)


def test_bad_seeds(tiny):
    for seed in (-1, 2**32, 1.5, math.nan, math.inf, True, "1", None, [1]):
        with pytest.raises(InputError) as error:
            speak(tiny, "go", seed)
        assert is_one_sentence(error)


def test_seeds_of_other_kinds(tiny):
    assert same(speak(tiny, "go", 3.0), speak(tiny, "go", np.int64(3)))
    assert speak(tiny, "go", 2**32 - 1).waveform.size


def test_bad_delivery():
    for name in ("speaking_rate", "noise_scale", "noise_scale_duration"):
        for value in (math.nan, math.inf, -0.1, 100, "1", "a\nb", True):
            with pytest.raises(InputError, match=name) as error:
                Delivery(**{name: value})
            assert is_one_sentence(error)


def test_speaking_rate_and_noise_scales(joe, spoken):
    fast = speak(joe, TEXT, 3, delivery=Delivery(speaking_rate=2))
    assert 0.4 < fast.audio_seconds / spoken.audio_seconds < 0.65
    assert not same(speak(joe, TEXT, 3, delivery=Delivery(noise_scale=0)), spoken)
    still = speak(joe, TEXT, 3, delivery=Delivery(noise_scale=0, noise_scale_duration=0))
    assert same(
        still, speak(joe, TEXT, 4, delivery=Delivery(noise_scale=0, noise_scale_duration=0))
    )
    own = {
        name: getattr(joe.model, name)
        for name in ("speaking_rate", "noise_scale", "noise_scale_duration")
    }
    assert same(speak(joe, TEXT, 3, Delivery(**own)), spoken)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_voice_of_which_one_weight_in_a_hundred_is_left_speaks(joe, scope):
    speech = speak(prune(joe, PruneSpec(scope=scope, amount=0.99)), TEXT)
    assert np.isfinite(speech.waveform).all()
    assert 0 < speech.audio_seconds <= MAX_SENTENCE_SECONDS


def test_no_sentence_asks_for_more_memory_than_its_bound(tiny, monkeypatch):
    # A crafted voice may have many channels and few samples a frame.
    monkeypatch.setattr(inference, "MAX_ACTIVATION", 40 * 16 * 32)
    speech = speak(
        tiny, "the birch canoe slid on the smooth planks", delivery=Delivery(speaking_rate=0.25)
    )
    assert speech.cut_short
    assert speech.durations.sum() <= 40 * 16 * 32 // 16


def test_a_voices_own_pace_may_go_beyond_what_a_user_may_ask(tiny):
    slow = tiny.with_weights({})
    slow.model.speaking_rate = 0.2
    assert speak(slow, "hi there").audio_seconds > 2 * speak(tiny, "hi there").audio_seconds
    with pytest.raises(InputError, match="speaking_rate"):
        speak(tiny, "hi there", delivery=Delivery(speaking_rate=0.2))


def test_noise_does_not_depend_on_how_many_rows_are_drawn():
    few, many = draw_noise((7, 0), 1, 5, 6), draw_noise((7, 0), 1, 500, 6)
    assert np.array_equal(few, many[:5])
    assert many.dtype == np.float32
    assert abs(many.mean()) < 0.1
    assert abs(many.std() - 1) < 0.1
    for other in (
        draw_noise((8, 0), 1, 5, 6),
        draw_noise((7, 1), 1, 5, 6),
        draw_noise((7, 0), 0, 5, 6),
    ):
        assert not np.isin(other, few).any()


def test_a_rhythm_does_what_the_whole_speech_would(tiny):
    """Durations alone, as another voice's timing, give the same samples."""
    voice = tiny
    pruned = prune(voice, PruneSpec(amount=0.5))
    text, said = "One two three. Four!", Delivery(speaking_rate=0.9)
    whole, rhythm = speak(voice, text, 4, said), predict_rhythm(voice, text, 4, said)
    assert (rhythm.durations == whole.durations).all()
    assert len(rhythm.waveform) == 0
    one, other = (speak(pruned, text, 4, said, timing=timing) for timing in (whole, rhythm))
    assert same(one, other)
