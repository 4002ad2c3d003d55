"""Activation-aware pruning: |weight| times the strength of what it is given (Wanda: Sun et al. 2023, arXiv:2306.11695).

In local scope every output of a layer loses the same share, as in the paper. Across layers the squared score, which is the error that a
zero makes in the layer's output, is taken as a share of that output.
"""

from __future__ import annotations

import torch
from torch import nn

from vits_prune.pruning.calibration import Statistics, Step, portion
from vits_prune.pruning.layers import Layer
from vits_prune.pruning.listening import chosen_layers, listen
from vits_prune.pruning.scored import weigh, zero_lowest
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Step | None = None
) -> dict[str, torch.Tensor]:
    """New weights for the layers that lose any, by parameter name.

    Raises:
        InputError: the voice can say nothing of the calibration texts, or the layers cannot lose so much.
    """
    layers, heard = chosen_layers(voice, spec), 0.5 if spec.scope == "sensitivity" else 1.0
    scores = {
        layer.parameter: output_errors(voice, layer, statistics)
        for layer, statistics in listen(
            voice, spec, layers, covariances=False, progress=portion(progress, 0.0, heard)
        )
    }
    return zero_lowest(
        voice,
        spec,
        layers,
        weigh(voice, spec, scores, progress=portion(progress, heard, 1.0)),
        by_row=True,
    )


def output_errors(voice: Voice, layer: Layer, statistics: Statistics) -> torch.Tensor:
    """Mean squared error that each weight's going makes in its layer's output, of the weight's shape."""
    weight, matrix = voice.model.get_parameter(layer.parameter).detach().float(), statistics.matrix
    energy = statistics.energy / max(1, statistics.windows)
    if not matrix.dense:
        inputs_first = isinstance(matrix.module, nn.ConvTranspose1d)
        return weight.square() * (
            energy.repeat(matrix.module.groups)[:, None, None]
            if inputs_first
            else energy[None, :, None]
        )
    return matrix.back(matrix.of(weight).square() * energy[: matrix.shape[1]])
