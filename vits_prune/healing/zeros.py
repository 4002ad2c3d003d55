"""Zeros that stay zeros: which weights of a pruned voice may not learn."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vits_prune.pruning.layers import prunable_layers
from vits_prune.voices.voice import Voice


def masks(voice: Voice) -> dict[str, torch.Tensor]:
    """Parameter name -> 1 where a weight may learn and 0 where it is an exact zero, for prunable layers that have any.

    Weights are float32; so are the masks, since torch multiplies lists of tensors of one kind at once.
    """
    weights = dict(voice.model.named_parameters())
    found = {layer.parameter: (weights[layer.parameter] != 0).to(weights[layer.parameter]) for layer in prunable_layers(voice)}
    return {name: mask for name, mask in found.items() if not bool(mask.all())}


def restored(weights: Mapping[str, torch.Tensor], pruned: Voice) -> dict[str, torch.Tensor]:
    """Weights with the pruned voice's zeros in place, to the bit."""
    before = dict(pruned.model.named_parameters())
    held = masks(pruned)
    return {
        name: torch.where(held[name].bool(), weight, before[name].to(weight)) if name in held else weight
        for name, weight in weights.items()
    }
