"""Log spectrograms in decibels of a full-scale sine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vits_prune import speak
from vits_prune.measure.signals import measure_spectrogram


@pytest.fixture(scope="module")
def template(tiny):
    return speak(tiny, "go")


def sound(template, waveform, rate=16_000):
    return dataclasses.replace(
        template, waveform=np.asarray(waveform, dtype=np.float32), sampling_rate=rate
    )


def test_a_full_scale_sine_is_at_zero_decibels(template):
    sine = sound(template, np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000))
    picture = measure_spectrogram(sine)
    assert picture.decibels.shape[0] == 513
    middle = picture.decibels[:, picture.decibels.shape[1] // 2]
    assert middle.argmax() == 1_000 * 1024 // 16_000
    assert middle.max() == pytest.approx(0, abs=0.01)
    assert middle[300] < -80
    assert (picture.seconds, picture.highest_hz) == (1.0, 8_000)
    half = measure_spectrogram(sound(template, sine.waveform / 2)).decibels[
        :, picture.decibels.shape[1] // 2
    ]
    assert half.max() == pytest.approx(-6.02, abs=0.02)


@pytest.mark.parametrize("samples", [1, 100, 5_000, 307_199, 307_200, 400_000, 1_200_000])
def test_no_more_frames_than_asked(template, samples):
    picture = measure_spectrogram(sound(template, np.zeros(samples)), most_frames=1200)
    assert 1 <= picture.decibels.shape[1] <= 1200
    assert picture.decibels.dtype == np.float32
    assert (picture.decibels == -100).all()


def test_samples_that_are_not_numbers(template):
    picture = measure_spectrogram(sound(template, [np.nan] * 2_000 + [0.5] * 2_000))
    assert np.isfinite(picture.decibels).all()
    assert picture.decibels.max() > -20
