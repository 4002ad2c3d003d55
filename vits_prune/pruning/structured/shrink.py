"""Structured pruning: an importance says which channels and layers go, and what stays is fitted to their work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.calibration import Step, portion
from vits_prune.pruning.listening import texts_for
from vits_prune.pruning.shape import Shape, sizes, sizes_of
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured.couplings import BRANCHES, RESBLOCKS, group_counts, groups
from vits_prune.pruning.structured.cut import Choice, choose, cut, latents_are_flipped
from vits_prune.pruning.structured.importance import measure_importance
from vits_prune.pruning.structured.refit import refit
from vits_prune.voices.voice import Voice


def prune_voice(
    voice: Voice,
    spec: PruneSpec,
    progress: Step | None = None,
    original: Voice | None = None,
    **changes: Any,
) -> Voice:
    """A smaller voice.

    Args:
        voice: what is cut.
        spec: its shape, or its amount and parts.
        progress: told how far it is; it may raise to cancel.
        original: what the amount counts from, where `voice` is a step of gradual pruning; each cut is fitted to the voice before it.
        changes: other fields of the new Voice, such as `recipe`.

    Raises:
        InputError: a lever that the voice does not have, a width that leaves nothing, or nothing that can be said for calibration.
    """
    shape, texts = spec.shape or shape_for(original or voice, spec), texts_for(voice, spec)
    if original is not None and original is not voice:
        shape = _from_here(shape, original, voice)
    choice = chosen(voice, spec, shape, progress=portion(progress, 0.0, 0.4))
    smaller = cut(voice, choice, **changes)
    refit(voice, smaller, choice, texts, spec.seed, progress=portion(progress, 0.4, 1.0))
    return smaller


def chosen(voice: Voice, spec: PruneSpec, shape: Shape, progress: Step | None = None) -> Choice:
    """What stays of a voice for a Shape, by the spec's importance. What calibration found is taken from memory where it is still there.

    Raises:
        InputError: as `prune_voice`.
    """
    counts = group_counts(voice, sizes(voice.model.config, shape))
    wanted = [group for group in groups(voice) if counts[group.name] < group.size]
    return choose(voice, shape, measure_importance(voice, spec, wanted, progress) if wanted else {})


def shape_for(voice: Voice, spec: PruneSpec) -> Shape:
    """The Shape that an amount and parts ask for: that share of the channels of the decoder and of the feed-forward layers, of the flow's
    coupling layers.

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
            "The duration predictor has nothing to shrink: choose the decoder, the text encoder or the flow."
        )
    return dataclasses.replace(Shape(), **levers)


def _from_here(shape: Shape, original: Voice, voice: Voice) -> Shape:
    """The Shape that makes of a voice that is cut already what another Shape makes of its original."""
    wanted, now = sizes(original.model.config, shape), sizes_of(voice.model.config)
    return dataclasses.replace(
        shape,
        decoder_width=wanted.initial_channels / now.initial_channels,
        ffn_width=wanted.ffn_channels / now.ffn_channels,
        multiple=1,
    )


@dataclass(frozen=True)
class Survivor:
    """What stays of a layer."""

    name: str
    """Its name in the pruned voice."""
    kept: Mapping[int, tuple[int, ...]]
    """Dimension of the weight -> indices that stay, in the order in which the pruned voice has them; dimensions not named stay whole."""


def choice_for(voice: Voice, spec: PruneSpec, progress: Step | None = None) -> Choice:
    """What stays of a voice for a structured spec; what calibration found is taken from memory where it is still there.

    Raises:
        InputError: as `prune`, or the spec is gradual: each of its steps chooses anew, among what the one before left.
    """
    if len(spec.schedule_amounts()) > 1:
        raise InputError(
            "What stays of a voice is known for one cut only: leave the steps out, or ask for each step's voice by itself."
        )
    return chosen(voice, spec, spec.shape or shape_for(voice, spec), progress)


def survivor(original: Voice, pruned: Voice, choice: Choice, layer: str) -> Survivor | None:
    """What stays of one of the original's layers, None where all of it is gone."""
    name, kept = layer, {}
    for group in groups(original):
        stays = choice.kept.get(group.name)
        if stays is None:
            continue
        if not group.blocks:
            kept |= {
                dimension: stays
                for parameter, dimension in group.slices(original.model)
                if parameter == f"{layer}.weight"
            }
            continue
        block = next(
            (
                i
                for i, modules in enumerate(group.blocks)
                if any(_within(layer, module) for module in modules)
            ),
            None,
        )
        if block is None:
            continue
        if block not in stays:
            return None
        name = _renumbered(name, group.name, group.size, block, stays)
    if layer == "decoder.conv_pre" and latents_are_flipped(original, pruned):
        kept[1] = tuple(reversed(range(original.model.decoder.conv_pre.weight.shape[1])))
    now = dict(pruned.model.named_parameters())[f"{name}.weight"].shape
    before = original.model.get_parameter(f"{layer}.weight").shape
    for dimension, size in enumerate(
        now
    ):  # the WaveNet layer that became the last has lost the half that fed the next
        there = kept.get(dimension, tuple(range(before[dimension])))
        if len(there) != size:
            kept[dimension] = there[-size:]
    return Survivor(name, kept)


def _within(layer: str, module: str) -> bool:
    return layer == module or layer.startswith(f"{module}.")


def _renumbered(name: str, group: str, size: int, block: int, stays: tuple[int, ...]) -> str:
    """The name with the block's new number; of groups within each other the inner one comes first, while its path is still the old."""
    new = stays.index(block)
    if group == BRANCHES:
        stage, _, rest = name.removeprefix(f"{RESBLOCKS}.").partition(".")
        return f"{RESBLOCKS}.{int(stage) // size * len(stays) + new}.{rest}"
    if group.endswith(".wavenet"):
        pieces = name.split(".")
        return ".".join([*pieces[:-1], str(new)])
    return f"{group}.{new}.{name.removeprefix(f'{group}.').partition('.')[2]}"
