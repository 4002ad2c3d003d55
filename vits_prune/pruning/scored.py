"""Zeroing by scores: what every method does that keeps the surviving weights as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from vits_prune.pruning.calibration import Step
from vits_prune.pruning.layers import Layer
from vits_prune.pruning.listening import texts_for, zeros_wanted
from vits_prune.pruning.masks import pattern_mask, share_out, smallest
from vits_prune.pruning.matrix import LayerMatrix
from vits_prune.pruning.sensitivity import output_sensitivity
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice


def zero_lowest(
    voice: Voice, spec: PruneSpec, layers: Sequence[Layer], scores: Mapping[str, torch.Tensor], *, by_row: bool = False
) -> dict[str, torch.Tensor]:
    """New weights of the layers that lose any, by parameter name.

    Args:
        voice: the original.
        spec: how much, in which scope and pattern.
        layers: which may lose.
        scores: by parameter name, of the weight's shape, comparable across layers; the smallest go first.
        by_row: whether in local scope each output loses the same share (as in Wanda), and not each layer.

    Raises:
        InputError: the layers cannot lose so much, or a pattern does not fit one.
    """
    weights = dict(voice.model.named_parameters())
    if spec.neighbours:
        masks = {layer.parameter: _patterned(voice, layer, scores[layer.parameter], spec) for layer in layers}
    else:
        counts = share_out({layer.parameter: scores[layer.parameter].numpy() for layer in layers}, zeros_wanted(voice, spec, layers),
                           spec.scope, spec.floor)  # fmt: skip
        rows = by_row and spec.scope == "local"
        masks = {
            layer.parameter: _by_row(scores[layer.parameter], counts[layer.parameter], voice, layer)
            if rows
            else smallest(scores[layer.parameter], counts[layer.parameter])
            for layer in layers
        }
    return {name: weights[name].detach().masked_fill(mask, 0.0) for name, mask in masks.items() if bool(mask.any())}


def _patterned(voice: Voice, layer: Layer, scores: torch.Tensor, spec: PruneSpec) -> torch.Tensor:
    matrix = LayerMatrix(voice.model.get_submodule(layer.name))
    mask = pattern_mask(matrix.of(scores) if matrix.dense else scores.reshape(matrix.shape), matrix, spec.neighbours, layer.name)
    return (matrix.back(mask) if matrix.dense else mask.reshape(scores.shape)).bool()


def _by_row(scores: torch.Tensor, count: int, voice: Voice, layer: Layer) -> torch.Tensor:
    """The `count` smallest, spread evenly over the outputs."""
    matrix = LayerMatrix(voice.model.get_submodule(layer.name))
    if not matrix.dense:
        return smallest(scores, count)
    table = matrix.of(scores)
    each, over = divmod(count, table.shape[0])
    places = table.argsort(dim=1, stable=True).argsort(dim=1)
    limit = torch.full((table.shape[0], 1), each)
    limit[:over] += 1
    return matrix.back(places < limit).bool()


def weigh(
    voice: Voice, spec: PruneSpec, scores: dict[str, torch.Tensor], relative: bool, on_step: Step | None = None
) -> dict[str, torch.Tensor]:
    """Scores that are squared errors of a layer's output, made comparable across layers.

    Args:
        voice: the original.
        spec: its scope: "sensitivity" weighs by what errors do to the speech, the others leave it at the share of the layer's output.
        scores: by parameter name.
        relative: whether the scores become shares of their layer's sum.
        on_step: told how far it is.
    """
    if relative or spec.scope == "sensitivity":
        scores = {name: one / one.sum().clamp(min=1e-30) for name, one in scores.items()}
    if spec.scope != "sensitivity":
        return scores
    found = output_sensitivity(voice, texts_for(voice, spec), spec.seed, on_step=on_step)
    return {name: one * found[name] for name, one in scores.items()}
