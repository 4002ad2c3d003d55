"""The distribution of a voice's weights and what pruning took of it."""

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


@dataclass(frozen=True, eq=False)
class WeightHistogram:
    """Absolute values of the prunable weights of the original, counted apart by what became of them."""

    edges: np.ndarray
    """Bin edges, float [bins + 1]; the last bin takes everything above."""
    kept: np.ndarray
    """Weights that stayed, int [bins]."""
    zeroed: np.ndarray
    """Weights that became zero or went with their channel or layer, int [bins]."""
    largest_zeroed: float
    """Largest absolute value that was zeroed, 0 where none was: under global L1 the threshold."""
    smallest_kept: float
    """Smallest absolute value that stayed: under global L1 the same threshold, under local L1 far below `largest_zeroed`."""


def measure_weights(original: Voice, pruned: Voice, bins: int = 80) -> WeightHistogram:
    """Count weights by absolute value, kept and zeroed, over the layers that pruning changed (over all where it changed none).

    Of a part that lost channels or layers no weight can be told from another: as many of each magnitude as the pruned voice still has
    count as kept and the rest as zeroed, and neither has a say in the threshold.
    """
    before, after = dict(original.model.named_parameters()), dict(pruned.model.named_parameters())
    there = prunable_layers(original)
    cut = {
        layer.part
        for layer in there
        if layer.parameter not in after or after[layer.parameter].shape != layer.shape
    }
    comparable = [layer.parameter for layer in there if layer.part not in cut]
    changed = [name for name in comparable if before[name] is not after[name]]
    if not changed and not cut:
        changed = comparable
    old = [before[layer.parameter] for layer in there if layer.part in cut]
    new = [after[layer.parameter] for layer in prunable_layers(pruned) if layer.part in cut]
    samples = [
        (_sample(before[name]), _sample(before[name] * (after[name] == 0))) for name in changed
    ]
    samples += [(_sample(tensor), torch.zeros(1)) for tensor in old]
    top = _top(*(torch.cat(parts) for parts in zip(*samples, strict=True)))
    edges = np.linspace(0.0, top, bins + 1)
    held = sum(
        (_counts(tensor.detach().abs().flatten().cpu(), top, bins) for tensor in old),
        np.zeros(bins, dtype=np.int64),
    )
    left = sum(
        (_counts(tensor[tensor != 0].detach().abs().cpu(), top, bins) for tensor in new),
        np.zeros(bins, dtype=np.int64),
    )
    kept = np.minimum(left, held)
    zeroed = held - kept
    largest, smallest = 0.0, float("inf")
    for name in changed:
        magnitudes, gone = (
            before[name].detach().abs().flatten().cpu(),
            (after[name] == 0).flatten().cpu(),
        )
        counted = [_counts(magnitudes[chosen], top, bins) for chosen in (~gone, gone)]
        kept += counted[0]
        zeroed += counted[1]
        largest = max(largest, float(magnitudes[gone].max()) if gone.any() else 0.0)
        smallest = min(smallest, float(magnitudes[~gone].min()) if not gone.all() else float("inf"))
    return WeightHistogram(edges, kept, zeroed, largest, smallest)


def _top(magnitudes: torch.Tensor, zeroed: torch.Tensor) -> float:
    """Where the axis ends: nearly all weights, and what was zeroed with room beside it."""
    return max(float(magnitudes.quantile(0.98)), 1.3 * float(zeroed.max())) or 1.0


def _sample(weight: torch.Tensor) -> torch.Tensor:
    """One in 64 of the magnitudes, evenly spaced: enough for where the axis ends."""
    return weight.detach().abs().flatten().float().cpu()[::64]


def _counts(magnitudes: torch.Tensor, top: float, bins: int) -> np.ndarray:
    return (
        torch.histc(magnitudes.float().clamp(max=top), bins=bins, min=0.0, max=top)
        .numpy()
        .astype(np.int64)
    )


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
    original: Voice,
    pruned: Voice,
    name: str,
    now: str | None,
    kept: Mapping[int, Sequence[int]] = MappingProxyType({}),
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
        raise InputError(
            f"This voice has no layer {str(name)[:80]!r} that can be pruned: choose one of the list."
        )
    weight, module = (
        original.model.get_parameter(layer.parameter).detach().cpu().float(),
        original.model.get_submodule(name),
    )
    after, left = torch.full_like(weight, float("nan")), None
    if now is not None:
        left = pruned.model.get_parameter(f"{now}.weight").detach().cpu().float()
        places = [
            torch.tensor(kept.get(dimension, range(size)))
            for dimension, size in enumerate(weight.shape)
        ]
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
