"""Short-time Fourier transforms and mel filter banks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch


_SCALES: dict[str, tuple[Callable[[float], float], Callable[[np.ndarray], np.ndarray]]] = {
    "slaney": (
        lambda hz: hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4),
        lambda mels: np.where(
            mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) / 27 * np.log(6.4))
        ),
    ),
    "htk": (
        lambda hz: 2595 * math.log10(1 + hz / 700),
        lambda mels: 700 * (10 ** (mels / 2595) - 1),
    ),
}
"""Hertz to mels, and mels to hertz."""


def power_spectrum(
    waveforms: torch.Tensor, size: int, hop: int, window: torch.Tensor | None = None
) -> torch.Tensor:
    """Return squared magnitudes of a short-time Fourier transform, not padded at its ends.

    The waveforms, [samples] or [batch, samples], give [size // 2 + 1, frames] or
    [batch, size // 2 + 1, frames]. The window has at most `size` samples; None is a Hann window of
    `size`, with which a sine of amplitude 1 gives (size / 4)**2 in its bin.
    """
    import torch

    if window is None:
        window = torch.hann_window(size, dtype=waveforms.dtype, device=waveforms.device)
    spectrum = torch.stft(
        waveforms, size, hop, len(window), window, center=False, return_complex=True
    )
    return torch.view_as_real(spectrum).square().sum(-1)


@functools.lru_cache(maxsize=16)
def mel_filter_bank(
    sampling_rate: int,
    size: int,
    bands: int,
    scale: Literal["slaney", "htk"] = "htk",
    highest_hz: float | None = None,
) -> np.ndarray:
    """Return triangular filters, equally wide on a mel scale, each summing to 1.

    Low bands may be narrower than a Fourier bin. With "htk" no slope of a triangle is narrower
    than a bin; with "slaney" a filter that holds no bin takes the one nearest to its centre.

    The scale "slaney" (Auditory Toolbox, 1998) is linear to 1 kHz, 15 mels there, then logarithmic,
    27 mels to each factor of 6.4; "htk" (O'Shaughnessy 1987) is 2595 log10(1 + f / 700). The last
    filter ends at `highest_hz`, by default half the sampling rate.

    Returns:
        float64 [bands, size // 2 + 1], read-only.
    """
    to_mel, to_hertz = _SCALES[scale]
    highest = min(highest_hz or sampling_rate / 2, sampling_rate / 2)
    edges = to_hertz(np.linspace(0.0, to_mel(highest), bands + 2))[:, None]
    bin_hz = sampling_rate / size
    bins = np.arange(size // 2 + 1) * bin_hz
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    if scale == "htk":
        rise, fall = np.maximum(centre - low, bin_hz), np.maximum(high - centre, bin_hz)
        bank = np.minimum((bins - centre) / rise + 1, (centre - bins) / fall + 1)
    else:
        bank = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    bank = np.maximum(0.0, bank)
    empty = np.flatnonzero(bank.sum(axis=1) == 0)
    bank[empty, np.round(centre[empty, 0] / bin_hz).astype(int)] = 1.0
    bank /= bank.sum(axis=1, keepdims=True)
    bank.flags.writeable = False
    return bank
