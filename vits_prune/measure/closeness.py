"""How far one speech is from another on the same text: spectrum, pitch and rhythm.

Spectrum and pitch are compared between sample-aligned waveforms, so no time warping is needed.
Sources: mel-cepstral distortion (Kubichek 1993), multi-resolution STFT distances (Yamamoto et al.
2020, arXiv:1910.11480).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vits_prune.measure.predictors import measure_visqol
from vits_prune.measure.waveform import PitchContour, finite, track_pitch
from vits_prune.synthesis.speak import Speech
from vits_prune.synthesis.spectra import mel_filter_bank, power_spectrum

MEL_BANDS = 80
MEL_COEFFICIENTS = 13
WINDOW_SECONDS = 0.046
"""Windows have the next power of two of samples: 1024 at 22,050 Hz and at 16,000 Hz."""
HIGHEST_HZ = 8_000.0
FLOOR = 1e-5
"""Smallest mel amplitude, -100 dB below full scale: less than one step of 16 bits."""
STFT_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""FFT, hop and window in samples, as in Parallel WaveGAN."""


@dataclass(frozen=True)
class Closeness:
    """Distances between two aligned sounds; 0 where they are the same."""

    mcd_db: float
    log_mel_db: float
    """Mean absolute difference of mel band levels."""
    spectral_convergence: float
    """Norm of the difference of STFT magnitudes over the norm of the first sound's, averaged over
    STFT_RESOLUTIONS."""
    log_stft_magnitude: float
    """Mean absolute difference of natural logs of STFT magnitudes, averaged likewise."""
    f0_rmse_cents: float | None
    """Root mean square difference of log F0 where both are voiced, in cents (1,200 per octave);
    None where they never are."""
    voicing_error: float | None
    """Share of frames, 0 to 1, that are voiced in one sound only; None if not measured."""
    voiced_frames: int
    """Frames of 16 ms that are voiced in both."""
    visqol: float | None = None
    """ViSQOL's opinion of the second sound beside the first, 1 to 5; None if not measured."""


@dataclass(frozen=True)
class Rhythm:
    """The durations of one speech against those of another on the same text."""

    first_seconds: float
    second_seconds: float
    duration_drift: float | None
    """Mean over tokens of |d' - d| / max(d, 1), d and d' the frames of a token in the first and
    second speech. None where the two read the text as different tokens."""
    duration_shift: float | None
    """Mean over tokens of (d' - d) / max(d, 1): stretched and shortened tokens cancel."""
    tokens: int
    """Tokens compared."""

    @property
    def duration_ratio(self) -> float:
        """Seconds of the second over seconds of the first."""
        return self.second_seconds / self.first_seconds


def measure_closeness(
    first: np.ndarray,
    second: np.ndarray,
    sampling_rate: int,
    *,
    contour: PitchContour | None = None,
    threads: int | None = None,
    pitch: bool = True,
    visqol: bool = False,
) -> Closeness:
    """Return the distances of the second sound, float [samples], from the first, as many.

    `contour` is that of the first, where it is known already; `threads` are of the F0 network;
    `pitch` and `visqol` ask for what needs a package that may not work.

    Raises:
        Unusable: ViSQOL was asked for and cannot be used.
    """
    if first.shape != second.shape:
        words = (
            "Closeness needs sounds of the same length: speak the second with the first's timing."
        )
        raise ValueError(words)
    one, two = finite(first), finite(second)
    mel = log_mel(one, sampling_rate), log_mel(two, sampling_rate)
    convergence, magnitude = multi_resolution_stft(one, two)
    melody: tuple[float | None, float | None, int] = None, None, 0
    if pitch:
        contour = contour or track_pitch(one, sampling_rate, threads)
        melody = compare_pitch(contour, track_pitch(two, sampling_rate, threads))
    levels = float(np.mean(np.abs(mel[0] - mel[1])) * 20 / np.log(10))
    opinion = measure_visqol(one, two, sampling_rate) if visqol else None
    distortion = mel_cepstral_distortion(*mel)
    return Closeness(distortion, levels, convergence, magnitude, *melody, visqol=opinion)


def log_mel(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Return natural logs of mel band amplitudes, float64 [MEL_BANDS, frames].

    Centred Hann windows of about 46 ms with a hop of a quarter, Slaney's mel scale from 0 to 8 kHz
    (or half the sampling rate), filters that sum to 1, at least FLOOR. A full-scale sine has an
    amplitude of 1/2 in its FFT bin.
    """
    size = 1 << int(np.ceil(np.log2(WINDOW_SECONDS * sampling_rate)))
    bank = mel_filter_bank(sampling_rate, size, MEL_BANDS, "slaney", HIGHEST_HZ)
    magnitudes = _magnitudes(torch.from_numpy(waveform).float(), size, size // 4, size)
    return np.log(np.maximum(bank @ (magnitudes.double().numpy() * 2 / size), FLOOR))


def mel_cepstral_distortion(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean over frames in dB, from the log-mel spectra of two sounds, [bands, frames].

    MCD = 10 / ln 10 * sqrt(2 * sum over d = 1 ... 13 of (c_d - c'_d)^2) (Kubichek 1993), where
    ln amplitude = c_0 + sum c_d cos(d w) over the mel-warped frequency w, so c_d is 2 / bands times
    the sum of the log amplitudes with that cosine. c_0, the level, is left out. With all
    coefficients this is the root mean square difference of the two spectra in dB, levels aside.
    Values from orthonormal MFCCs are sqrt(bands / 2) times larger.
    """
    from scipy.fft import dct

    cepstra = dct(first - second, type=2, axis=0)[1 : MEL_COEFFICIENTS + 1] / first.shape[0]
    return float(np.mean(10 / np.log(10) * np.sqrt(2 * np.sum(cepstra**2, axis=0))))


def multi_resolution_stft(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return spectral convergence and mean absolute difference of log magnitudes."""
    one, two = torch.from_numpy(first).float(), torch.from_numpy(second).float()
    convergences, differences = [], []
    for size, hop, window in STFT_RESOLUTIONS:
        a, b = (_magnitudes(sound, size, hop, window).clamp_min(1e-4) for sound in (one, two))
        convergences.append(float(torch.linalg.norm(a - b) / torch.linalg.norm(a)))
        differences.append(float((a.log() - b.log()).abs().mean()))
    return float(np.mean(convergences)), float(np.mean(differences))


def compare_pitch(first: PitchContour, second: PitchContour) -> tuple[float | None, float, int]:
    """Return log-F0 RMSE in cents where both are voiced, voicing error, frames voiced in both.

    An octave error of the tracker counts as 1,200 cents, in the noise floor too.
    """
    both = first.voiced & second.voiced
    error = float(np.mean(first.voiced != second.voiced))
    if not both.any():
        return None, error, 0
    cents = 1200 * np.log2(second.hertz[both] / first.hertz[both])
    return float(np.sqrt(np.mean(cents**2))), error, int(both.sum())


def measure_rhythm(first: Speech, second: Speech) -> Rhythm:
    """Compare the durations of two speeches, each with the voice's own timing."""
    seconds = first.audio_seconds, second.audio_seconds
    if not same_tokens(first, second):
        return Rhythm(*seconds, None, None, 0)
    # A token of a sentence that was cut short may have no frame.
    relative = (second.durations - first.durations) / np.maximum(first.durations, 1)
    drift, shift = float(np.mean(np.abs(relative))), float(np.mean(relative))
    return Rhythm(*seconds, drift, shift, len(relative))


def same_tokens(first: Speech, second: Speech) -> bool:
    """Return whether both voices read the text as the same tokens, at the same frame rate."""
    one, two = (
        (speech.hop_length / speech.sampling_rate, [s.ids for s in speech.sentences])
        for speech in (first, second)
    )
    return one == two


def _magnitudes(sound: torch.Tensor, size: int, hop: int, window: int) -> torch.Tensor:
    """Return float32 [size // 2 + 1, frames] of centred Hann windows."""
    # Zeros at the ends: a reflection needs more samples than the shortest speech has.
    padded = torch.nn.functional.pad(sound, (size // 2, size // 2))
    return power_spectrum(padded, size, hop, torch.hann_window(window)).sqrt()
