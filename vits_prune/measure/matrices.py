"""One weight matrix before and after pruning, as a window of single weights that can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vits_prune.errors import InputError
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured import Choice
from vits_prune.pruning.survivors import survivor
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


def measure_matrix(original: Voice, pruned: Voice, name: str, choice: Choice | None = None) -> MatrixPair:
    """The corner of one layer in both voices.

    Args:
        original: the voice that was pruned.
        pruned: what became of it.
        name: of the original's layer.
        choice: what stays, for a voice that lost channels or layers.

    Raises:
        InputError: the original has no such layer that can be pruned.
    """
    layer = next((layer for layer in prunable_layers(original) if layer.name == name), None)
    if layer is None:
        raise InputError(f"This voice has no layer {str(name)[:80]!r} that can be pruned: choose one of the list.")
    weight, module = original.model.get_parameter(layer.parameter).detach().cpu().float(), original.model.get_submodule(name)
    after, left = torch.full_like(weight, float("nan")), None
    found = survivor(original, pruned, choice, name) if choice else None
    if choice is None:
        after = left = pruned.model.get_parameter(layer.parameter).detach().cpu().float()
    elif found is not None:
        left = pruned.model.get_parameter(f"{found.name}.weight").detach().cpu().float()
        places = [torch.tensor(found.kept.get(dimension, range(size))) for dimension, size in enumerate(weight.shape)]
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


def matrix_names(original: Voice, specs: Sequence[PruneSpec]) -> list[str]:
    """Layers that are worth a look: matrices of some size of the parts that were pruned, those that lose something first."""
    parts = {part for spec in specs for part in spec.parts}
    large = [layer for layer in prunable_layers(original) if layer.part in parts and min(layer.shape[:2]) > 1]
    return [layer.name for layer in sorted(large, key=lambda layer: all(spec.protects(layer.name) for spec in specs))]
