"""Alarms on made signals, and on the real voice pruned until it breaks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vits_prune import PruneSpec, prune, speak
from vits_prune.measure.alarms import (
    KINDS,
    Rhythm,
    buzz_share,
    clipped_samples,
    measure_rhythm,
    rhythm_alarms,
    sound_alarms,
    word_alarms,
)
from vits_prune.measure.recognition import measure_word_errors

RATE, HOP = 22_050, 256
TEXT = "Help the woman get back to her feet."


@pytest.fixture(scope="module")
def spoken(joe):
    return speak(joe, TEXT)


def kinds(alarms):
    assert all(alarm.kind in KINDS and alarm.detail for alarm in alarms)
    return {alarm.kind for alarm in alarms}


def with_sound(speech, waveform):
    return dataclasses.replace(speech, waveform=np.asarray(waveform, dtype=np.float32))


def test_real_speech_raises_none(joe, spoken):
    assert kinds(sound_alarms(spoken)) == set()
    other = speak(joe, TEXT, 5)
    assert (
        kinds(sound_alarms(other) + rhythm_alarms(measure_rhythm(spoken, other), other.cut_short))
        == set()
    )


def test_not_a_number(spoken):
    broken = spoken.waveform.copy()
    broken[100] = np.nan
    broken[200] = np.inf
    (alarm,) = sound_alarms(with_sound(spoken, broken))
    assert alarm.kind == "not a number"
    assert alarm.detail.startswith("2 of ")


def test_clipping(spoken):
    assert kinds(sound_alarms(with_sound(spoken, np.clip(20 * spoken.waveform, -1, 1)))) == {
        "clipping"
    }
    assert (
        kinds(sound_alarms(with_sound(spoken, spoken.waveform / np.abs(spoken.waveform).max())))
        == set()
    )
    assert (
        clipped_samples(np.array([1.0, -1.0, 1.0, 0.5, 1.0, 1.0, 0.0, -1.0, -1.0, -1.0, -1.0])) == 7
    )


@pytest.mark.parametrize("level", [0.0, 0.001])
def test_silence(spoken, level):
    noise = level * np.random.default_rng(0).normal(size=len(spoken.waveform))
    assert kinds(sound_alarms(with_sound(spoken, noise))) == {"silence"}
    assert kinds(sound_alarms(with_sound(spoken, [0.0]))) == {"silence"}


def test_buzz_is_what_repeats_with_the_frame():
    """An exact repeat, the same under noise, noise alone, and a voice whose pitch is not the frame rate."""
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


def test_buzz_of_the_original_is_no_alarm(spoken):
    tone = with_sound(spoken, np.tile(np.random.default_rng(2).normal(0, 0.1, HOP), 100))
    assert kinds(sound_alarms(tone)) == {"buzz"}
    assert kinds(sound_alarms(tone, buzz_of_original=0.9)) == set()


def test_a_broken_decoder_buzzes(joe, spoken):
    broken = prune(joe, PruneSpec(scope="global", amount=0.8, parts=("decoder",)))
    assert kinds(sound_alarms(speak(broken, TEXT, timing=spoken))) >= {"buzz", "silence"}
    whole = prune(joe, PruneSpec(scope="global", amount=0.7))
    assert kinds(sound_alarms(speak(whole, TEXT, timing=spoken))) >= {"buzz"}


def test_durations_that_run_away(joe, spoken):
    pruned = prune(joe, PruneSpec(scope="local", amount=0.6))
    own = speak(pruned, TEXT)
    assert kinds(rhythm_alarms(measure_rhythm(spoken, own), own.cut_short)) == {"runaway"}


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
    assert kinds(rhythm_alarms(Rhythm(ratio, (1.0, ratio), None, None, 0), cut_short)) == expected


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
    assert kinds(word_alarms(measure_word_errors(TEXT, heard, "en"))) == expected


def test_what_the_recogniser_misses_of_the_original_too_is_no_alarm():
    original = measure_word_errors(TEXT, "help the get back to feet", "en")
    assert kinds(word_alarms(original)) == {"dropped words"}
    assert word_alarms(original, original) == ()
    repeated = measure_word_errors(TEXT, "help help the woman get back to her feet", "en")
    assert word_alarms(repeated, repeated) == ()
