"""What is known of a pruned voice before it is pruned, in words: for methods that look at more than the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vits_prune.errors import InputError
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.pruning.listening import chosen_layers, zeros_wanted
from vits_prune.pruning.matrix import LayerMatrix
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.shape import sizes, sizes_of
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured.shrink import shape_for
from vits_prune.studio.workbench import listens
from vits_prune.voices.voice import Voice

_PRESS = "Pruning runs when you press Speak."


def forecast_words(voice: Voice, spec: PruneSpec) -> str:
    """The line under the slider; where the spec asks for what the voice cannot give, the sentence that says so."""
    try:
        return (
            _structured(voice, spec)
            if METHODS[spec.method].structured
            else _unstructured(voice, spec)
        )
    except InputError as error:
        return str(error)


def reachable(voice: Voice, specs: Sequence[PruneSpec]) -> list[PruneSpec]:
    """Those that the voice can be pruned by: what is protected, and a floor, cap the amount.

    Raises:
        InputError: none is, with the reason of the first.
    """
    found, reason = [], None
    for spec in specs:
        try:
            _feasible(voice, spec)
        except InputError as error:
            reason = reason or error
        else:
            found.append(spec)
    if not found and reason:
        raise reason
    return found


def _grouped(voice: Voice, spec: PruneSpec) -> tuple[Layer, ...]:
    """The layers that are pruned.

    Raises:
        InputError: a pattern that does not fit one of them, or none is left.
    """
    chosen = chosen_layers(voice, spec)
    for layer in chosen if spec.neighbours else ():
        matrix = LayerMatrix(voice.model.get_submodule(layer.name))
        inputs = matrix.channels(torch.empty(matrix.shape, device="meta")).shape[1]
        if inputs % spec.neighbours[1]:
            words = f"{layer.name} has {inputs} input channels, which the pattern {spec.pattern} cannot group: leave it alone too."
            raise InputError(words)
    return chosen


def _feasible(voice: Voice, spec: PruneSpec) -> None:
    if METHODS[spec.method].structured:
        sizes(voice.model.config, spec.shape or shape_for(voice, spec))
    else:
        zeros_wanted(voice, spec, chosen_layers(voice, spec))


def _unstructured(voice: Voice, spec: PruneSpec) -> str:
    chosen = _grouped(voice, spec)
    everything = sum(layer.weights for layer in prunable_layers(voice))
    mine = sum(layer.weights for layer in chosen)
    wanted = round(spec.amount * mine) if spec.pattern else zeros_wanted(voice, spec, chosen)
    words = [f"Sparsity: **{100 * wanted / everything:.1f}%** of the whole voice."]
    left_alone = [
        layer for layer in prunable_layers(voice, spec.parts) if spec.protects(layer.name)
    ]
    if left_alone:
        named = [
            name
            for name in spec.protected
            if any(PruneSpec(protect=(name,)).protects(layer.name) for layer in left_alone)
        ]
        shown = ", ".join(f"`{name[:60].replace('`', '')}`" for name in named[:6])
        words.append(f"Protected: {shown}; the rest loses {100 * wanted / mine:.1f}%.")
    return "  \n".join([" ".join(words), *([_PRESS] if listens(spec) else [])])


def _structured(voice: Voice, spec: PruneSpec) -> str:
    now, then = (
        sizes_of(voice.model.config),
        sizes(voice.model.config, spec.shape or shape_for(voice, spec)),
    )
    pairs = [
        ("decoder channels", now.initial_channels, then.initial_channels),
        ("channels inside residual blocks", now.inner_channels, then.inner_channels),
        ("feed-forward channels", now.ffn_channels, then.ffn_channels),
        ("branches a stage", now.branches, then.branches),
        ("encoder layers", now.encoder_layers, then.encoder_layers),
        ("coupling layers", now.flows, then.flows),
        ("WaveNet layers", now.wavenet_layers, then.wavenet_layers),
    ]
    changed = [
        f"{name} {_shown(before)} → **{_shown(after)}**"
        for name, before, after in pairs
        if before != after
    ]
    return (
        f"{' · '.join(changed) or 'Nothing goes: all levers are at their full length.'}  \n{_PRESS}"
    )


def _shown(size: int | tuple[int, ...] | None) -> str:
    return "/".join(map(str, size)) if isinstance(size, tuple) else str(size)
