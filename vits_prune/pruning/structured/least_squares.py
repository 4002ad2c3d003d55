"""Fit: the weights that make a layer give what is wanted of it, for what it is given: least squares, near the weights that it has."""

from __future__ import annotations

import torch
from torch import nn

from vits_prune.pruning.calibration import MAX_COLUMNS
from vits_prune.pruning.matrix import LayerMatrix

DAMPING = 0.003
"""How firmly a layer holds on to what it had, as a share of the mean energy of its inputs."""
WINDOWS = 24_000
"""Most windows that one layer is fitted on."""


class Fit:
    """A layer's least squares problem, gathered batch by batch; a layer without one matrix, or with too large a one, keeps what it has."""

    def __init__(self, module: nn.Module, random: torch.Generator, batches: int) -> None:
        self.module, self._random, self._most = module, random, max(1, WINDOWS // batches)
        self.matrix = LayerMatrix(module)
        columns = self.matrix.shape[1] + (module.bias is not None)
        self._fits = self.matrix.dense and columns <= MAX_COLUMNS
        columns = columns if self._fits else 0
        self._gram, self._cross = (
            torch.zeros(columns, columns),
            torch.zeros(self.matrix.shape[0], columns),
        )
        self._windows = 0

    def add(
        self, inputs: torch.Tensor, wanted: torch.Tensor, valid: torch.Tensor | None = None
    ) -> None:
        """Count in a batch.

        Args:
            inputs: what the layer is given.
            wanted: what it should give, of its output's shape.
            valid: positions that are no padding, bool [batch, positions of the output]; None for all.
        """
        if not self._fits:
            return
        usable = self.matrix.usable(inputs, valid).nonzero()
        if len(usable) > self._most:
            usable = usable[torch.randperm(len(usable), generator=self._random)[: self._most]]
        batch, position = usable[:, 0], usable[:, 1]
        found = self.matrix.windows(inputs, batch, position)
        if self.module.bias is not None:
            found = torch.cat([found, torch.ones(len(found), 1)], dim=1)
        self._gram.addmm_(found.T, found)
        self._cross.addmm_(self.matrix.outputs(wanted, batch, position).T, found)
        self._windows += len(found)

    def solve(self) -> None:
        """Give the layer the weights that fit best, near those that it has."""
        if not self._windows:
            return
        module, columns = self.module, self.matrix.shape[1]
        now = self.matrix.of(module.weight.detach()).float()
        if module.bias is not None:
            now = torch.cat(
                [
                    now,
                    module.bias.detach().repeat_interleave(len(now) // len(module.bias))[:, None],
                ],
                dim=1,
            )
        gram, cross = self._gram / max(1, self._windows), self._cross / max(1, self._windows)
        damping = DAMPING * float(gram.diagonal()[:columns].mean().clamp(min=1e-12))
        gram.diagonal().add_(damping)
        found = torch.cholesky_solve((cross + damping * now).T, torch.linalg.cholesky(gram)).T
        if not bool(torch.isfinite(found).all()):
            return
        module.weight = nn.Parameter(
            self.matrix.back(found[:, :columns].contiguous()), requires_grad=False
        )
        if module.bias is not None:
            module.bias = nn.Parameter(
                found[:, -1].reshape(len(module.bias), -1).mean(1).contiguous(), requires_grad=False
            )
