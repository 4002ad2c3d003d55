"""Facts about voices as frozen dataclasses. Nothing here prunes."""

from vits_prune.measure.latency import Latency, Spread, VoiceLatency, measure_latency
from vits_prune.measure.sparsity import (
    LayerSparsity,
    Size,
    Sparsity,
    measure_size,
    measure_sparsity,
)
from vits_prune.measure.weights import WeightHistogram, measure_weights

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
