"""One weight matrix before and after pruning, as a window of single weights that can be drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from vits_prune.errors import InputError
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.voices.voice import Voice

WINDOW = 64


@dataclass(frozen=True, eq=False)
class MatrixPair:
    """A corner of a layer's weights, outputs down and inputs across, at the middle tap of a convolution."""

    layer: Layer
    before: np.ndarray
    """|weight| of the original, float [rows, columns]."""
    after: np.ndarray
    """|weight| of the pruned voice in the same places: 0 where it became zero, NaN where its row, column or layer is gone."""
    tap: int
    taps: int
    zeros: float
    """Share of zeros among what is left of the whole layer, 0 to 1."""
    shape_after: tuple[int, ...] | None
    """Shape of the weight in the pruned voice, None where the layer is gone."""


def measure_matrix(
    original: Voice, pruned: Voice, name: str, now: str | None, kept: Mapping[int, Sequence[int]] = MappingProxyType({})
) -> MatrixPair:
    """The corner of one layer in both voices.

    Args:
        original: the voice that was pruned.
        pruned: what became of it.
        name: of the original's layer.
        now: the layer's name in the pruned voice, None where all of it is gone.
        kept: dimension of the weight -> the indices of the original's that stay; dimensions not named stay whole.

    Raises:
        InputError: the original has no such layer that can be pruned.
    """
    layer = next((layer for layer in prunable_layers(original) if layer.name == name), None)
    if layer is None:
        raise InputError(f"This voice has no layer {str(name)[:80]!r} that can be pruned: choose one of the list.")
    weight, module = original.model.get_parameter(layer.parameter).detach().cpu().float(), original.model.get_submodule(name)
    after, left = torch.full_like(weight, float("nan")), None
    if now is not None:
        left = pruned.model.get_parameter(f"{now}.weight").detach().cpu().float()
        places = [torch.tensor(kept.get(dimension, range(size))) for dimension, size in enumerate(weight.shape)]
        after[torch.meshgrid(*places, indexing="ij")] = left
    taps = weight.shape[2] if weight.dim() == 3 else 1
    tap = taps // 2
    return MatrixPair(
        layer,
        _corner(weight, module, tap),
        _corner(after, module, tap),
        tap,
        taps,
        0.0 if left is None else 1 - int(torch.count_nonzero(left)) / left.numel(),
        None if left is None else tuple(left.shape),
    )


def _corner(weight: torch.Tensor, module: nn.Module, tap: int) -> np.ndarray:
    table = weight[..., tap] if weight.dim() == 3 else weight
    if isinstance(module, nn.ConvTranspose1d):
        table = table.T
    return table[:WINDOW, :WINDOW].abs().numpy()
