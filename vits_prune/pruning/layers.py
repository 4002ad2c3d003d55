"""Which layers of a voice can be pruned, and for the rest the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from vits_prune.errors import InputError
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import PruneSpec, begins_with
from vits_prune.voices.voice import PARTS, Voice

PRUNABLE_KINDS = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)

_REASONS = {
    "Embedding": "a look-up table: its rows are read, not multiplied",
    "LayerNorm": "normalisation: a few scales that every channel needs",
    "Parameter": "a small table of the architecture, not a layer's weights",
}
_PROTECTED = {
    "duration_predictor": "protected: it sets the rhythm, and its errors make durations run away",
    "decoder.conv_post": "protected: it writes the waveform itself, with few weights",
    "decoder.cond": "protected: it tells the decoder who speaks",
    "flow.flows.*.wavenet.cond_layer": "protected: it tells the flow who speaks",
}
"""Why methods leave layers alone, by the pattern that protects them."""


@dataclass(frozen=True)
class Layer:
    """One weight tensor that runs at inference."""

    name: str
    """Module path, such as "decoder.conv_pre"."""
    part: str
    """One of PARTS, or "speaker" for the table of speakers."""
    kind: str
    """Class of the module, or "Parameter" for a tensor of no known kind of module."""
    shape: tuple[int, ...]
    """Conv1d [out, in/groups, k], ConvTranspose1d [in, out, k], Linear [out, in]."""
    weights: int
    """How many, bias not counted."""
    parameter: str
    """Name of the tensor in `model.named_parameters()`."""
    reason: str = ""
    """Why this layer cannot be pruned; empty for one that can."""

    @property
    def prunable(self) -> bool:
        """Whether its weights may become zero."""
        return not self.reason


def layers(voice: Voice) -> tuple[Layer, ...]:
    """Return every weight tensor that runs when a voice speaks, in the model's order, no biases."""
    found = []
    for name, module in voice.model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            if short == "bias":
                continue
            kind = type(module).__name__ if short == "weight" else "Parameter"
            prunable = short == "weight" and isinstance(module, PRUNABLE_KINDS)
            part, full = name.partition(".")[0], f"{name}.{short}"
            layer = Layer(
                name=name if short == "weight" else full,
                part=part if part in PARTS else "speaker",
                kind=kind,
                shape=tuple(parameter.shape),
                weights=parameter.numel(),
                parameter=full,
                reason="" if prunable else _REASONS.get(kind, _REASONS["Parameter"]),
            )
            found.append(layer)
    return tuple(found)


def prunable_layers(voice: Voice, parts: tuple[str, ...] = PARTS) -> tuple[Layer, ...]:
    """Return the layers of the given parts whose weights may become zero."""
    return tuple(layer for layer in layers(voice) if layer.prunable and layer.part in parts)


def chosen_layers(voice: Voice, spec: PruneSpec) -> tuple[Layer, ...]:
    """Return the layers of the spec's parts that are not protected.

    Raises:
        InputError: none is left, or the voice does not have a layer to protect.
    """
    there = prunable_layers(voice)
    for pattern in spec.protect or ():
        if not any(begins_with(layer.name, pattern) for layer in there):
            what = f"{voice.name} has no layer {pattern[:80]!r} to protect"
            raise InputError(f"{what}: `layers` lists them.")
    found = tuple(one for one in there if one.part in spec.parts and not spec.protects(one.name))
    if not found:
        parts = ", ".join(spec.parts)
        what = f"All layers of {parts} are protected, so nothing is left to prune"
        raise InputError(f"{what}: protect less.")
    return found


def why_protected(layer: Layer, steps: Sequence[Mapping[str, Any]]) -> str:
    """Return why an original's layer was left alone by every pruning of its part, or "".

    The steps are the prunings of a recipe, each a PruneSpec as a dictionary; one of a single layer
    has its name under "layer".
    """
    mine = [
        PruneSpec.from_dict({key: value for key, value in step.items() if key != "layer"})
        for step in steps
        if layer.part in step.get("parts", PARTS)
    ]

    def rigid(spec: PruneSpec) -> bool:
        return METHODS[spec.method].structured and layer.part == "duration_predictor"

    if not mine or not all(spec.protects(layer.name) or rigid(spec) for spec in mine):
        return ""
    if METHODS[mine[-1].method].structured:
        return "structured pruning cannot shrink it"
    if mine[-1].protect is not None:
        return "protected: as asked for"
    reasons = (words for pattern, words in _PROTECTED.items() if begins_with(layer.name, pattern))
    return next(reasons, "protected: by the method")
