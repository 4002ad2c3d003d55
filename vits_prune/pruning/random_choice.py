"""Random pruning: the baseline that a method has to beat."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.layers import chosen_layers
from vits_prune.pruning.masks import weigh, zero_lowest
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Progress = SILENT
) -> dict[str, torch.Tensor]:
    """Return the new weights of the layers that lose any, drawn from the seed layer by layer.

    Raises:
        InputError: the layers cannot lose so much, or a pattern does not fit one.
    """
    layers, scores = chosen_layers(voice, spec), {}
    for layer in layers:
        key = [spec.seed, zlib.crc32(layer.parameter.encode())]
        random = np.random.Generator(np.random.Philox(key))
        scores[layer.parameter] = torch.from_numpy(random.random(layer.shape, dtype=np.float32))
    if spec.scope == "sensitivity":
        scores = weigh(voice, spec, scores, progress)
    return zero_lowest(voice, spec, layers, scores)
