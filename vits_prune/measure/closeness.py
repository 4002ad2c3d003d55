"""How far one sound is from another that it is sample-aligned with: spectrum, melody, voicing. No time warping: none is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vits_prune.caches import Bounded
from vits_prune.measure.signals import RATE, at_16_khz
from vits_prune.synthesis.spectra import mel_filter_bank, power_spectrum

if TYPE_CHECKING:
    import torch
    from swift_f0 import SwiftF0

MEL_BANDS = 80
MEL_COEFFICIENTS = 13
WINDOW_SECONDS = 0.046
"""Windows of the next power of two of samples: 1024 at 22,050 Hz and at 16,000 Hz; a quarter of that is the hop."""
HIGHEST_HZ = 8_000.0
FLOOR = 1e-5
"""Smallest mel amplitude told apart from silence, -100 dB below full scale: what lies under the least step of 16 bits nobody hears."""
STFT_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""FFT, hop and window in samples, those of Parallel WaveGAN (Yamamoto et al. 2020, arXiv:1910.11480)."""
F0_RANGE_HZ = (50.0, 600.0)
_VOICED = 0.5
_detectors: Bounded[int | None, SwiftF0] = Bounded(2, lambda _: 1, survives_fork=False)


@dataclass(frozen=True)
class Closeness:
    """Distances between two aligned sounds; 0 where they are the same."""

    mcd_db: float
    """Mel-cepstral distortion."""
    log_mel_db: float
    """Mean absolute difference of mel band levels."""
    spectral_convergence: float
    """Norm of the difference of STFT magnitudes over the norm of the first sound's, averaged over three resolutions."""
    log_stft_magnitude: float
    """Mean absolute difference of the natural logs of STFT magnitudes, averaged over three resolutions."""
    f0_rmse_cents: float | None
    """Root mean square difference of log F0 where both are voiced, in cents (1,200 to the octave); None where they never are."""
    voicing_error: float
    """Share of frames, 0 to 1, that are voiced in one sound only."""
    voiced_frames: int
    """Frames of 16 ms that are voiced in both."""


@dataclass(frozen=True, eq=False)
class Melody:
    """Fundamental frequency over time."""

    hertz: np.ndarray
    """float64 [frames of 16 ms]."""
    voiced: np.ndarray
    """bool [frames]."""


def measure_closeness(
    first: np.ndarray,
    second: np.ndarray,
    sampling_rate: int,
    *,
    melody: Melody | None = None,
    threads: int | None = None,
) -> Closeness:
    """Distances of the second sound from the first.

    Args:
        first: float [samples].
        second: float [samples], as many.
        sampling_rate: of both.
        melody: that of the first where it is known already.
        threads: of the F0 network; None for its own choice.
    """
    if first.shape != second.shape:
        raise ValueError(
            "Closeness is between two sounds of the same length: speak the second with the first's timing."
        )
    one, two = _finite(first), _finite(second)
    mel = log_mel(one, sampling_rate), log_mel(two, sampling_rate)
    convergence, magnitude = multi_resolution_stft(one, two)
    cents, error, both = compare_melodies(
        melody or track_melody(one, sampling_rate, threads),
        track_melody(two, sampling_rate, threads),
    )
    return Closeness(
        mcd_db=mel_cepstral_distortion(*mel),
        log_mel_db=float(np.mean(np.abs(mel[0] - mel[1])) * 20 / np.log(10)),
        spectral_convergence=convergence,
        log_stft_magnitude=magnitude,
        f0_rmse_cents=cents,
        voicing_error=error,
        voiced_frames=both,
    )


def log_mel(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Natural log of mel band amplitudes, float64 [MEL_BANDS, frames].

    Centred Hann windows of about 46 ms, Slaney's mel scale from 0 to 8 kHz (or to half the sampling rate), each filter's weights divided
    by their sum, floored at FLOOR. A full-scale sine has an amplitude of 1/2 in its FFT bin, less in its mel band.
    """
    import torch

    size = 1 << int(np.ceil(np.log2(WINDOW_SECONDS * sampling_rate)))
    bank = mel_filter_bank(sampling_rate, size, MEL_BANDS, "slaney", HIGHEST_HZ)
    amplitude = (
        _magnitudes(torch.from_numpy(waveform).float(), size, size // 4, size).double().numpy()
        * 2
        / size
    )
    return np.log(np.maximum(bank @ amplitude, FLOOR))


def mel_cepstral_distortion(first: np.ndarray, second: np.ndarray) -> float:
    """Mel-cepstral distortion in dB, mean over frames, from the log-mel spectra of two sounds, each [bands, frames].

    MCD = 10 / ln 10 * sqrt(2 * sum over d = 1 ... 13 of (c_d - c'_d)^2) (Kubichek 1993), where ln amplitude = c_0 + sum c_d cos(d w) over
    the mel-warped frequency w: so c_d is 2 / bands times the sum of the log amplitudes with that cosine. c_0, the level, is left out. With
    all coefficients it would be the root mean square difference of the two spectra in dB, levels aside. Values from orthonormal MFCCs are
    sqrt(bands / 2) times larger.
    """
    from scipy.fft import dct

    cepstra = dct(first - second, type=2, axis=0)[1 : MEL_COEFFICIENTS + 1] / first.shape[0]
    return float(np.mean(10 / np.log(10) * np.sqrt(2 * np.sum(cepstra**2, axis=0))))


def multi_resolution_stft(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Spectral convergence and mean absolute log-magnitude difference (natural log), each a mean over STFT_RESOLUTIONS."""
    import torch

    one, two = torch.from_numpy(first).float(), torch.from_numpy(second).float()
    convergences, differences = [], []
    for size, hop, window in STFT_RESOLUTIONS:
        a, b = (_magnitudes(sound, size, hop, window).clamp_min(1e-4) for sound in (one, two))
        convergences.append(float(torch.linalg.norm(a - b) / torch.linalg.norm(a)))
        differences.append(float((a.log() - b.log()).abs().mean()))
    return float(np.mean(convergences)), float(np.mean(differences))


def track_melody(waveform: np.ndarray, sampling_rate: int, threads: int | None = None) -> Melody:
    """F0 from 50 to 600 Hz every 16 ms by SwiftF0 (Nieradzik 2025, arXiv:2508.18440), voiced where its confidence is 0.5 or more."""
    found = _detector(threads).detect(at_16_khz(waveform, sampling_rate), RATE, *F0_RANGE_HZ)
    return Melody(found.pitch_hz, found.confidence >= _VOICED)


def compare_melodies(first: Melody, second: Melody) -> tuple[float | None, float, int]:
    """Log-F0 RMSE in cents over frames voiced in both (None where there are none), share voiced in one only, frames voiced in both.

    Octave errors of the tracker count as 1,200 cents each: the noise floor holds as many.
    """
    both = first.voiced & second.voiced
    error = float(np.mean(first.voiced != second.voiced))
    if not both.any():
        return None, error, 0
    cents = 1200 * np.log2(second.hertz[both] / first.hertz[both])
    return float(np.sqrt(np.mean(cents**2))), error, int(both.sum())


def _magnitudes(sound: torch.Tensor, size: int, hop: int, window: int) -> torch.Tensor:
    """float32 [size // 2 + 1, frames], Hann window, centred."""
    import torch

    # Zeros, not reflections, at the ends: a reflection needs more samples than the shortest speech has.
    padded = torch.nn.functional.pad(sound, (size // 2, size // 2))
    return power_spectrum(padded, size, hop, torch.hann_window(window)).sqrt()


def _finite(waveform: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.asarray(waveform, dtype=np.float64), nan=0.0, posinf=1.0, neginf=-1.0)


def _detector(threads: int | None) -> SwiftF0:
    return _detectors.get_or_make(threads, lambda: _open(threads))


def _open(threads: int | None) -> SwiftF0:
    from swift_f0 import SwiftF0

    return SwiftF0(threads=threads, spin=False)
