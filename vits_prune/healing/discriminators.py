"""Discriminators of several periods and scales, with feature matching (HiFi-GAN).

Kong et al. 2020, arXiv:2010.05646, section 2.3 and appendix B. A GPU affords the paper's width, two
CPU cores a narrow set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from vits_prune.threads import ForkSafeLock

PERIODS = (2, 3, 5, 7, 11)
"""Prime, so that no two see the same samples."""
_SLOPE = 0.1
_GROUPS = 16
_PERIOD_LAYERS = ((32, 5, 3), (128, 5, 3), (512, 5, 3), (1024, 5, 3), (1024, 5, 1))
"""Channels, kernel size and stride of each convolution but the last."""
_SCALE_LAYERS = (
    (128, 15, 1, 1), (128, 41, 2, 4), (256, 41, 2, 16), (512, 41, 4, 16),
    (1024, 41, 4, 16), (1024, 41, 1, 16), (1024, 5, 1, 1),
)  # fmt: skip
"""Channels, kernel size, stride and groups."""
_seeding = ForkSafeLock()

DiscriminatorOutput: TypeAlias = tuple[torch.Tensor, list[torch.Tensor]]
"""Score [batch, places], 1 for real and 0 for made, and features [_, channels, places] by layer."""


class _Discriminator(nn.Module):
    """Convolutions with leaky ReLUs between them, and a last one that scores.

    `spectral` divides weights by their largest singular value (Miyato et al. 2018,
    arXiv:1802.05957) instead of weight norm, as the paper does at the full rate.
    """

    def __init__(self, layers: Iterable[tuple[int, ...]], width: float, spectral: bool) -> None:
        super().__init__()
        norm = spectral_norm if spectral else weight_norm
        self.layers = nn.ModuleList()
        inputs = 1
        for full, kernel, stride, *groups in layers:
            outputs = max(_GROUPS, round(full * width / _GROUPS) * _GROUPS)
            layer = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, 1, *groups)
            self.layers.append(norm(layer))
            inputs = outputs
        self.score = norm(nn.Conv1d(inputs, 1, 3, padding=1))

    def forward(self, states: torch.Tensor) -> DiscriminatorOutput:
        features = []
        for layer in self.layers:
            states = functional.leaky_relu(layer(states), _SLOPE)
            features.append(states)
        states = self.score(states)
        return states.flatten(1), [*features, states]


class PeriodDiscriminator(_Discriminator):
    """Sees every `period`-th sample, and so what repeats.

    The paper folds the waveform into two dimensions and convolves along one of them. Here the
    columns are rows of a batch of one-dimensional convolutions: the same numbers, faster.
    """

    def __init__(self, period: int, width: float) -> None:
        super().__init__(_PERIOD_LAYERS, width, spectral=False)
        self.period = period

    def forward(self, waveform: torch.Tensor) -> DiscriminatorOutput:
        batch, _, samples = waveform.shape
        if missing := -samples % self.period:  # a shorter waveform has nothing to mirror
            mode = "reflect" if missing < samples else "replicate"
            waveform = functional.pad(waveform, (0, missing), mode)
        columns = waveform.view(batch, -1, self.period).transpose(1, 2)
        score, features = super().forward(columns.reshape(batch * self.period, 1, -1))
        return score.reshape(batch, -1), features


class Discriminators(nn.Module):
    """The discriminators of all periods and scales.

    Args:
        width: share of the paper's channels, above 0 to 1 (70 million parameters); each layer gets
            a multiple of 16 channels.
        periods: one discriminator each.
        scales: number of scales, each at half the rate of the one before.
        seed: of the first weights; torch's global generator is left as it was.
    """

    def __init__(
        self, width: float = 1.0, periods: Sequence[int] = PERIODS, scales: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        with _seeding, torch.random.fork_rng(devices=[]):  # all threads share torch's generator
            torch.default_generator.manual_seed(seed)
            self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in periods)
            self.scales = nn.ModuleList(
                _Discriminator(_SCALE_LAYERS, width, spectral=index == 0) for index in range(scales)
            )

    def forward(self, waveform: torch.Tensor) -> list[DiscriminatorOutput]:
        """Return the output for [batch, 1, samples] of each discriminator, periods first."""
        outputs = [discriminator(waveform) for discriminator in self.periods]
        for index, discriminator in enumerate(self.scales):
            if index:
                waveform = functional.avg_pool1d(waveform, 4, 2, padding=2)
            outputs.append(discriminator(waveform))
        return outputs


def discriminator_loss(
    real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]
) -> torch.Tensor:
    """Return what the discriminators minimise (least squares, Mao et al. 2017, arXiv:1611.04076).

    `fake` judges the student's waveforms, detached from the student.
    """
    return _total(
        (1 - true.float()).square().mean() + made.float().square().mean()
        for (true, _), (made, _) in zip(real, fake, strict=True)
    )


def generator_loss(fake: Sequence[DiscriminatorOutput]) -> torch.Tensor:
    """Return what the student minimises for its waveforms to pass as real."""
    return _total((1 - score.float()).square().mean() for score, _ in fake)


def feature_loss(
    real: Sequence[DiscriminatorOutput], fake: Sequence[DiscriminatorOutput]
) -> torch.Tensor:
    """Return the feature matching loss: mean absolute differences, summed over all layers.

    No gradient goes to the real waveform. The paper weighs this by 2, and log-mel by 45.
    """
    return _total(
        functional.l1_loss(made.float(), true.detach().float())
        for (_, true_features), (_, made_features) in zip(real, fake, strict=True)
        for true, made in zip(true_features, made_features, strict=True)
    )


def _total(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(losses)).sum()
