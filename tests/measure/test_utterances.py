"""One utterance: failures on made signals and on a real voice pruned until it breaks; reuse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vits_prune import PruneSpec, prune, speak
from vits_prune.measure import utterances
from vits_prune.measure.closeness import Closeness, Rhythm, measure_rhythm
from vits_prune.measure.quality import METRICS
from vits_prune.measure.recognition import Recogniser, measure_word_errors
from vits_prune.measure.utterances import (
    FAILURES,
    Listener,
    Utterance,
    measure_utterance,
    rhythm_failures,
    sound_failures,
    word_failures,
)
from vits_prune.measure.waveform import Dnsmos, buzz_share, clipped_samples

RATE, HOP = 22_050, 256
TEXT = "Help the woman get back to her feet."


@pytest.fixture(scope="module")
def spoken(joe):
    return speak(joe, TEXT)


def kinds(failures):
    assert all(failure.kind in FAILURES and failure.detail for failure in failures)
    return {failure.kind for failure in failures}


def with_sound(speech, waveform):
    return dataclasses.replace(speech, waveform=np.asarray(waveform, dtype=np.float32))


def test_real_speech_raises_none(joe, spoken):
    assert kinds(sound_failures(spoken)) == set()
    other = speak(joe, TEXT, 5)
    assert (
        kinds(
            sound_failures(other)
            + rhythm_failures(measure_rhythm(spoken, other).duration_ratio, other.cut_short)
        )
        == set()
    )


def test_not_a_number(spoken):
    broken = spoken.waveform.copy()
    broken[100] = np.nan
    broken[200] = np.inf
    (failure,) = sound_failures(with_sound(spoken, broken))
    assert failure.kind == "not a number"
    assert failure.detail.startswith("2 of ")


def test_clipping(spoken):
    assert kinds(sound_failures(with_sound(spoken, np.clip(20 * spoken.waveform, -1, 1)))) == {
        "clipping"
    }
    assert (
        kinds(sound_failures(with_sound(spoken, spoken.waveform / np.abs(spoken.waveform).max())))
        == set()
    )
    assert (
        clipped_samples(np.array([1.0, -1.0, 1.0, 0.5, 1.0, 1.0, 0.0, -1.0, -1.0, -1.0, -1.0])) == 7
    )


@pytest.mark.parametrize("level", [0.0, 0.001])
def test_silence(spoken, level):
    noise = level * np.random.default_rng(0).normal(size=len(spoken.waveform))
    assert kinds(sound_failures(with_sound(spoken, noise))) == {"silence"}
    assert kinds(sound_failures(with_sound(spoken, [0.0]))) == {"silence"}


def test_buzz_is_what_repeats_with_the_frame():
    """An exact repeat, the same with noise, noise alone, and tones at other pitches."""
    generator = np.random.default_rng(2)
    frame = generator.normal(0, 0.1, HOP)
    tone, noise = np.tile(frame, 200), generator.normal(0, 0.1, 200 * HOP)
    assert buzz_share(tone, HOP) == 1.0
    assert buzz_share(tone + 0.5 * noise, HOP) == 1.0
    assert buzz_share(noise, HOP) == 0.0
    assert buzz_share(np.concatenate([tone, noise]), HOP) == pytest.approx(0.5, abs=0.02)
    time = np.arange(200 * HOP) / RATE
    for hertz in (100.0, 130.0, 200.0):
        assert (
            buzz_share(sum(np.sin(2 * np.pi * k * hertz * time) for k in range(1, 10)), HOP) == 0.0
        )
    assert buzz_share(np.zeros(200 * HOP), HOP) == buzz_share(np.zeros(5), HOP) == 0.0


def test_buzz_of_the_original_is_no_failure(spoken):
    tone = with_sound(spoken, np.tile(np.random.default_rng(2).normal(0, 0.1, HOP), 100))
    assert kinds(sound_failures(tone)) == {"buzz"}
    assert kinds(sound_failures(tone, buzz_of_original=0.9)) == set()


def test_a_broken_decoder_buzzes(joe, spoken):
    broken = prune(joe, PruneSpec(scope="global", amount=0.8, parts=("decoder",)))
    assert kinds(sound_failures(speak(broken, TEXT, timing=spoken))) >= {"buzz", "silence"}
    whole = prune(joe, PruneSpec(scope="global", amount=0.7))
    assert kinds(sound_failures(speak(whole, TEXT, timing=spoken))) >= {"buzz"}


def test_durations_that_run_away(joe, spoken):
    pruned = prune(joe, PruneSpec(scope="local", amount=0.6))
    own = speak(pruned, TEXT)
    assert kinds(rhythm_failures(measure_rhythm(spoken, own).duration_ratio, own.cut_short)) == {
        "runaway"
    }


@pytest.mark.parametrize(
    ("ratio", "cut_short", "expected"),
    [
        (1.49, False, set()),
        (0.67, False, set()),
        (1.51, False, {"runaway"}),
        (1.0, True, {"runaway"}),
        (0.66, False, {"collapsed"}),
    ],
)
def test_durations(ratio, cut_short, expected):
    assert kinds(rhythm_failures(ratio, cut_short)) == expected


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (TEXT, set()),
        ("help the women get back to a feet", set()),
        ("help the woman get back to her", set()),
        ("help the get back to", {"dropped words"}),
        ("", {"dropped words"}),
        ("help the woman the woman get back to her feet", {"repeated words"}),
        ("help the woman get back to her feet feet", {"repeated words"}),
        ("help help help the woman get back to her feet", {"repeated words"}),
        ("help the woman please get back to her feet", set()),
    ],
)
def test_words(heard, expected):
    assert kinds(word_failures(measure_word_errors(TEXT, heard, "en"))) == expected


def test_what_the_recogniser_misses_of_the_original_too_is_no_failure():
    original = measure_word_errors(TEXT, "help the get back to feet", "en")
    assert kinds(word_failures(original)) == {"dropped words"}
    assert word_failures(original, original) == ()
    repeated = measure_word_errors(TEXT, "help help the woman get back to her feet", "en")
    assert word_failures(repeated, repeated) == ()


LETTERS = "the birch canoe slid"
LISTENER = Listener(("rhythm", "loudness"), Recogniser(), "en", predictors=("pyloudnorm",))


@pytest.fixture(scope="module")
def speech(tiny):
    return speak(tiny, LETTERS)


def test_the_same_samples_are_not_measured_twice(speech, monkeypatch):
    first = measure_utterance(speech, LETTERS, LISTENER)
    same = dataclasses.replace(speech, waveform=speech.waveform.copy())
    with monkeypatch.context() as patch:
        patch.setattr(utterances, "measure_lufs", None)  # not called
        reused = measure_utterance(same, LETTERS, LISTENER, (speech, first))
    assert (reused.lufs, reused.buzz) == (first.lufs, first.buzz)
    assert reused.rhythm.duration_ratio == 1.0
    assert first.rhythm is None


def test_other_samples_are_measured(speech):
    first = measure_utterance(speech, LETTERS, LISTENER)
    for change in (
        {"waveform": speech.waveform * np.float32(0.5)},
        {"sampling_rate": 2 * speech.sampling_rate},
    ):
        other = dataclasses.replace(speech, **change)
        found = measure_utterance(other, LETTERS, LISTENER, (speech, first))
        assert found.lufs == measure_utterance(other, LETTERS, LISTENER).lufs
        assert found.lufs != first.lufs


def test_failures_and_rhythm_are_of_this_utterance(speech):
    """The same samples with other durations, or cut short, fail although they are known."""
    first = measure_utterance(speech, LETTERS, LISTENER)
    longer = dataclasses.replace(speech, cut_short=True)
    found = measure_utterance(longer, LETTERS, LISTENER, (speech, first))
    assert "runaway" in kinds(found.failures)
    assert found.closeness is None


def test_every_metric_has_a_source():
    """Pairs of a made-up utterance, and (0, 0) of one without measurements."""
    utterance = Utterance(
        transcript="go",
        words=measure_word_errors("go on then", "go on", "en"),
        dnsmos=Dnsmos(1.5, 2.5, 3.5),
        lufs=-20.0,
        buzz=0.0,
        rhythm=Rhythm(2.0, 3.0, 0.5, -0.25, 4),
        closeness=Closeness(1.0, 2.0, 3.0, 4.0, None, 0.5, 0, 4.5),
        distillmos=3.25,
        speaker_similarity=0.875,
    )
    pairs = {name: utterance.pair(name) for name in METRICS}
    assert pairs["wer"] == (1.0, 3.0)
    assert pairs["cer"] == (5.0, 10.0)
    assert pairs["dnsmos_ovrl"] == (3.5, 1.0)
    assert pairs["duration_ratio"] == (3.0, 2.0)
    assert (pairs["duration_drift"], pairs["duration_shift"]) == ((0.5, 1.0), (-0.25, 1.0))
    assert (pairs["mcd_db"], pairs["voicing_error"]) == ((1.0, 1.0), (0.5, 1.0))
    assert pairs["lufs"] == (-20.0, 1.0)
    new = ("distillmos", "visqol", "speaker_similarity")
    assert [pairs[name] for name in new] == [(3.25, 1.0), (4.5, 1.0), (0.875, 1.0)]
    assert [name for name, pair in pairs.items() if pair == (0.0, 0.0)] == ["f0_rmse_cents"]
    nothing = Utterance(None, None, None, None, 0.0)
    assert {nothing.pair(name) for name in METRICS} == {(0.0, 0.0)}
