"""What is left of a voice after channels and layers went takes over their work: least squares, layer after layer, on its own speech.

Each layer that stays is fitted to what the original's layer gave (channel pruning by reconstruction: He et al. 2017, arXiv:1707.06168), on
the inputs that it now gets. Where the layer adds to a residual stream, the stream is aimed at instead, so that a later layer also makes up
for what earlier ones could not; a coupling is aimed at what the whole flow made of its half of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vits_prune.pruning.calibration import (
    State,
    Step,
    flow_blocks,
    own_durations,
    portion,
    sentence_ids,
    stretch_of,
    stretched,
)
from vits_prune.pruning.structured.couplings import ENCODER_LAYERS, groups
from vits_prune.pruning.structured.cut import Choice, latents_are_flipped
from vits_prune.pruning.structured.refit_decoder import refit_decoder
from vits_prune.pruning.structured.refit_encoder import refit_encoder
from vits_prune.pruning.structured.refit_flow import refit_flow
from vits_prune.synthesis.stages import encode, speaker_embedding
from vits_prune.voices.voice import Voice

SPOKEN, SEGMENT = 60, 48
"""Sentences that the flow and the decoder are fitted on, and frames of each that the decoder is."""


def refit(
    original: Voice,
    smaller: Voice,
    choice: Choice,
    texts: Sequence[str],
    seed: int,
    *,
    progress: Step | None = None,
) -> None:
    """Fit the parts of a voice that was cut, in place; a part of which nothing went stays as it is.

    Args:
        original: the voice before the cut.
        smaller: what `cut` made of it for this choice. Nobody else may hold it yet: its layers are given new weights.
        choice: what stayed.
        texts: what is spoken.
        seed: of the noise and of what is sampled.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing of the texts.
    """
    tell = progress or (lambda _what, _share: None)
    original = original.with_weights(
        {}
    )  # hooks go on a copy: another thread may be speaking with this voice
    there = groups(original)
    kept = {group.name: choice.kept.get(group.name, tuple(range(group.size))) for group in there}
    lost = [group.name for group in there if len(kept[group.name]) < group.size]
    random = torch.Generator().manual_seed(seed)
    sentences = sentence_ids(original, texts)
    encoder, flow, decoder = (
        any(name.startswith(part) for name in lost)
        for part in ("text_encoder.", "flow.", "decoder.")
    )
    if encoder:
        refit_encoder(
            original, smaller, kept[ENCODER_LAYERS], sentences, random, portion(tell, 0.0, 0.3)
        )
    if flow or decoder:
        states = _given(original, smaller, sentences, seed)
        states = (
            refit_flow(original, smaller, kept, states, random, portion(tell, 0.3, 0.5))
            if flow
            else _flown(smaller, states)
        )
    if decoder:
        refit_decoder(
            original,
            smaller,
            kept,
            _stretches(original, smaller, states, seed),
            random,
            portion(tell, 0.5, 1.0),
        )
    tell("fitted", 1.0)


def _given(
    original: Voice, smaller: Voice, sentences: Sequence[tuple[int, ...]], seed: int
) -> list[State]:
    """What the smaller voice's flow is given, by sentence, with the original's durations.

    The parts of both voices are given the same. Aimed at what the original would have made of its own, each would learn to say less where
    the one before it errs: a decoder of full width behind two fitted couplings then had a log-mel distance of 0.88 instead of 0.26 (joe).
    """
    found, conditioning = [], speaker_embedding(smaller)
    for index, ids in enumerate(sentences[:: max(1, len(sentences) // SPOKEN)][:SPOKEN]):
        key = (seed, index)
        durations = own_durations(original, ids, key)
        _, means, log_variances = encode(smaller, ids)
        state = {
            "means": means,
            "log_variances": log_variances,
            "durations": durations,
            "key": key,
            "conditioning": conditioning,
        }
        found.append(stretched(state, original))
    return found


def _stretches(
    original: Voice, smaller: Voice, states: Sequence[State], seed: int
) -> list[tuple[State, State]]:
    """Stretches of what both decoders are given, each in the order of channels that it reads."""
    places, flipped, found = np.random.default_rng(seed), latents_are_flipped(original, smaller), []
    for one in states:
        (state,) = stretch_of([one], int(places.integers(1 << 30)), SEGMENT)
        found.append(({**state, "hidden": state["hidden"].flip(1)} if flipped else state, state))
    return found


def _flown(voice: Voice, states: Sequence[State]) -> list[State]:
    for block in flow_blocks(voice.model):
        states = [block.run(voice.model, state) for state in states]
    return list(states)
