"""How many weights are zero, counted from the tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vits_prune.pruning.layers import Layer, layers
from vits_prune.pruning.protection import why_protected
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
