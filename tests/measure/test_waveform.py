"""Measures of one waveform: loudness by the standard, DNSMOS by the reference, spectrograms."""

from __future__ import annotations

import builtins
import warnings

import numpy as np
import pytest
from speechmos import dnsmos

from tests.forked import in_fork
from vits_prune import InputError, speak
from vits_prune.measure import waveform
from vits_prune.measure.waveform import (
    SILENCE_LUFS,
    at_16_khz,
    measure_dnsmos,
    measure_lufs,
)


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
    "samples",
    [
        np.zeros(22_050),
        np.full(22_050, np.nan),
        np.full(5, 1e-9),
        np.zeros(1),
        sine(1, 22_050, -90.0),
    ],
)
def test_silence(samples):
    assert measure_lufs(samples, 22_050) == SILENCE_LUFS


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


@pytest.fixture(scope="module")
def spoken(joe):
    """1.2 s at 16 kHz: one window, since every window takes the network a while."""
    speech = speak(joe, "Hop over the fence.")
    return np.resize(at_16_khz(speech.waveform, speech.sampling_rate), 19_200)


@pytest.mark.parametrize("seconds", [0.3, pytest.param(1.4, marks=pytest.mark.slow), 11.2])
def test_scores_equal_the_reference(spoken, seconds):
    """Repeated into one window, repeated into two, and long enough for two windows."""
    sound = np.resize(spoken, int(seconds * 16_000))
    expected = dnsmos.run(sound, 16_000)
    found = measure_dnsmos(sound, 16_000)
    for mine, theirs in ((found.sig, "sig_mos"), (found.bak, "bak_mos"), (found.ovrl, "ovrl_mos")):
        assert mine == pytest.approx(expected[theirs], abs=1e-5)


def test_noise_is_heard_and_threads_are_not(spoken):
    clean = measure_dnsmos(spoken, 16_000)
    noise = np.random.default_rng(0).normal(0, 0.02, len(spoken)).astype(np.float32)
    noisy = measure_dnsmos(spoken + noise, 16_000)
    assert noisy.bak < clean.bak - 0.5
    assert noisy.ovrl < clean.ovrl - 0.3
    assert measure_dnsmos(spoken, 16_000, threads=1) == clean


@pytest.mark.parametrize("samples", [np.zeros(0), np.full(1000, np.nan), np.full(30_000, 7.0)])
def test_broken_sound_gets_a_score(samples):
    assert np.isfinite([*vars(measure_dnsmos(samples, 22_050)).values()]).all()


def test_without_the_predictor_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(waveform.importlib.util, "find_spec", lambda name: None)

    def message():  # a forked process has no predictor that is open already
        with pytest.raises(InputError) as error:
            measure_dnsmos(np.zeros(100), 16_000)
        return str(error.value)

    assert "pip install speechmos" in in_fork(message)


def test_the_package_is_not_imported(monkeypatch, spoken):
    """Importing speechmos would need librosa and requests."""
    real = builtins.__import__

    def guarded(name, *rest):
        assert not name.startswith(("speechmos", "librosa"))
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert in_fork(lambda: measure_dnsmos(spoken, 16_000).ovrl) > 2


def test_a_forked_process_measures_too(spoken):
    """Threads that the parent started are not there."""
    expected = measure_dnsmos(spoken, 16_000, threads=2)
    assert in_fork(lambda: measure_dnsmos(spoken, 16_000, threads=2)) == expected
