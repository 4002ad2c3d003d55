"""Structured pruning: an importance says which channels and layers go, and what stays is fitted to their work."""

from __future__ import annotations

import dataclasses
from typing import Any

from vits_prune.errors import InputError
from vits_prune.pruning.calibration import Step, portion
from vits_prune.pruning.couplings import group_counts, groups
from vits_prune.pruning.importance import measure_importance
from vits_prune.pruning.listening import texts_for
from vits_prune.pruning.refit import refit
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structure import Shape, sizes, sizes_of
from vits_prune.pruning.structured import Choice, choose, cut
from vits_prune.voices.voice import Voice


def prune_voice(voice: Voice, spec: PruneSpec, on_step: Step | None = None, original: Voice | None = None, **changes: Any) -> Voice:
    """A smaller voice.

    Args:
        voice: what is cut.
        spec: its shape, or its amount and parts.
        on_step: told how far it is; it may raise to cancel.
        original: what the amount counts from, where `voice` is a step of gradual pruning; each cut is fitted to the voice before it.
        changes: other fields of the new Voice, such as `recipe`.

    Raises:
        InputError: a lever that the voice does not have, a width that leaves nothing, or nothing that can be said for calibration.
    """
    shape, texts = spec.shape or shape_for(original or voice, spec), texts_for(voice, spec)
    if original is not None and original is not voice:
        shape = _from_here(shape, original, voice)
    choice = chosen(voice, spec, shape, on_step=portion(on_step, 0.0, 0.4))
    smaller = cut(voice, choice, **changes)
    refit(voice, smaller, choice, texts, spec.seed, on_step=portion(on_step, 0.4, 1.0))
    return smaller


def chosen(voice: Voice, spec: PruneSpec, shape: Shape, on_step: Step | None = None) -> Choice:
    """What stays of a voice for a Shape, by the spec's importance. What calibration found is taken from memory where it is still there.

    Raises:
        InputError: as `prune_voice`.
    """
    counts = group_counts(voice, sizes(voice.model.config, shape))
    wanted = [group for group in groups(voice) if counts[group.name] < group.size]
    return choose(voice, shape, measure_importance(voice, spec, wanted, on_step) if wanted else {})


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
        raise InputError("The duration predictor has nothing to shrink: choose the decoder, the text encoder or the flow.")
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
