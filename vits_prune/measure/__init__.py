"""Facts about voices and pairs of voices, as frozen dataclasses."""

from vits_prune.measure.cost import Latency, Spread, VoiceLatency, measure_latency
from vits_prune.measure.weights import (
    LayerSparsity,
    Size,
    Sparsity,
    WeightHistogram,
    measure_size,
    measure_sparsity,
    measure_weights,
)

__all__ = [
    "Latency",
    "LayerSparsity",
    "Size",
    "Sparsity",
    "Spread",
    "VoiceLatency",
    "WeightHistogram",
    "measure_latency",
    "measure_size",
    "measure_sparsity",
    "measure_weights",
]
