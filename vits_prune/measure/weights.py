"""The weights of a voice: zeros, sizes, and what pruning removed. All counted from the tensors."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from vits_prune.errors import InputError
from vits_prune.pruning.layers import Layer, layers, prunable_layers, why_protected
from vits_prune.voices.sparse_file import encode
from vits_prune.voices.voice import PARTS, Voice, without_masks

WINDOW = 64
"""Rows and columns of a MatrixPair at most."""


@dataclass(frozen=True)
class LayerSparsity:
    """One layer and its zeros."""

    layer: Layer
    zeros: int
    note: str
    """Why the layer was left alone, empty where it could be pruned."""

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / self.layer.weights


@dataclass(frozen=True)
class Sparsity:
    """Zeros among the weights of prunable layers that run at inference; biases do not count."""

    layers: tuple[LayerSparsity, ...]

    def weights(self, part: str | None = None) -> int:
        """Return the number of prunable weights of a part, or of the voice."""
        return sum(row.layer.weights for row in self._prunable(part))

    def zeros(self, part: str | None = None) -> int:
        """Return the number of zeros among them."""
        return sum(row.zeros for row in self._prunable(part))

    @property
    def overall(self) -> float:
        """Share of zeros among all prunable weights, 0 to 1."""
        return self.zeros() / max(1, self.weights())

    @property
    def parts(self) -> dict[str, float]:
        """Share of zeros by part, 0 to 1."""
        return {part: self.zeros(part) / self.weights(part) for part in PARTS if self.weights(part)}

    def _prunable(self, part: str | None) -> list[LayerSparsity]:
        return [row for row in self.layers if row.layer.prunable and part in (None, row.layer.part)]


def measure_sparsity(voice: Voice) -> Sparsity:
    """Count the zeros of every layer of a voice."""
    voice = without_masks(voice)
    parameters, history = dict(voice.model.named_parameters()), voice.recipe.get("pruned", ())
    chosen = {part for pruning in history for part in pruning.get("parts", PARTS)}
    rows = []
    for layer in layers(voice):
        tensor, left = parameters[layer.parameter], chosen and layer.part not in chosen
        skipped = "its part was not chosen" if left else why_protected(layer, history)
        note = layer.reason or skipped
        rows.append(LayerSparsity(layer, tensor.numel() - int(torch.count_nonzero(tensor)), note))
    return Sparsity(tuple(rows))


@dataclass(frozen=True)
class Size:
    """Sizes of one voice. Those of files are read off files that were written and removed."""

    parameters: int
    """All parameters that run at inference, zeros included."""
    nonzero_parameters: int
    dense_fp32_bytes: int
    """A safetensors file of float32."""
    dense_fp16_bytes: int
    """A safetensors file of float16."""
    sparse_fp32_bytes: int
    """The lossless sparse encoding of `voices/sparse_file.py`, float32 values."""
    memory_bytes: int
    """The tensors in memory when the voice is ready to speak."""


def measure_size(voice: Voice) -> Size:
    """Write a voice in each format, read off the sizes, remove the files; OSError if they fail."""
    voice = without_masks(voice)
    held = dict(voice.model.named_parameters())
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in held.items()}
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(prefix="vits_prune-size-") as name:
        folder = Path(name)
        sparse = (folder / "sparse.safetensors").write_bytes(encode(tensors))
        try:
            save_file(tensors, folder / "fp32.safetensors")
            save_file(halves, folder / "fp16.safetensors")
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        dense, half = ((folder / f"{kind}.safetensors").stat().st_size for kind in ("fp32", "fp16"))
    return Size(
        parameters=sum(t.numel() for t in tensors.values()),
        nonzero_parameters=sum(int(torch.count_nonzero(t)) for t in tensors.values()),
        dense_fp32_bytes=dense,
        dense_fp16_bytes=half,
        sparse_fp32_bytes=sparse,
        memory_bytes=sum(t.numel() * t.element_size() for t in held.values()),
    )


@dataclass(frozen=True, eq=False)
class WeightHistogram:
    """Absolute values of the original's prunable weights, kept and zeroed ones apart."""

    edges: np.ndarray
    """Of the bins, float [bins + 1]; the last bin takes everything above."""
    kept: np.ndarray
    """How many weights stayed, int [bins]."""
    zeroed: np.ndarray
    """Weights that became zero, or were removed with their channel or layer, int [bins]."""
    largest_zeroed: float
    """Largest absolute value that was zeroed, 0 where none was. Under global L1, the threshold."""
    smallest_kept: float
    """Smallest absolute value that stayed. Under local L1 it is far below `largest_zeroed`."""


def measure_weights(original: Voice, pruned: Voice, bins: int = 80) -> WeightHistogram:
    """Count the weights of the layers that pruning changed (of all layers if it changed none).

    In a part that lost channels or layers, single weights cannot be matched. There, as many of each
    magnitude as the pruned voice has count as kept and the rest as zeroed, and neither counts for
    the threshold.
    """
    before, after = dict(original.model.named_parameters()), dict(pruned.model.named_parameters())
    prunable = prunable_layers(original)
    cut = {
        layer.part
        for layer in prunable
        if layer.parameter not in after or after[layer.parameter].shape != layer.shape
    }
    comparable = [layer.parameter for layer in prunable if layer.part not in cut]
    changed = [name for name in comparable if before[name] is not after[name]]
    if not changed and not cut:
        changed = comparable
    old = [before[layer.parameter] for layer in prunable if layer.part in cut]
    new = [after[layer.parameter] for layer in prunable_layers(pruned) if layer.part in cut]
    return _histogram([(before[name], after[name]) for name in changed], old, new, bins)


def measure_layer_weights(
    original: Voice,
    pruned: Voice,
    name: str,
    now: str | None,
    kept: Mapping[int, Sequence[int]] = MappingProxyType({}),
    bins: int = 80,
) -> WeightHistogram:
    """Count the weights of one layer by the original's values, kept and zeroed or removed.

    Args:
        original, pruned, name, now, kept: as of `measure_matrix`.
        bins: of the histogram.
    """
    before, after, _ = _in_place(original, pruned, f"{name}.weight", now, kept)
    return _histogram([(before, after.nan_to_num(0.0))], [], [], bins)


def _histogram(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    old: Sequence[torch.Tensor],
    new: Sequence[torch.Tensor],
    bins: int,
) -> WeightHistogram:
    """Count tensors that can be matched, in pairs, and those that cannot, old and new."""
    magnitudes = [_magnitudes(before) for before, _ in pairs]
    gone = [(after == 0).flatten().cpu() for _, after in pairs]

    # The axis ends above nearly all weights and above what was zeroed. A sample is enough for it.
    most = torch.cat([*(m[::64] for m in magnitudes), *(_magnitudes(t)[::64] for t in old)])
    zeroed_sample = [(m * zero)[::64] for m, zero in zip(magnitudes, gone, strict=True)]
    highest = float(torch.cat([*zeroed_sample, torch.zeros(1)]).max())
    top = max(float(most.float().quantile(0.98)), 1.3 * highest) or 1.0

    def counts(values: torch.Tensor) -> np.ndarray:
        histogram = torch.histc(values.float().clamp(max=top), bins=bins, min=0.0, max=top)
        return histogram.numpy().astype(np.int64)

    none = np.zeros(bins, dtype=np.int64)
    total = sum((counts(_magnitudes(tensor)) for tensor in old), none)
    left = sum((counts(_magnitudes(tensor[tensor != 0])) for tensor in new), none)
    kept = np.minimum(left, total)
    zeroed = total - kept
    largest, smallest = 0.0, float("inf")
    for values, zero in zip(magnitudes, gone, strict=True):
        zeros, others = values[zero], values[~zero]
        kept, zeroed = kept + counts(others), zeroed + counts(zeros)
        largest = max(largest, float(zeros.max()) if len(zeros) else 0.0)
        smallest = min(smallest, float(others.min()) if len(others) else float("inf"))
    return WeightHistogram(np.linspace(0.0, top, bins + 1), kept, zeroed, largest, smallest)


def _magnitudes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().abs().flatten().cpu()


@dataclass(frozen=True, eq=False)
class MatrixPair:
    """A corner of a layer's weights, outputs down and inputs across, at the middle tap."""

    layer: Layer
    before: np.ndarray
    """|weight| of the original, float [rows, columns]."""
    after: np.ndarray
    """|weight| of the pruned voice in the same places, NaN where it was removed."""
    tap: int
    taps: int
    zeros: float
    """Share of zeros in the whole layer of the pruned voice, 0 to 1."""
    shape_after: tuple[int, ...] | None
    """Shape of the weight in the pruned voice, None where the layer was removed."""


def measure_matrix(
    original: Voice,
    pruned: Voice,
    name: str,
    now: str | None,
    kept: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> MatrixPair:
    """Return the corner of one layer in both voices.

    Args:
        original, pruned: the two voices.
        name: of the layer in the original.
        now: name of the layer in the pruned voice, None where it was removed.
        kept: for each dimension of the weight that lost something, the indices that stayed.

    Raises:
        InputError: the original has no such layer that can be pruned.
    """
    layer = next((layer for layer in prunable_layers(original) if layer.name == name), None)
    if layer is None:
        what = f"This voice has no layer {str(name)[:80]!r} that can be pruned"
        raise InputError(f"{what}: choose one from the list.")
    module = original.model.get_submodule(name)
    weight, after, left = _in_place(original, pruned, layer.parameter, now, kept)
    taps = weight.shape[2] if weight.dim() == 3 else 1
    return MatrixPair(
        layer,
        before=_corner(weight, module, taps // 2),
        after=_corner(after, module, taps // 2),
        tap=taps // 2,
        taps=taps,
        zeros=0.0 if left is None else 1 - int(torch.count_nonzero(left)) / left.numel(),
        shape_after=None if left is None else tuple(left.shape),
    )


def _in_place(
    original: Voice,
    pruned: Voice,
    parameter: str,
    now: str | None,
    kept: Mapping[int, Sequence[int]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return the original's weight, the pruned one in its places (NaN where gone), and as it is."""
    weight = original.model.get_parameter(parameter).detach().cpu().float()
    after = torch.full_like(weight, float("nan"))
    if now is None:
        return weight, after, None
    left = pruned.model.get_parameter(f"{now}.weight").detach().cpu().float()
    places = [
        torch.tensor(kept.get(dimension, range(size)))
        for dimension, size in enumerate(weight.shape)
    ]
    after[torch.meshgrid(*places, indexing="ij")] = left
    return weight, after, left


def _corner(weight: torch.Tensor, module: nn.Module, tap: int) -> np.ndarray:
    table = weight[..., tap] if weight.dim() == 3 else weight
    if isinstance(module, nn.ConvTranspose1d):
        table = table.T
    return table[:WINDOW, :WINDOW].abs().numpy()
