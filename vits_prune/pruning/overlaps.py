"""Covariance of a convolution's overlapping windows, from products of its input with itself at each lag.

Neighbouring windows share most of what they hold: but for the ends of a sequence, taps i and j see what taps 0 and j - i see one step
earlier. So k products of [channels, channels] do instead of k², and no window is copied out.
"""

from __future__ import annotations

import torch
from torch import nn

from vits_prune.pruning.matrix import LayerMatrix


class OverlapSums:
    """Sums over all windows x of a Conv1d: of x xᵀ, x² and x, exact at the ends too."""

    def __init__(self, module: nn.Conv1d, covariances: bool) -> None:
        """Begin at zero.

        Args:
            module: a convolution of stride 1 and one group.
            covariances: whether x xᵀ is wanted, or x² and x alone.
        """
        self._taps, self._step, self._pad = module.kernel_size[0], module.dilation[0], module.padding[0]
        channels = module.in_channels
        self._sums, self._squares = torch.zeros(self._taps, channels), torch.zeros(self._taps, channels)
        self._lags = torch.zeros(self._taps, channels, channels) if covariances else None
        self._ends = {(i, lag): torch.zeros(channels, channels) for i in range(1, self._taps) for lag in range(self._taps - i)}
        self.windows = 0

    def add(self, inputs: torch.Tensor, usable: torch.Tensor) -> None:
        """Count in all usable windows.

        Args:
            inputs: float [batch, channels, positions].
            usable: bool [batch, positions of the output].
        """
        padded = nn.functional.pad(inputs.transpose(1, 2), (0, 0, self._pad, self._pad))
        rows = padded.reshape(-1, padded.shape[2])
        first = nn.functional.pad(usable, (0, padded.shape[1] - usable.shape[1])).reshape(-1)  # rows that tap 0 sees
        self.windows += int(usable.sum())
        squares = rows.square()
        seen = [first.roll(tap * self._step) for tap in range(self._taps)]
        for tap, here in enumerate(seen):
            self._sums[tap] += here.float() @ rows
            self._squares[tap] += here.float() @ squares
        if self._lags is None:
            return
        left = rows * first[:, None]
        for lag in range(self._taps):
            ahead = lag * self._step
            self._lags[lag].addmm_(left[: len(rows) - ahead].T, rows[ahead:])
        for (tap, lag), ends in self._ends.items():
            for sign, which in ((1.0, seen[tap] & ~first), (-1.0, first & ~seen[tap])):
                at = which.nonzero().flatten()
                ends.addmm_(rows[at].T, rows[at + lag * self._step], alpha=sign)

    def energy(self) -> torch.Tensor:
        """Sum of x², [columns], in the order of LayerMatrix: channel, then tap."""
        return self._squares.T.reshape(-1)

    def sums(self) -> torch.Tensor:
        """Sum of x, [columns]."""
        return self._sums.T.reshape(-1)

    def covariance(self) -> torch.Tensor:
        """Sum of x xᵀ, [columns, columns]."""
        channels = self._sums.shape[1]
        found = torch.empty(channels, self._taps, channels, self._taps)
        for i in range(self._taps):
            for j in range(i, self._taps):
                block = self._lags[j - i] + self._ends[i, j - i] if i else self._lags[j]
                found[:, i, :, j] = block
                if j > i:
                    found[:, j, :, i] = block.T
        return found.reshape(channels * self._taps, channels * self._taps)


def overlap(matrix: LayerMatrix, inputs: torch.Tensor) -> bool:
    """Whether a layer's windows overlap so much that their covariance is had from lags: a longer input than the ends need."""
    module = matrix.module
    if not isinstance(module, nn.Conv1d) or not matrix.dense or module.stride[0] != 1 or module.kernel_size[0] == 1:
        return False
    return inputs.shape[2] >= 8 * module.dilation[0] * (module.kernel_size[0] - 1)
