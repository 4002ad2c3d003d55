"""DNSMOS against Microsoft's reference implementation."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from speechmos import dnsmos

from tests.forked import in_fork
from vits_prune import InputError, speak
from vits_prune.measure import naturalness
from vits_prune.measure.naturalness import measure_dnsmos
from vits_prune.measure.signals import at_16_khz


@pytest.fixture(scope="module")
def spoken(joe):
    """1.2 s at 16 kHz: one window, since every window takes the network a while."""
    speech = speak(joe, "Hop over the fence.")
    return np.resize(at_16_khz(speech.waveform, speech.sampling_rate), 19_200)


@pytest.mark.parametrize(("seconds", "windows"), [(0.3, 1), (1.4, 2), (11.2, 2)])
def test_scores_equal_the_reference(spoken, seconds, windows):
    """Short enough to be repeated, repeated into several windows, and long enough for several of its own."""
    sound = np.resize(spoken, int(seconds * 16_000))
    assert len(naturalness._windows(sound)) == windows
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


@pytest.mark.parametrize("waveform", [np.zeros(0), np.full(1000, np.nan), np.full(30_000, 7.0)])
def test_broken_sound_gets_a_score(waveform):
    assert np.isfinite([*vars(measure_dnsmos(waveform, 22_050)).values()]).all()


def test_without_the_predictor_it_says_what_to_install(monkeypatch):
    naturalness._sessions.clear()
    monkeypatch.setattr(naturalness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install speechmos"):
        measure_dnsmos(np.zeros(100), 16_000)


def test_the_package_is_not_imported(monkeypatch, spoken):
    """Importing speechmos would need librosa and requests."""
    naturalness._sessions.clear()
    real = builtins.__import__

    def guarded(name, *rest):
        assert not name.startswith(("speechmos", "librosa"))
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert measure_dnsmos(spoken, 16_000).ovrl > 2


def test_a_forked_process_measures_too(spoken):
    """Threads that the parent started are not there."""
    expected = measure_dnsmos(spoken, 16_000, threads=2)
    assert in_fork(lambda: measure_dnsmos(spoken, 16_000, threads=2)) == expected
