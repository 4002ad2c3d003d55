"""How many weights are zero, counted from the tensors."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from vits_prune.pruning.layers import Layer, layers, why_protected
from vits_prune.voices.sparse_file import write_sparse
from vits_prune.voices.voice import PARTS, Voice


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
    """Zeros among the weights of the prunable layers (Conv1d, ConvTranspose1d, Linear) that run at inference. Biases are not counted."""

    layers: tuple[LayerSparsity, ...]

    def weights(self, part: str | None = None) -> int:
        """Prunable weights of a part, or of the voice."""
        return sum(row.layer.weights for row in self._prunable(part))

    def zeros(self, part: str | None = None) -> int:
        """Zeros among them."""
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
    parameters = dict(voice.model.named_parameters())
    steps = voice.recipe.get("pruned", ())
    chosen = {part for step in steps for part in step.get("parts", PARTS)}
    rows = []
    for layer in layers(voice):
        tensor = parameters[layer.parameter]
        note = layer.reason
        if not note and chosen and layer.part not in chosen:
            note = "its part was not chosen"
        elif not note:
            note = why_protected(layer, steps)
        rows.append(LayerSparsity(layer, tensor.numel() - int(torch.count_nonzero(tensor)), note))
    return Sparsity(tuple(rows))


@dataclass(frozen=True)
class Size:
    """Sizes of one voice. File sizes are those of files that were written to disk and removed again."""

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
    """What the tensors take in memory when the voice is ready to speak."""


def measure_size(voice: Voice) -> Size:
    """Write a voice in each format, read off the sizes, remove the files."""
    held = dict(voice.model.named_parameters())
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in held.items()}
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory(prefix="vits_prune-size-") as name:
        folder = Path(name)
        sparse = write_sparse(tensors, folder / "sparse.safetensors")
        save_file(tensors, folder / "fp32.safetensors")
        save_file(halves, folder / "fp16.safetensors")
        dense, half = ((folder / f"{kind}.safetensors").stat().st_size for kind in ("fp32", "fp16"))
    return Size(
        parameters=sum(t.numel() for t in tensors.values()),
        nonzero_parameters=sum(int(torch.count_nonzero(t)) for t in tensors.values()),
        dense_fp32_bytes=dense,
        dense_fp16_bytes=half,
        sparse_fp32_bytes=sparse,
        memory_bytes=sum(t.numel() * t.element_size() for t in held.values()),
    )
