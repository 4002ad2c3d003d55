"""How loud speech is: pruning changes it, and a louder voice sounds better."""

from __future__ import annotations

import numpy as np

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

    samples = np.nan_to_num(np.asarray(waveform, dtype=np.float64), nan=0.0, posinf=1.0, neginf=-1.0)
    if not samples.any():
        return SILENCE_LUFS
    block = min(0.4, len(samples) / sampling_rate)
    with np.errstate(all="ignore"):  # the logarithm of a block below the gate
        loudness = pyloudnorm.Meter(sampling_rate, block_size=block).integrated_loudness(samples)
    return max(SILENCE_LUFS, float(loudness)) if np.isfinite(loudness) else SILENCE_LUFS
