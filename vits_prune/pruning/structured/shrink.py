"""Structured pruning: choose what stays by its importance, cut, and fit the rest to its work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.calibration import texts_for
from vits_prune.pruning.spec import PruneSpec, Shape
from vits_prune.pruning.structured.couplings import (
    BRANCHES,
    RESBLOCKS,
    Group,
    Kept,
    group_counts,
    groups,
    sizes,
    sizes_of,
)
from vits_prune.pruning.structured.cut import choose, cut, latents_are_flipped
from vits_prune.pruning.structured.importance import measure_importance
from vits_prune.pruning.structured.refit import refit
from vits_prune.voices.voice import Voice


def prune_voice(
    voice: Voice,
    spec: PruneSpec,
    progress: Progress = SILENT,
    original: Voice | None = None,
    **changes: Any,
) -> Voice:
    """Return a smaller voice.

    In gradual pruning the amount counts from the original, and each cut is fitted to the voice
    before it. `changes` are other fields of the new Voice, such as `recipe`.
    """
    shape, texts = spec.shape or shape_for(original or voice, spec), texts_for(voice, spec)
    if original is not None and original is not voice:
        # What makes of the cut voice what the shape makes of its original.
        wanted, now = sizes(original.model.config, shape), sizes_of(voice.model.config)
        decoder = wanted.initial_channels / now.initial_channels
        ffn = wanted.ffn_channels / now.ffn_channels
        shape = dataclasses.replace(shape, decoder_width=decoder, ffn_width=ffn, multiple=1)
    kept = chosen(voice, spec, shape, progress.part(0.0, 0.4))
    smaller = cut(voice, kept, **changes)
    refit(voice, smaller, kept, texts, spec.seed, progress=progress.part(0.4, 1.0))
    return smaller


def chosen(voice: Voice, spec: PruneSpec, shape: Shape, progress: Progress = SILENT) -> Kept:
    """Return what stays of a voice for a Shape, by the spec's importance."""
    counts = group_counts(voice, sizes(voice.model.config, shape))
    wanted = [group for group in groups(voice) if counts[group.name] < group.size]
    return choose(voice, shape, measure_importance(voice, spec, wanted, progress) if wanted else {})


def shape_for(voice: Voice, spec: PruneSpec) -> Shape:
    """Return the Shape that removes an amount of some parts, channels and coupling layers.

    Raises:
        InputError: none of the parts has a lever.
    """
    levers: dict[str, Any] = {}
    if "decoder" in spec.parts:
        levers["decoder_width"] = 1 - spec.amount
    if "text_encoder" in spec.parts:
        levers["ffn_width"] = 1 - spec.amount
    if "flow" in spec.parts:
        levers["flows"] = max(1, round((1 - spec.amount) * sizes_of(voice.model.config).flows))
    if not levers:
        raise InputError(
            "The duration predictor has nothing to shrink: choose decoder, text encoder or flow."
        )
    return Shape(**levers)


@dataclass(frozen=True)
class Survivor:
    """What stays of a layer."""

    name: str
    """Its name in the pruned voice."""
    kept: Mapping[int, tuple[int, ...]]
    """Dimension of the weight -> indices that stay, in their new order; others stay whole."""


def choice_for(voice: Voice, spec: PruneSpec, progress: Progress = SILENT) -> Kept:
    """Return what stays of a voice for a structured spec.

    Raises:
        InputError: the spec is gradual: each step chooses among what is left.
    """
    if len(spec.schedule_amounts()) > 1:
        raise InputError("What stays of a voice is known for one cut only: leave the steps out.")
    return chosen(voice, spec, spec.shape or shape_for(voice, spec), progress)


def survivor(original: Voice, pruned: Voice, choice: Kept, layer: str) -> Survivor | None:
    """Return what stays of one of the original's layers, None if all of it is removed."""
    name = layer
    kept: dict[int, tuple[int, ...]] = {}
    for group in groups(original):
        stays = choice.get(group.name)
        if stays is None:
            continue
        for parameter, dimension in group.slices(original.model):
            if parameter == f"{layer}.weight":
                kept[dimension] = stays
        for block, modules in enumerate(group.blocks):
            if f"{layer}.".startswith(tuple(f"{module}." for module in modules)):
                if block not in stays:
                    return None
                name = _renumbered(name, group, stays.index(block), len(stays))
                break
    if layer == "decoder.conv_pre" and latents_are_flipped(original, pruned):
        kept[1] = tuple(reversed(range(original.model.decoder.conv_pre.weight.shape[1])))
    before = original.model.get_parameter(f"{layer}.weight").shape
    for dimension, size in enumerate(pruned.model.get_parameter(f"{name}.weight").shape):
        # The WaveNet layer that is now last has lost the half that fed the next.
        there = kept.get(dimension, tuple(range(before[dimension])))
        if len(there) != size:
            kept[dimension] = there[-size:]
    return Survivor(name, kept)


def _renumbered(name: str, group: Group, new: int, left: int) -> str:
    """The name with the block's new number, where so many blocks are left.

    Of groups within each other the inner one comes first, while its path is still the old one.
    """
    if group.name == BRANCHES:
        stage, _, rest = name.removeprefix(f"{RESBLOCKS}.").partition(".")
        return f"{RESBLOCKS}.{int(stage) // group.size * left + new}.{rest}"
    if group.name.endswith(".wavenet"):
        return f"{name.rpartition('.')[0]}.{new}"
    return f"{group.name}.{new}.{name.removeprefix(f'{group.name}.').partition('.')[2]}"
