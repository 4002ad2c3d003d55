"""A layer's weight as a matrix, and its inputs as the windows it is multiplied with: Linear, Conv1d and ConvTranspose1d alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class LayerMatrix:
    """How one layer reads as y = W x: a row of W for each output, a column for each input channel and tap.

    A strided ConvTranspose1d is `stride` interleaved convolutions of the same windows (polyphase form, Vaidyanathan 1990), so its rows are
    (output channel, phase) and its columns (input channel, tap of the phase).
    """

    module: nn.Module

    @property
    def dense(self) -> bool:
        """Whether every output reads every input: not so for grouped and depthwise convolutions, which have no one matrix."""
        groups = getattr(self.module, "groups", 1)
        uneven = (
            isinstance(self.module, nn.ConvTranspose1d)
            and self.module.kernel_size[0] % self.module.stride[0]
        )
        return groups == 1 and not uneven

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        size, phases = self.module.weight.shape, self._phases
        if isinstance(self.module, nn.ConvTranspose1d):
            return size[1] * phases, size[0] * (size[2] // phases)
        return size[0], self.module.weight.numel() // size[0]

    @property
    def _phases(self) -> int:
        """Convolutions that a transposed one is made of; 1 where its kernel is no multiple of its stride, so that it has no one matrix."""
        return (
            self.module.stride[0]
            if isinstance(self.module, nn.ConvTranspose1d) and self.dense
            else 1
        )

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the layer's shape as [rows, columns]."""
        if isinstance(self.module, nn.ConvTranspose1d):
            inputs, outputs, taps = weight.shape
            return (
                weight.reshape(inputs, outputs, taps // self._phases, self._phases)
                .permute(1, 3, 0, 2)
                .reshape(self.shape)
            )
        return weight.reshape(self.shape)

    def back(self, matrix: torch.Tensor) -> torch.Tensor:
        """[rows, columns] as a weight of the layer's shape."""
        if isinstance(self.module, nn.ConvTranspose1d):
            inputs, outputs, taps = self.module.weight.shape
            phases = matrix.reshape(outputs, self._phases, inputs, taps // self._phases)
            return phases.permute(2, 0, 3, 1).reshape(inputs, outputs, taps).contiguous()
        return matrix.reshape(self.module.weight.shape).contiguous()

    def channels(self, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix as [rows, input channels, taps]."""
        taps = 1 if isinstance(self.module, nn.Linear) else self.module.kernel_size[0]
        if isinstance(self.module, nn.ConvTranspose1d):
            taps //= self._phases
        return matrix.reshape(matrix.shape[0], -1, taps)

    def usable(self, inputs: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Which windows there are: bool [batch, positions].

        Args:
            inputs: what the layer is given: Linear [batch, positions, channels], convolutions [batch, channels, positions].
            valid: positions that are no padding, bool [batch, positions of the output]; None for all.
        """
        batch, module = inputs.shape[0], self.module
        if isinstance(module, nn.Linear):
            return valid if valid is not None else torch.ones(inputs.shape[:-1], dtype=torch.bool)
        positions = inputs.shape[2]
        if isinstance(module, nn.ConvTranspose1d):
            found = torch.ones(
                batch, positions + module.kernel_size[0] // module.stride[0] - 1, dtype=torch.bool
            )
            cut = -(
                -module.padding[0] // module.stride[0]
            )  # their outputs are cut off, or some of them, by the layer's padding
            found[:, :cut] = found[:, found.shape[1] - cut :] = False
            return found
        positions += 2 * module.padding[0] - module.dilation[0] * (module.kernel_size[0] - 1)
        return valid if valid is not None else torch.ones(batch, positions, dtype=torch.bool)

    def windows(
        self, inputs: torch.Tensor, batch: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Inputs as [windows, columns].

        Args:
            inputs: as in `usable`.
            batch, position: which windows, int64 [windows] each.
        """
        module = self.module
        if isinstance(module, nn.Linear):
            return inputs[batch, position]
        taps, step, pad = module.kernel_size[0], module.dilation[0], module.padding[0]
        if isinstance(module, nn.ConvTranspose1d):
            taps, step = taps // module.stride[0], -1
            pad = taps - 1
            position = position + pad
        padded = nn.functional.pad(inputs, (pad, pad)) if pad else inputs
        return torch.stack(
            [padded[batch, :, position + tap * step] for tap in range(taps)], dim=2
        ).reshape(len(batch), -1)

    def outputs(
        self, outputs: torch.Tensor, batch: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """A layer's outputs beside `windows`: [windows, rows], so that each row of them is the matrix times a window, plus the bias.

        Args:
            outputs: Linear [batch, positions, channels], convolutions [batch, channels, positions].
            batch, position: which windows, int64 [windows] each.
        """
        module = self.module
        if isinstance(module, nn.Linear):
            return outputs[batch, position]
        if not isinstance(module, nn.ConvTranspose1d):
            return outputs[batch, :, position]
        stride, pad, channels = module.stride[0], module.padding[0], outputs.shape[1]
        whole = (outputs.shape[2] + 2 * pad + stride - 1) // stride * stride
        phases = nn.functional.pad(outputs, (pad, whole - pad - outputs.shape[2])).reshape(
            len(outputs), channels, -1, stride
        )
        return phases[batch, :, position].reshape(len(batch), -1)


class OverlapSums:
    """Sums over all windows x of a Conv1d: of x xᵀ, x² and x, exact at the ends too."""

    def __init__(self, module: nn.Conv1d, covariances: bool) -> None:
        """Begin at zero.

        Args:
            module: a convolution of stride 1 and one group.
            covariances: whether x xᵀ is wanted, or x² and x alone.
        """
        self._taps, self._step, self._pad = (
            module.kernel_size[0],
            module.dilation[0],
            module.padding[0],
        )
        channels = module.in_channels
        self._sums, self._squares = (
            torch.zeros(self._taps, channels),
            torch.zeros(self._taps, channels),
        )
        self._lags = torch.zeros(self._taps, channels, channels) if covariances else None
        self._ends = {
            (i, lag): torch.zeros(channels, channels)
            for i in range(1, self._taps)
            for lag in range(self._taps - i)
        }
        self.windows = 0

    def add(self, inputs: torch.Tensor, usable: torch.Tensor) -> None:
        """Count in all usable windows.

        Args:
            inputs: float [batch, channels, positions].
            usable: bool [batch, positions of the output].
        """
        padded = nn.functional.pad(inputs.transpose(1, 2), (0, 0, self._pad, self._pad))
        rows = padded.reshape(-1, padded.shape[2])
        first = nn.functional.pad(usable, (0, padded.shape[1] - usable.shape[1])).reshape(
            -1
        )  # rows that tap 0 sees
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
    if (
        not isinstance(module, nn.Conv1d)
        or not matrix.dense
        or module.stride[0] != 1
        or module.kernel_size[0] == 1
    ):
        return False
    return inputs.shape[2] >= 8 * module.dilation[0] * (module.kernel_size[0] - 1)
