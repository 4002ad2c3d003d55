"""Why a layer was left alone, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vits_prune.pruning.layers import Layer
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import PruneSpec, begins_with
from vits_prune.voices.voice import PARTS

_PROTECTED = {
    "duration_predictor": "protected: it sets the rhythm, and its errors make durations run away",
    "decoder.conv_post": "protected: it writes the waveform itself, with few weights",
    "decoder.cond": "protected: it tells the decoder who speaks",
    "flow.flows.*.wavenet.cond_layer": "protected: it tells the flow who speaks",
}
"""Why methods leave layers alone, by the pattern that protects them."""


def why_protected(layer: Layer, steps: Sequence[Mapping[str, Any]]) -> str:
    """Why a layer was left alone in every pruning that its part went through, empty where it was not."""
    # A sweep's step may be of one layer alone, and says which.
    specs = [{key: value for key, value in step.items() if key != "layer"} for step in steps if layer.part in step.get("parts", PARTS)]
    mine = [PruneSpec.from_dict(spec) for spec in specs]
    if not mine or not all(spec.protects(layer.name) or (_no_lever(spec) and layer.part == "duration_predictor") for spec in mine):
        return ""
    if _no_lever(mine[-1]):
        return "structured pruning has no lever in it"
    if mine[-1].protect is not None:
        return "protected: by the wish of who pruned"
    reasons = (words for pattern, words in _PROTECTED.items() if begins_with(layer.name, pattern))
    return next(reasons, "protected: by the method")


def _no_lever(spec: PruneSpec) -> bool:
    return METHODS[spec.method].structured
