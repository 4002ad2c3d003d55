"""The optimiser of healing: Muon for the weights that are named to it, AdamW for all else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

MOMENTUM = 0.9
_SMALLEST = 8
"""Fewest rows and columns of a weight whose update is made orthogonal."""
_LIKE_ADAMW = 0.2
"""Root mean square of an update, times the learning rate: Liu et al.'s."""
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """AdamW, but the chosen weights of two and more dimensions get orthogonal updates.

    Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the update's size of Liu et
    al. 2025 (arXiv:2502.16982, section 2.2), so that one learning rate serves both. A convolution
    [out, in, taps] counts as a matrix [out, in * taps].
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        rate: float,
        betas: tuple[float, float],
        fused: bool,
        chosen: Iterable[torch.Tensor],
    ) -> None:
        super().__init__(groups, rate, betas, weight_decay=0.0, fused=fused)
        self._chosen = {weight for weight in chosen if _is_matrix(weight)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the chosen weights have no gradient after it."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight in self._chosen:
                    self._move(weight, weight.grad, group["lr"])
                    weight.grad = None  # AdamW passes over it
        return super().step(closure)

    def _move(self, weight: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        state = self.state[weight]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(weight)
        mean = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        matrix = gradient.lerp(mean, MOMENTUM).flatten(1)
        update = orthogonal(matrix).reshape(weight.shape)
        weight.sub_(update, alpha=rate * _LIKE_ADAMW * max(matrix.shape) ** 0.5)


def _is_matrix(weight: torch.Tensor) -> bool:
    return weight.ndim > 1 and min(weight.shape[0], weight[0].numel()) >= _SMALLEST


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix [rows, columns] with its singular values brought near 1.

    By the Newton-Schulz iteration of Muon, which leaves values that are tiny beside the largest
    small. A matrix of zeros stays zero.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp_min(1e-12)
    first, second, third = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = first * wide + (second * gram + third * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
