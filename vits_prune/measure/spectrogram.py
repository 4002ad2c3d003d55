"""Log spectrograms, for pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vits_prune.synthesis import Speech


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
    spectrum = torch.stft(
        torch.nn.functional.pad(samples, (window // 2, window // 2)),
        window,
        hop,
        window=torch.hann_window(window),
        center=False,
        return_complex=True,
    )
    level = 20 * torch.log10(spectrum.abs().clamp_min(1e-9) / (window / 4))
    return Spectrogram(level.clamp_min(-100.0).numpy(), speech.audio_seconds, speech.sampling_rate / 2)
