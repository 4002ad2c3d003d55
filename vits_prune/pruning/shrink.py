"""Structured pruning: what an error in a channel does to the speech says which channels go, and the decoder and feed-forward layers
that stay are fitted to their work. Encoder, coupling and WaveNet layers that go are not made up for: that is for healing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vits_prune.errors import InputError
from vits_prune.pruning.calibration import Step
from vits_prune.pruning.couplings import Group
from vits_prune.pruning.listening import texts_for
from vits_prune.pruning.refit import refit
from vits_prune.pruning.sensitivity import channel_sensitivity
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structure import Shape, sizes, sizes_of
from vits_prune.pruning.structured import choose, cut
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
    tell = on_step or (lambda _what, _share: None)
    shape, texts = spec.shape or shape_for(original or voice, spec), texts_for(voice, spec)
    if original is not None and original is not voice:
        shape = _from_here(shape, original, voice)
    found = channel_sensitivity(voice, texts, spec.seed, on_step=lambda what, share: tell(what, 0.4 * share))
    choice = choose(voice, shape, importance(found))
    smaller = cut(voice, choice, **changes)
    refit(voice, smaller, choice, texts, spec.seed, on_step=lambda what, share: tell(what, 0.4 + 0.6 * share))
    return smaller


def importance(found: Mapping[str, np.ndarray]) -> Callable[[Voice, Group], np.ndarray]:
    """Importance from `channel_sensitivity`: of a channel what is lost where nothing writes it, of a block where nothing of it is heard."""

    def of(voice: Voice, group: Group) -> np.ndarray:
        if group.blocks:
            return np.array([_block_importance(found, modules, voice) for modules in group.blocks])
        return sum(found[f"{name}.weight"] for name in group.writers if f"{name}.weight" in found)

    return of


def _block_importance(found: Mapping[str, np.ndarray], modules: tuple[str, ...], voice: Voice) -> float:
    """What the layers through which a block is heard do to the speech: those that end it."""
    ends = ("conv_post", "out_proj", "conv_2", "convs2", "convs", "res_skip_layers")
    heard = [name for name in found if name.startswith(tuple(f"{module}." for module in modules))]
    last = [name for name in heard if any(end in name.split(".") for end in ends)]
    return float(sum(found[name].sum() for name in last or heard))


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
