"""Speech as the predictors take it: 16 kHz, finite, within full scale."""

from __future__ import annotations

import os

import numpy as np

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
    resampled = finite if sampling_rate == RATE else soxr.resample(finite, sampling_rate, RATE, quality="HQ")
    if not resampled.size:
        return np.zeros(1, dtype=np.float32)
    return np.clip(resampled, -1.0, 1.0)


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
