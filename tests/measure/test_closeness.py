"""Distances against transformers, librosa, auraloss and theory; durations by hand."""

from __future__ import annotations

import dataclasses

import auraloss
import numpy as np
import pytest
import torch
from scipy.fft import dct
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from vits_prune import speak
from vits_prune.measure.closeness import (
    MEL_BANDS,
    MEL_COEFFICIENTS,
    compare_pitch,
    log_mel,
    measure_closeness,
    measure_rhythm,
    mel_cepstral_distortion,
    multi_resolution_stft,
    same_tokens,
)
from vits_prune.measure.waveform import PitchContour, track_pitch

RATE = 22_050


@pytest.fixture(scope="module")
def pair(joe):
    """Two sample-aligned renditions."""
    first = speak(joe, "A rod is used to catch pink salmon.", 0)
    second = speak(joe, "A rod is used to catch pink salmon.", 1, timing=first)
    return first.waveform.astype(np.float64), second.waveform.astype(np.float64)


def log_bands(filters, magnitudes):
    """Return log levels, as this library defines them."""
    shares = filters / filters.sum(axis=1, keepdims=True)
    return np.log(np.maximum(shares @ (magnitudes * 2 / 1024), 1e-5))


def by_transformers(waveform):
    filters = mel_filter_bank(513, MEL_BANDS, 0, 8000, RATE, norm=None, mel_scale="slaney").T
    window = window_function(1024, "hann")
    return log_bands(filters, spectrogram(waveform, window, 1024, 256, pad_mode="constant"))


def by_librosa(waveform):
    import librosa  # takes seconds

    bands = {"n_mels": MEL_BANDS, "fmin": 0, "fmax": 8000, "norm": None, "dtype": np.float64}
    filters = librosa.filters.mel(sr=RATE, n_fft=1024, **bands)
    spectrum = librosa.stft(waveform, n_fft=1024, hop_length=256, pad_mode="constant")
    return log_bands(filters, np.abs(spectrum))


LIBRARIES = [by_transformers, pytest.param(by_librosa, marks=pytest.mark.slow)]


@pytest.mark.parametrize("log_mel_of", LIBRARIES)
def test_log_mel_equals_that_of_other_libraries(pair, log_mel_of):
    assert log_mel(pair[0], RATE) == pytest.approx(log_mel_of(pair[0]), abs=2e-3)


@pytest.mark.parametrize("log_mel_of", LIBRARIES)
def test_mel_cepstral_distortion_equals_that_of_orthonormal_mfccs(pair, log_mel_of):
    """They are sqrt(bands / 2) times the coefficients of the definition."""
    mfccs = [dct(log_mel_of(w), norm="ortho", axis=0)[1 : MEL_COEFFICIENTS + 1] for w in pair]
    difference = (mfccs[0] - mfccs[1]) / np.sqrt(MEL_BANDS / 2)
    expected = np.mean(10 / np.log(10) * np.sqrt(2 * np.sum(difference**2, axis=0)))
    found = mel_cepstral_distortion(*(log_mel(w, RATE) for w in pair))
    assert found == pytest.approx(expected, rel=1e-3)
    assert 0.5 < found < 4


def test_mel_cepstral_distortion_of_known_spectra():
    """A ripple of 1 dB has a root mean square of 1 / sqrt(2) dB. A level does not count."""
    ripple = np.cos(5 * np.pi * (np.arange(MEL_BANDS) + 0.5) / MEL_BANDS)[:, None] * np.log(10) / 20
    flat = np.zeros((MEL_BANDS, 7))
    assert mel_cepstral_distortion(flat, flat + ripple) == pytest.approx(1 / np.sqrt(2))
    assert mel_cepstral_distortion(flat, flat + 3.0) == pytest.approx(0.0, abs=1e-12)
    high = np.cos((MEL_COEFFICIENTS + 1) * np.pi * (np.arange(MEL_BANDS) + 0.5) / MEL_BANDS)[
        :, None
    ]
    assert mel_cepstral_distortion(flat, flat + high) == pytest.approx(0.0, abs=1e-12)


def test_stft_distance_equals_auraloss(pair):
    convergence, magnitude = multi_resolution_stft(*pair)
    # auraloss pads by reflection: silence around the sound makes the two the same.
    sounds = [torch.from_numpy(np.pad(w, 4096)).float()[None, None] for w in pair]
    options = {
        "fft_sizes": [1024, 2048, 512],
        "hop_sizes": [120, 240, 50],
        "win_lengths": [600, 1200, 240],
        "eps": 1e-8,
    }
    theirs = auraloss.freq.MultiResolutionSTFTLoss(
        **options, w_sc=1.0, w_log_mag=0.0, w_lin_mag=0.0
    )
    assert convergence == pytest.approx(float(theirs(sounds[1], sounds[0])), rel=2e-3)
    padded = multi_resolution_stft(*(np.pad(w, 4096) for w in pair))
    theirs = auraloss.freq.MultiResolutionSTFTLoss(
        **options, w_sc=0.0, w_log_mag=1.0, w_lin_mag=0.0
    )
    assert padded[1] == pytest.approx(float(theirs(sounds[1], sounds[0])), rel=2e-3)
    assert magnitude > padded[1]


def harmonics(hertz, seconds=1.5):
    """A voice-like tone, with F0 given as a function of time."""
    time = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(hertz(time)) / RATE
    return 0.2 * sum(np.sin(k * phase) / k for k in range(1, 9))


def test_melody_of_known_pitch():
    found = track_pitch(harmonics(lambda t: 110 * 2 ** (t / 1.5)), RATE)
    inside = slice(5, -5)
    times = np.arange(len(found.hertz)) * 0.016
    assert found.voiced[inside].all()
    assert 1200 * np.abs(np.log2(found.hertz / (110 * 2 ** (times / 1.5))))[inside].max() < 25
    assert not track_pitch(np.random.default_rng(0).normal(0, 0.1, RATE), RATE).voiced.any()
    assert not track_pitch(np.zeros(RATE), RATE).voiced.any()


@pytest.mark.slow
def test_melody_of_real_speech_agrees_with_yin(pair):
    """librosa's YIN is another algorithm. They agree where the voice is steady."""
    import librosa

    found = track_pitch(pair[0], RATE)
    hertz = librosa.yin(
        librosa.resample(pair[0], orig_sr=RATE, target_sr=16_000),
        fmin=50,
        fmax=400,
        sr=16_000,
        hop_length=256,
        frame_length=1024,
    )
    frames = min(len(hertz), len(found.hertz))
    voiced = found.voiced[:frames]
    apart = 1200 * np.abs(np.log2(hertz[:frames][voiced] / found.hertz[:frames][voiced]))
    assert voiced.sum() > 30
    assert np.median(apart) < 35
    assert np.mean(apart < 100) > 0.7


def test_melodies_by_hand():
    first = PitchContour(
        np.array([100.0, 100.0, 100.0, 100.0]), np.array([True, True, True, False])
    )
    second = PitchContour(
        np.array([100.0, 200.0, 90.0, 100.0]), np.array([True, True, False, False])
    )
    cents, error, both = compare_pitch(first, second)
    assert cents == pytest.approx(np.sqrt((0 + 1200**2) / 2))
    assert (error, both) == (0.25, 2)
    silent = PitchContour(np.zeros(4), np.zeros(4, bool))
    assert compare_pitch(first, silent) == (None, 0.75, 0)


def test_a_tone_a_semitone_up():
    low, high = (
        harmonics(lambda _t, f=f: np.full(int(1.5 * RATE), f))
        for f in (120.0, 120.0 * 2 ** (1 / 12))
    )
    found = measure_closeness(low, high, RATE)
    assert found.f0_rmse_cents == pytest.approx(100, abs=10)
    assert found.voicing_error < 0.03


def test_the_same_sound_is_at_no_distance(pair):
    found = measure_closeness(pair[0], pair[0], RATE)
    assert found.voiced_frames > 30
    distances = [value for name, value in vars(found).items() if name != "voiced_frames"]
    assert distances == [*[0.0] * 6, None], "ViSQOL is measured where it is asked for"


def test_half_the_level(pair):
    found = measure_closeness(pair[0], 0.5 * pair[0], RATE)
    assert found.spectral_convergence == pytest.approx(0.5, abs=0.01)
    assert 3 < found.log_mel_db < 6.03  # less than 6.02 where pauses lie under the floor
    noise = np.random.default_rng(0).normal(0, 0.1, RATE)
    steady = measure_closeness(noise, 0.5 * noise, RATE)
    assert steady.log_mel_db == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert steady.log_stft_magnitude == pytest.approx(np.log(2), abs=1e-3)
    assert steady.mcd_db == pytest.approx(0.0, abs=1e-3)
    assert found.voicing_error < 0.05


def test_a_melody_known_already_changes_nothing(pair):
    assert measure_closeness(*pair, RATE, contour=track_pitch(pair[0], RATE)) == measure_closeness(
        *pair, RATE
    )


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("samples", [1, 300, 9_000])
def test_any_rate_and_length(rate, samples):
    sound = np.random.default_rng(1).normal(0, 0.1, samples)
    found = measure_closeness(sound, np.full(samples, np.nan), rate)
    assert np.isfinite(
        [found.mcd_db, found.log_mel_db, found.spectral_convergence, found.log_stft_magnitude]
    ).all()
    assert found.log_mel_db > 10


def test_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match="same length"):
        measure_closeness(np.zeros(5), np.zeros(6), RATE)


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
    assert found.duration_drift == pytest.approx((1 + 0.5 + 0 + 3) / 4)
    assert found.duration_shift == pytest.approx((1 - 0.5 + 0 + 3) / 4)
    assert found.tokens == 4


def test_the_same_speech_has_no_drift(tiny):
    spoken = speak(tiny, TEXT)
    found = measure_rhythm(spoken, spoken)
    assert (found.duration_ratio, found.duration_drift, found.duration_shift) == (1.0, 0.0, 0.0)


def test_other_tokens_leave_the_ratio_only(tiny, joe):
    one, two = speak(tiny, TEXT), speak(joe, TEXT)
    assert not same_tokens(one, two)
    found = measure_rhythm(one, two)
    assert found.duration_drift is found.duration_shift is None
    assert found.duration_ratio == pytest.approx(two.audio_seconds / one.audio_seconds)
