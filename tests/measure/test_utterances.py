"""What is heard of one utterance, and that the same samples are not listened to twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vits_prune import speak
from vits_prune.measure import utterances
from vits_prune.measure.recognition import Recogniser
from vits_prune.measure.utterances import Listener, measure_utterance

TEXT = "the birch canoe slid"
LISTENER = Listener(("rhythm", "loudness"), Recogniser(), "en", None)


@pytest.fixture(scope="module")
def speech(tiny):
    return speak(tiny, TEXT)


def test_the_same_samples_give_the_numbers_of_listening_again(speech, monkeypatch):
    first = measure_utterance(speech, TEXT, LISTENER)
    same = dataclasses.replace(speech, waveform=speech.waveform.copy())
    with monkeypatch.context() as patch:
        patch.setattr(utterances, "_hear", None)  # not called
        reused = measure_utterance(same, TEXT, LISTENER, (speech, first))
    with monkeypatch.context() as patch:
        patch.setattr(utterances.np, "array_equal", lambda *_: False)
        again = measure_utterance(same, TEXT, LISTENER, (speech, first))
    assert dataclasses.asdict(reused) == dataclasses.asdict(again)
    assert reused.rhythm.duration_ratio == 1.0
    assert first.rhythm is None


def test_other_samples_are_listened_to(speech):
    first = measure_utterance(speech, TEXT, LISTENER)
    for change in (
        {"waveform": speech.waveform * np.float32(0.5)},
        {"sampling_rate": 2 * speech.sampling_rate},
    ):
        other = dataclasses.replace(speech, **change)
        found = measure_utterance(other, TEXT, LISTENER, (speech, first))
        assert found.lufs == utterances._hear(other, TEXT, LISTENER).lufs
        assert found.lufs != first.lufs


def test_alarms_and_rhythm_are_of_this_utterance(speech):
    """An untouched voice that was cut short, or whose durations differ, says so although its samples are known."""
    first = measure_utterance(speech, TEXT, LISTENER)
    longer = dataclasses.replace(speech, cut_short=True)
    found = measure_utterance(longer, TEXT, LISTENER, (speech, first))
    assert "runaway" in " ".join(alarm.kind for alarm in found.alarms)
    assert found.closeness is None
