"""A weight that learns on its grid: rounded while the voice speaks, free between the steps.

The gradient of the rounded weight goes straight through to the free one (Bengio et al. 2013,
arXiv:1308.3432), and each output channel's scale learns by LSQ (Esser et al. 2020,
arXiv:1902.08153), as a logarithm, so that steps are shares of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vits_prune.pruning.rounding import largest_number, on_grid, significant
from vits_prune.voices.grid import along, find_grid


class LearntGrid:
    """The grid of one weight, which `rounded` puts on it for a while."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, largest: int) -> None:
        self.weight, self.log_scales = weight, nn.Parameter(torch.log(scales).to(weight))
        self.top = largest_number(largest.bit_length() + 1)
        self.free = weight.detach().clone()

    @classmethod
    def of(cls, weight: torch.Tensor) -> LearntGrid | None:
        """Return the grid that a weight lies on, None if it is on none."""
        found = find_grid(weight.detach().cpu().numpy())
        if found is None:
            return None
        scales = torch.from_numpy(along(found.scales, found.axis, weight.ndim).copy())
        return cls(weight, scales, int(abs(found.numbers).max()))

    @torch.no_grad()
    def on_grid(self) -> torch.Tensor:
        """Return the free weight's places on the grid as it is now."""
        scales = self._scales()
        return on_grid(self.weight, scales, self.top).mul_(scales)

    def _scales(self) -> torch.Tensor:
        return significant(torch.exp(self.log_scales.detach()))

    @torch.no_grad()
    def round(self) -> None:
        """Put the weight on its grid."""
        self.free.copy_(self.weight)
        self.weight.copy_(self.on_grid())

    @torch.no_grad()
    def release(self) -> None:
        """Give the weight its free values back, and the scales their gradient."""
        rounded = self.weight.clone()
        self.weight.copy_(self.free)
        gradient = self.weight.grad
        if gradient is None:
            return
        scales = self._scales()
        inside = (self.free.abs() <= self.top * scales).to(gradient)
        # Of a weight by the logarithm of its scale; at an end of the grid the weight itself.
        slopes = rounded.addcmul_(self.free, inside, value=-1.0).mul_(gradient)
        others = [axis for axis, size in enumerate(scales.shape) if size == 1]
        each = math.sqrt(self.weight.numel() / scales.numel() * self.top)
        self.log_scales.grad = slopes.sum(others, keepdim=True).div_(each)
        gradient.mul_(inside)


@contextmanager
def rounded(grids: Iterable[LearntGrid]) -> Iterator[None]:
    """Put weights on their grids for the block; then gradients are those of the free weights."""
    grids = list(grids)
    for grid in grids:
        grid.round()
    try:
        yield
    finally:
        for grid in grids:
            grid.release()
