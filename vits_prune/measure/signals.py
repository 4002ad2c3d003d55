"""How loud speech is: pruning changes it, and a louder voice sounds better."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch

from vits_prune.synthesis.speak import Speech
from vits_prune.synthesis.spectra import power_spectrum

SILENCE_LUFS = -70.0

"""What silence is given: the gate of ITU-R BS.1770, below which nothing counts."""


def measure_lufs(waveform: np.ndarray, sampling_rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4) by pyloudnorm, at least SILENCE_LUFS.

    Speech under 0.4 s, the standard's block, is measured as one block of its own length.

    Args:
        waveform: float [samples]; what is not a number counts as silence.
        sampling_rate: samples per second.
    """
    import pyloudnorm

    samples = np.nan_to_num(
        np.asarray(waveform, dtype=np.float64), nan=0.0, posinf=1.0, neginf=-1.0
    )
    if not samples.any():
        return SILENCE_LUFS
    block = min(0.4, len(samples) / sampling_rate)
    with np.errstate(all="ignore"):  # the logarithm of a block below the gate
        loudness = pyloudnorm.Meter(sampling_rate, block_size=block).integrated_loudness(samples)
    return max(SILENCE_LUFS, float(loudness)) if np.isfinite(loudness) else SILENCE_LUFS


@dataclass(frozen=True, eq=False)
class Spectrogram:
    """Level over time and frequency."""

    decibels: np.ndarray
    """float32 [frequencies, frames], dB relative to a full-scale sine, floored at -100."""
    seconds: float
    """Length of the sound."""
    highest_hz: float
    """Frequency of the last row; the first is 0."""


def measure_spectrogram(speech: Speech, window: int = 1024, most_frames: int = 1200) -> Spectrogram:
    """Hann-windowed short-time Fourier transform of a speech, with no more frames than a picture can show.

    Args:
        speech: the sound.
        window: samples of a window.
        most_frames: longer sound takes longer hops.
    """
    samples = torch.from_numpy(np.nan_to_num(speech.waveform)).float()
    hop = max(window // 4, len(samples) // most_frames + 1)
    padded = torch.nn.functional.pad(samples, (window // 2, window // 2))
    power = power_spectrum(padded, window, hop)
    level = 10 * torch.log10(power.clamp_min(1e-18) / (window / 4) ** 2)
    return Spectrogram(
        level.clamp_min(-100.0).numpy(), speech.audio_seconds, speech.sampling_rate / 2
    )


RATE = 16_000

"""Samples per second that Whisper, DNSMOS and SwiftF0 were trained at."""


def at_16_khz(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Resample by soxr's "HQ" recipe.

    Args:
        waveform: float [samples]; what is not a number counts as silence.
        sampling_rate: samples per second.

    Returns:
        float32 [samples at 16 kHz], in [-1, 1], at least one sample.
    """
    import soxr

    finite = np.nan_to_num(np.asarray(waveform, dtype=np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
    resampled = (
        finite
        if sampling_rate == RATE
        else soxr.resample(finite, sampling_rate, RATE, quality="HQ")
    )
    if not resampled.size:
        return np.zeros(1, dtype=np.float32)
    return np.clip(resampled, -1.0, 1.0)


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
