"""Durations by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vits_prune import speak
from vits_prune.measure.alarms import measure_rhythm, same_tokens

TEXT = "the birch canoe slid"


def with_durations(speech, durations):
    durations = np.array(durations)
    waveform = np.zeros(durations.sum() * speech.hop_length, np.float32)
    ids = tuple(range(len(durations)))
    sentence = dataclasses.replace(speech.sentences[0], durations=durations, ids=ids)
    return dataclasses.replace(
        speech, waveform=waveform, durations=durations, sentences=(sentence,)
    )


def test_ratio_drift_and_shift(tiny):
    spoken = speak(tiny, TEXT)
    first, second = with_durations(spoken, [2, 4, 1, 0]), with_durations(spoken, [4, 2, 1, 3])
    found = measure_rhythm(first, second)
    assert found.duration_ratio == pytest.approx(10 / 7)
    assert found.drift == pytest.approx((1 + 0.5 + 0 + 3) / 4)
    assert found.shift == pytest.approx((1 - 0.5 + 0 + 3) / 4)
    assert found.tokens == 4
    assert found.seconds == (first.audio_seconds, second.audio_seconds)


def test_the_same_speech_has_no_drift(tiny):
    spoken = speak(tiny, TEXT)
    found = measure_rhythm(spoken, spoken)
    assert (found.duration_ratio, found.drift, found.shift) == (1.0, 0.0, 0.0)


def test_other_tokens_leave_the_ratio_only(tiny, joe):
    one, two = speak(tiny, TEXT), speak(joe, TEXT)
    assert not same_tokens(one, two)
    found = measure_rhythm(one, two)
    assert found.drift is found.shift is None
    assert found.duration_ratio == pytest.approx(two.audio_seconds / one.audio_seconds)
