"""Loudness against the values that the standard itself names."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from vits_prune.measure.signals import SILENCE_LUFS, measure_lufs


def sine(seconds, rate, level_db, hertz=997.0):
    time = np.arange(int(seconds * rate)) / rate
    return (10 ** (level_db / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
@pytest.mark.parametrize("level", [0.0, -20.0])
def test_a_sine_near_1_khz(rate, level):
    """ITU-R BS.1770: a 997 Hz sine at full scale in one channel reads -3.01 LKFS."""
    assert measure_lufs(sine(3, rate, level), rate) == pytest.approx(level - 3.01, abs=0.15)


def test_pauses_are_gated_out():
    tone = sine(2, 22_050, -20.0)
    gaps = np.concatenate([tone, np.zeros(5 * 22_050, np.float32)])
    assert measure_lufs(gaps, 22_050) == pytest.approx(measure_lufs(tone, 22_050), abs=0.5)


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.399])
def test_short_speech(seconds):
    assert measure_lufs(sine(seconds, 22_050, -10.0), 22_050) == pytest.approx(-13.01, abs=0.6)


@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros(22_050),
        np.full(22_050, np.nan),
        np.full(5, 1e-9),
        np.zeros(1),
        sine(1, 22_050, -90.0),
    ],
)
def test_silence(waveform):
    assert measure_lufs(waveform, 22_050) == SILENCE_LUFS


def test_what_other_threads_are_warned_of_is_left_alone(monkeypatch):
    """The filters of warnings belong to the process."""
    before, seen = list(warnings.filters), []

    class Meter:
        def __init__(self, rate, block_size):
            seen.append(list(warnings.filters))

        def integrated_loudness(self, samples):
            return -20.0

    monkeypatch.setattr("pyloudnorm.Meter", Meter)
    assert measure_lufs(sine(1, 16_000, -20.0), 16_000) == -20.0
    assert seen == [before]
