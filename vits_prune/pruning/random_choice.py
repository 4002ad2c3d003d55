"""Random pruning: the baseline that a method has to beat."""

from __future__ import annotations

import zlib

import numpy as np
import torch

from vits_prune.pruning.calibration import Step
from vits_prune.pruning.listening import chosen_layers
from vits_prune.pruning.scored import weigh, zero_lowest
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Step | None = None
) -> dict[str, torch.Tensor]:
    """New weights for the layers that lose any, by parameter name: which weights go is drawn from the seed, layer by layer.

    Raises:
        InputError: the layers cannot lose so much, or a pattern does not fit one.
    """
    layers = chosen_layers(voice, spec)
    scores = {}
    for layer in layers:
        random = np.random.Generator(
            np.random.Philox([spec.seed, zlib.crc32(layer.parameter.encode())])
        )
        scores[layer.parameter] = torch.from_numpy(random.random(layer.shape, dtype=np.float32))
    if spec.scope == "sensitivity":
        scores = weigh(voice, spec, scores, progress=progress)
    return zero_lowest(voice, spec, layers, scores)
