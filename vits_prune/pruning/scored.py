"""Zeroing by scores: what every method does that keeps the surviving weights as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from vits_prune.errors import InputError
from vits_prune.pruning.calibration import Step
from vits_prune.pruning.layers import Layer
from vits_prune.pruning.listening import texts_for, zeros_wanted
from vits_prune.pruning.masks import pattern_mask, share_out, smallest
from vits_prune.pruning.matrix import LayerMatrix
from vits_prune.pruning.sensitivity import output_sensitivity
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice

TEMPER = 0.25
"""Power of the measured sensitivities. They hold for small errors; at the sparsities of interest errors are large and saturate, and the
whole power would empty the decoder (joe at 0.8, tuning sentences: log-mel distance 1.17 with 1, 0.51 with 0.4, 0.46 with 0.2)."""


def zero_lowest(
    voice: Voice,
    spec: PruneSpec,
    layers: Sequence[Layer],
    scores: Mapping[str, torch.Tensor],
    *,
    by_row: bool = False,
) -> dict[str, torch.Tensor]:
    """New weights of the layers that lose any, by parameter name.

    Args:
        voice: the original.
        spec: how much, in which scope and pattern.
        layers: which may lose.
        scores: by parameter name, of the weight's shape, comparable across layers; the smallest go first.
        by_row: whether in local scope each output loses the same share (as in Wanda), and not each layer.

    Raises:
        InputError: the layers cannot lose so much, a pattern does not fit one, or a score is no number.
    """
    weights = dict(voice.model.named_parameters())
    check_finite(voice, scores)
    # Zeros that are there go first, so that another step of gradual pruning takes no more than it is asked for.
    scores = {name: one.masked_fill(weights[name] == 0, -1.0) for name, one in scores.items()}
    if spec.neighbours:
        masks = {
            layer.parameter: _patterned(voice, layer, scores[layer.parameter], spec)
            for layer in layers
        }
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
    return {
        name: weights[name].detach().masked_fill(mask, 0.0)
        for name, mask in masks.items()
        if bool(mask.any())
    }


def check_finite(voice: Voice, scores: Mapping[str, torch.Tensor]) -> None:
    """Refuse scores that are no numbers, by parameter name.

    Raises:
        InputError: one is not finite.
    """
    for name, one in scores.items():
        if not bool(torch.isfinite(one).all()):
            raise InputError(
                f"{name} of {voice.name} holds or makes what is no finite number: the voice is broken, load it anew."
            )


def _patterned(voice: Voice, layer: Layer, scores: torch.Tensor, spec: PruneSpec) -> torch.Tensor:
    matrix = LayerMatrix(voice.model.get_submodule(layer.name))
    return matrix.back(pattern_mask(matrix.of(scores), matrix, spec.neighbours, layer.name))


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
    return matrix.back(places < limit)


def weigh(
    voice: Voice, spec: PruneSpec, scores: dict[str, torch.Tensor], progress: Step | None = None
) -> dict[str, torch.Tensor]:
    """Scores that are squared errors of a layer's output, made comparable across layers.

    Args:
        voice: the original.
        spec: its scope: "sensitivity" weighs by what errors do to the speech, the others leave it at the share of the layer's output.
        scores: by parameter name.
        progress: told how far it is.
    """
    scores = {name: one / one.sum().clamp(min=1e-30) for name, one in scores.items()}
    if spec.scope != "sensitivity":
        return scores
    found = output_sensitivity(voice, texts_for(voice, spec), spec.seed, progress=progress)
    return {name: one * found[name] ** TEMPER for name, one in scores.items()}
