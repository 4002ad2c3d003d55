"""What is heard of one utterance, and that the same samples are not listened to twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vits_prune import speak
from vits_prune.measure import utterances as takes
from vits_prune.measure.recognition import Recogniser
from vits_prune.measure.utterances import Ear, listen

TEXT = "the birch canoe slid"
EAR = Ear(("rhythm", "loudness"), Recogniser(), "en", None)


@pytest.fixture(scope="module")
def speech(tiny):
    return speak(tiny, TEXT)


def test_the_same_samples_give_the_numbers_of_listening_again(speech, monkeypatch):
    first = listen(speech, TEXT, EAR)
    same = dataclasses.replace(speech, waveform=speech.waveform.copy())
    with monkeypatch.context() as patch:
        patch.setattr(takes, "_hear", None)  # not called
        reused = listen(same, TEXT, EAR, (speech, first))
    with monkeypatch.context() as patch:
        patch.setattr(takes.np, "array_equal", lambda *_: False)
        again = listen(same, TEXT, EAR, (speech, first))
    assert dataclasses.asdict(reused) == dataclasses.asdict(again)
    assert reused.rhythm.duration_ratio == 1.0
    assert first.rhythm is None


def test_other_samples_are_listened_to(speech):
    first = listen(speech, TEXT, EAR)
    for change in (
        {"waveform": speech.waveform * np.float32(0.5)},
        {"sampling_rate": 2 * speech.sampling_rate},
    ):
        other = dataclasses.replace(speech, **change)
        found = listen(other, TEXT, EAR, (speech, first))
        assert found.lufs == takes._hear(other, TEXT, EAR).lufs
        assert found.lufs != first.lufs


def test_alarms_and_rhythm_are_of_this_utterance(speech):
    """An untouched voice that was cut short, or whose durations differ, says so although its samples are known."""
    first = listen(speech, TEXT, EAR)
    longer = dataclasses.replace(speech, cut_short=True)
    found = listen(longer, TEXT, EAR, (speech, first))
    assert "runaway" in " ".join(alarm.kind for alarm in found.alarms)
    assert found.closeness is None
