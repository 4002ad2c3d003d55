"""Discriminators for the adversarial stage: several periods and several scales, with feature matching (HiFi-GAN, Kong et al. 2020,
arXiv:2010.05646, section 2.3 and appendix B).

They are needed while a voice is healed and never when it speaks. On a GPU they have the paper's width; a narrow set learns the same things
more coarsely and is what two cores can afford.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from vits_prune import forks

FULL_WIDTH = 1.0
"""Of the paper's channels."""
PERIODS = (2, 3, 5, 7, 11)
"""Prime, so that no two look at the same samples."""
SCALES = 3

_seeding = forks.Lock()
_SLOPE = 0.1
_GROUPS = 16
_PERIOD_LAYERS = ((32, 5, 3), (128, 5, 3), (512, 5, 3), (1024, 5, 3), (1024, 5, 1))
"""Channels, kernel size and stride of each convolution but the last."""
_SCALE_LAYERS = (
    (128, 15, 1, 1),
    (128, 41, 2, 4),
    (256, 41, 2, 16),
    (512, 41, 4, 16),
    (1024, 41, 4, 16),
    (1024, 41, 1, 16),
    (1024, 5, 1, 1),
)
"""Channels, kernel size, stride and groups."""

Judgement: TypeAlias = tuple[torch.Tensor, list[torch.Tensor]]
"""What one discriminator says: score [batch, places], 1 for real and 0 for made, and the features of each layer [_, channels, places]."""


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample, and so at what repeats.

    The paper folds the waveform into [batch, 1, samples / period, period] and convolves along one axis with kernels of width 1. The columns
    do not see each other, so they are rows of a batch of one-dimensional convolutions here: the same numbers, on a faster path.
    """

    def __init__(self, period: int, width: float) -> None:
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList()
        inputs = 1
        for full, kernel, stride in _PERIOD_LAYERS:
            outputs = _channels(full, width)
            self.layers.append(
                weight_norm(nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2))
            )
            inputs = outputs
        self.score = weight_norm(nn.Conv1d(inputs, 1, 3, padding=1))

    def forward(self, waveform: torch.Tensor) -> Judgement:
        batch, _, samples = waveform.shape
        missing = -samples % self.period
        if missing:  # a waveform shorter than what is missing has nothing to be mirrored
            waveform = functional.pad(
                waveform, (0, missing), "reflect" if missing < samples else "replicate"
            )
        columns = (
            waveform.view(batch, -1, self.period)
            .transpose(1, 2)
            .reshape(batch * self.period, 1, -1)
        )
        score, features = _convolved(columns, self.layers, self.score)
        return score.reshape(batch, -1), features


class ScaleDiscriminator(nn.Module):
    """Looks at the waveform as it is, or as it was averaged down before.

    Args:
        width: of the paper's channels.
        spectral: normalise weights by their largest singular value (Miyato et al. 2018, arXiv:1802.05957) in place of weight norm, as the
            paper does at the full rate.
    """

    def __init__(self, width: float, spectral: bool) -> None:
        super().__init__()
        norm = spectral_norm if spectral else weight_norm
        self.layers = nn.ModuleList()
        inputs = 1
        for full, kernel, stride, groups in _SCALE_LAYERS:
            outputs = _channels(full, width)
            self.layers.append(
                norm(nn.Conv1d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups))
            )
            inputs = outputs
        self.score = norm(nn.Conv1d(inputs, 1, 3, padding=1))

    def forward(self, waveform: torch.Tensor) -> Judgement:
        score, features = _convolved(waveform, self.layers, self.score)
        return score.flatten(1), features


class Discriminators(nn.Module):
    """The discriminators of all periods and all scales.

    Args:
        width: of the paper's channels, FULL_WIDTH (70 million parameters) or less (1/8: 1.1 million); each layer gets a
            multiple of 16 channels.
        periods: one discriminator each.
        scales: so many, each after the first at half the rate of the one before.
        seed: of the first weights; torch's global generator is left as it was.

    Raises:
        ValueError: a width outside (0, 1], a period below 1, or no discriminator at all.
    """

    def __init__(
        self,
        width: float = FULL_WIDTH,
        *,
        periods: Sequence[int] = PERIODS,
        scales: int = SCALES,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (
            not 0 < width <= 1
            or any(period < 1 for period in periods)
            or scales < 0
            or not (len(periods) or scales)
        ):
            raise ValueError(
                "Discriminators need a width above 0 and at most 1, and at least one period or scale."
            )
        with (
            _seeding,
            torch.random.fork_rng(devices=[]),
        ):  # torch's generator belongs to all threads
            torch.default_generator.manual_seed(seed)
            self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in periods)
            self.scales = nn.ModuleList(
                ScaleDiscriminator(width, spectral=index == 0) for index in range(scales)
            )

    def forward(self, waveform: torch.Tensor) -> list[Judgement]:
        """Judge waveforms.

        Args:
            waveform: [batch, 1, samples], one sample or more.

        Returns:
            one (score, features) a discriminator, periods first.

        Raises:
            ValueError: the waveform has another shape or no sample.
        """
        if waveform.dim() != 3 or waveform.shape[1] != 1 or not waveform.shape[2]:
            raise ValueError(
                f"The waveform must be [batch, 1, samples], not {list(waveform.shape)}."
            )
        judgements = [discriminator(waveform) for discriminator in self.periods]
        for index, discriminator in enumerate(self.scales):
            if index:
                waveform = functional.avg_pool1d(waveform, 4, 2, padding=2)
            judgements.append(discriminator(waveform))
        return judgements


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> torch.Tensor:
    """Least squares (Mao et al. 2017, arXiv:1611.04076): what the discriminators minimise, a scalar summed over them.

    Args:
        real: judgements of recorded or of the teacher's waveforms.
        fake: judgements of the student's waveforms, detached from the student.
    """
    return _total(
        (1 - true.float()).square().mean() + made.float().square().mean()
        for (true, _), (made, _) in _both(real, fake)
    )


def generator_loss(fake: Sequence[Judgement]) -> torch.Tensor:
    """What the student minimises so that its waveforms pass for real, a scalar summed over the discriminators."""
    return _total((1 - score.float()).square().mean() for score, _ in fake)


def feature_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> torch.Tensor:
    """Feature matching: mean absolute difference of each layer's features, a scalar summed over layers and discriminators.

    The features of the real waveform are targets: no gradient goes there. The paper weighs this by 2, and 45 times the log-mel loss.
    """
    return _total(
        functional.l1_loss(made.float(), true.detach().float())
        for (_, true_features), (_, made_features) in _both(real, fake)
        for true, made in zip(true_features, made_features, strict=True)
    )


def _both(real: Sequence[Judgement], fake: Sequence[Judgement]) -> zip[tuple[Judgement, Judgement]]:
    return zip(real, fake, strict=True)


def _total(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses)).sum()


def _channels(full: int, width: float) -> int:
    """Of the paper's channels as many as the width asks for, a multiple of the groups."""
    return max(_GROUPS, round(full * width / _GROUPS) * _GROUPS)


def _convolved(states: torch.Tensor, layers: nn.ModuleList, last: nn.Module) -> Judgement:
    features = []
    for layer in layers:
        states = functional.leaky_relu(layer(states), _SLOPE)
        features.append(states)
    states = last(states)
    return states, [*features, states]
