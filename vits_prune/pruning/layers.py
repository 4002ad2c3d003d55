"""Which layers of a voice can be pruned, and for the rest the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import PruneSpec, begins_with
from vits_prune.voices.voice import PARTS, Voice

PRUNABLE_KINDS = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)

_REASONS = {
    "Embedding": "a look-up table: its rows are read, not multiplied",
    "LayerNorm": "normalisation: a handful of scales that every channel needs",
    "Parameter": "a small table of the architecture, not a layer's weights",
}


@dataclass(frozen=True)
class Layer:
    """One weight tensor that runs at inference."""

    name: str
    """Module path in the model, such as "decoder.conv_pre"."""
    part: str
    """One of PARTS, or "speaker" for the table of speakers."""
    kind: str
    """Class of the module, or "Parameter" for a tensor that belongs to none of the known kinds."""
    shape: tuple[int, ...]
    """Shape of the weight: Conv1d [out, in/groups, k], ConvTranspose1d [in, out, k], Linear [out, in]."""
    weights: int
    """Number of weights, bias not counted."""
    parameter: str
    """Name of the tensor in `model.named_parameters()`."""
    reason: str = ""
    """Why this layer is left alone; empty for one that can be pruned."""

    @property
    def prunable(self) -> bool:
        return not self.reason


def layers(voice: Voice) -> tuple[Layer, ...]:
    """Every weight tensor of a voice that runs when it speaks, in the model's order. Biases go with their layer and are not listed."""
    return tuple(_walk(voice))


def prunable_layers(voice: Voice, parts: tuple[str, ...] = PARTS) -> tuple[Layer, ...]:
    """The layers of the given parts whose weights may be set to zero."""
    return tuple(layer for layer in _walk(voice) if layer.prunable and layer.part in parts)


def _walk(voice: Voice) -> Iterator[Layer]:
    for name, module in voice.model.named_modules():
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if parameter_name == "bias":
                continue
            known = parameter_name == "weight"
            kind = type(module).__name__ if known else "Parameter"
            prunable = known and isinstance(module, PRUNABLE_KINDS)
            path = name.partition(".")[0]
            yield Layer(
                name=name if known else f"{name}.{parameter_name}",
                part=path if path in PARTS else "speaker",
                kind=kind,
                shape=tuple(parameter.shape),
                weights=parameter.numel(),
                parameter=f"{name}.{parameter_name}",
                reason="" if prunable else _REASONS.get(kind, _REASONS["Parameter"]),
            )


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
    specs = [
        {key: value for key, value in step.items() if key != "layer"}
        for step in steps
        if layer.part in step.get("parts", PARTS)
    ]
    mine = [PruneSpec.from_dict(spec) for spec in specs]
    if not mine or not all(
        spec.protects(layer.name) or (_no_lever(spec) and layer.part == "duration_predictor")
        for spec in mine
    ):
        return ""
    if _no_lever(mine[-1]):
        return "structured pruning has no lever in it"
    if mine[-1].protect is not None:
        return "protected: by the wish of who pruned"
    reasons = (words for pattern, words in _PROTECTED.items() if begins_with(layer.name, pattern))
    return next(reasons, "protected: by the method")


def _no_lever(spec: PruneSpec) -> bool:
    return METHODS[spec.method].structured
