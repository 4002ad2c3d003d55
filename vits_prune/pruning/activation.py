"""Activation-aware pruning: |weight| times the strength of its input (Wanda, arXiv:2306.11695).

In local scope every output of a layer loses the same share, as in the paper (Sun et al. 2023).
Across layers the squared score, which is the error that a zero makes in the layer's output, counts
as a share of that output.
"""

from __future__ import annotations

import torch
from torch import nn

from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.calibration import Statistics, calibrate
from vits_prune.pruning.layers import Layer, chosen_layers
from vits_prune.pruning.masks import weigh, zero_lowest
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Progress = SILENT
) -> dict[str, torch.Tensor]:
    """Return the new weights of the layers that lose any, by parameter name.

    Raises:
        InputError: the voice can say none of the calibration texts, or the layers cannot lose so
            much.
    """
    layers, heard = chosen_layers(voice, spec), 0.5 if spec.scope == "sensitivity" else 1.0
    found = calibrate(voice, spec, layers, covariances=False, progress=progress.part(0.0, heard))
    scores = {layer.parameter: output_errors(voice, layer, one) for layer, one in found}
    weighed = weigh(voice, spec, scores, progress.part(heard, 1.0))
    return zero_lowest(voice, spec, layers, weighed, by_row=True)


def output_errors(voice: Voice, layer: Layer, statistics: Statistics) -> torch.Tensor:
    """Return the mean squared error that a zero in each place of a weight makes in the output."""
    weight, matrix = voice.model.get_parameter(layer.parameter).detach().float(), statistics.matrix
    energy = statistics.energy / max(1, statistics.windows)
    if matrix.dense:
        return matrix.back(matrix.of(weight).square() * energy[: matrix.shape[1]])
    if isinstance(matrix.module, nn.ConvTranspose1d):
        return weight.square() * energy.repeat(matrix.module.groups)[:, None, None]
    return weight.square() * energy[None, :, None]
