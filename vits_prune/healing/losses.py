"""What is heard of a difference: spectral losses of waveforms, and errors of the prior and of durations in units of their own."""

from __future__ import annotations

import math

import torch
from torch import nn

RESOLUTIONS = (2048, 512, 128)
"""Windows of the multi-resolution STFT loss, in samples; four of them overlap everywhere."""
_MEL_WINDOW = 1024
_BANDS = 80
_QUIET = 1e-3
"""Level below which differences count less: -60 dB."""
_FLOOR = 1e-5
"""Amplitude of full scale that counts as silence: -100 dB."""


class Hearing(nn.Module):
    """Log-mel L1, and the multi-resolution STFT loss (Parallel WaveGAN, Yamamoto et al. 2020, arXiv:1910.11480, section 2.2)."""

    def __init__(self, sampling_rate: int, samples: int) -> None:
        """
        Args:
            sampling_rate: of the waveforms, which mel bands depend on.
            samples: of a waveform; windows that are longer are shortened to it.
        """
        super().__init__()
        self.resolutions = tuple(dict.fromkeys(min(size, samples) for size in RESOLUTIONS))
        self.mel_window = min(_MEL_WINDOW, samples)
        for size in {*self.resolutions, self.mel_window}:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)
        self.register_buffer("bands", mel_bands(sampling_rate, self.mel_window, _BANDS), persistent=False)

    def forward(self, spoken: torch.Tensor, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scalars "mel" (nepers) and "stft" (log-magnitude L1 in nepers plus spectral convergence) of waveforms [batch, samples]."""
        both = torch.cat([spoken, wanted]).float()
        mel = torch.log(self.bands @ self._magnitudes(both, self.mel_window) + _FLOOR)
        stft = []
        for size in self.resolutions:
            magnitudes = self._magnitudes(both, size)
            ours, theirs = magnitudes.chunk(2)
            convergence = torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs).clamp_min(1e-3)
            stft.append(_l1(torch.log(magnitudes + _FLOOR)) + convergence)
        return {"mel": _l1(mel), "stft": torch.stack(stft).mean()}

    def _magnitudes(self, waveforms: torch.Tensor, size: int) -> torch.Tensor:
        """Amplitudes [batch, bins, frames], 1 for a sine at full scale."""
        window = getattr(self, f"window_{size}")
        spectrum = torch.stft(waveforms, size, max(1, size // 4), window=window, center=False, return_complex=True)
        # The square root's slope at zero is infinite: the floor inside it keeps gradients finite.
        power = torch.view_as_real(spectrum).square().sum(-1)
        return torch.sqrt(power + (_FLOOR * size / 4) ** 2) * (4 / size)


def waveform_loss(spoken: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 of waveforms [batch, samples] as a share of the wanted one's: 1 is as bad as silence."""
    return (spoken.float() - wanted).abs().mean() / wanted.abs().mean().clamp_min(1e-3)


def prior_loss(
    means: torch.Tensor, deviations: torch.Tensor, wanted_means: torch.Tensor, wanted_deviations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Errors of means and log-deviations [batch, tokens, channels], those of means in units of the wanted deviation: L1 and half of MSE.

    Args:
        weights: of each token, [batch, tokens].
    """
    error = torch.cat([(means - wanted_means) * torch.exp(-wanted_deviations), deviations - wanted_deviations], -1)
    each = (error.abs() + 0.5 * error.square()).mean(-1)
    return (each * weights).sum() / weights.sum().clamp_min(1e-6)


def level_loss(spoken: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Difference of the levels of waveforms [batch, samples], in nepers: spectral losses alone are content with too quiet a voice."""
    ours, theirs = (torch.log(one.float().square().mean(1) + _QUIET**2) / 2 for one in (spoken, wanted))
    return (ours - theirs).abs().mean()


def duration_loss(logarithms: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Errors of durations given as natural logarithms [batch, tokens]: Poisson deviance of the frames, L1 of the logarithms, and the error
    of each sentence's length.

    The deviance is smallest at the mean; L1 alone is content with medians, and a sentence of medians is too short.
    """
    logarithms, wanted = logarithms.clamp(max=6.0), wanted.clamp(max=6.0)
    ours, theirs = (torch.exp(one) * mask for one in (logarithms, wanted))
    errors = logarithms - wanted
    each = ((3 * (ours - theirs - theirs * errors) + 0.25 * errors.abs()) * mask).sum() / mask.sum().clamp_min(1e-6)
    lengths = (ours.sum(1) - theirs.sum(1)).abs() / theirs.sum(1).clamp_min(1.0)
    return each + lengths.mean()


def mel_bands(sampling_rate: int, window: int, bands: int) -> torch.Tensor:
    """Triangles equally wide on the mel scale (O'Shaughnessy 1987) up to half the sampling rate, [bands, bins], each summing to 1."""
    highest = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, bands + 2, dtype=torch.float64) / 2595) - 1)
    # No triangle is narrower than two bins: the lowest would fall between them and hear nothing.
    width = sampling_rate / window
    centre = edges[1:-1, None]
    rise, fall = (edges[1:-1] - edges[:-2]).clamp_min(width)[:, None], (edges[2:] - edges[1:-1]).clamp_min(width)[:, None]
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * width
    found = torch.minimum((bins - centre) / rise + 1, (centre - bins) / fall + 1).clamp_min(0)
    return (found / found.sum(1, keepdim=True)).float()


def _l1(both: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the two halves of a batch."""
    ours, theirs = both.chunk(2)
    return (ours - theirs).abs().mean()
