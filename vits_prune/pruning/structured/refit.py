"""Fit what is left of a voice to the work of what was removed: least squares, layer after layer.

Each layer that stays is fitted to what the original's layer gave (channel pruning by
reconstruction: He et al. 2017, arXiv:1707.06168), on the inputs that it now gets. Where the layer
adds to a residual stream, the stream is the aim, so that a later layer also makes up for what
earlier ones could not. The aim of a coupling is what the whole flow made of its half of the
latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.blocks import (
    State,
    encoder_output,
    flow_blocks,
    removing,
    run_encoder_layer,
    sentence_ids,
    spoken_states,
    stretch,
    stretched,
    token_states,
)
from vits_prune.pruning.matrix import fit_layer
from vits_prune.pruning.structured.couplings import ENCODER_LAYERS, groups
from vits_prune.pruning.structured.cut import Choice, latents_are_flipped
from vits_prune.pruning.structured.refit_decoder import refit_decoder
from vits_prune.pruning.structured.refit_flow import refit_flow
from vits_prune.voices.voice import Voice

SPOKEN, SEGMENT = 60, 48
"""Sentences that the flow and decoder are fitted on, and frames of each for the decoder."""


def refit(
    original: Voice,
    smaller: Voice,
    choice: Choice,
    texts: Sequence[str],
    seed: int,
    *,
    progress: Progress = SILENT,
) -> None:
    """Fit the parts of a voice that was cut, in place; a part that lost nothing stays as it is.

    The parts of both voices get the same inputs, what the smaller voice makes of the sentences. If
    each part aimed at what the original's makes of its own inputs, it would learn to say less where
    the part before it errs: a decoder of full width after two fitted couplings then had a log-mel
    distance of 0.88 in place of 0.26 (joe).

    Args:
        original: the voice before the cut.
        smaller: what `cut` made of it for this choice. Nobody else may hold it yet: its layers get
            new weights.
        choice: what stayed.
        texts: what is spoken.
        seed: of the noise and of what is sampled.
        progress: may cancel the work.

    Raises:
        InputError: the voice can say none of the texts.
    """
    original = original.with_weights({})  # hooks go on a copy: another thread may be speaking
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
        layers = kept[ENCODER_LAYERS]
        _refit_encoder(original, smaller, layers, sentences, random, progress.part(0.0, 0.3))
    if flow or decoder:
        spoken = spoken_states(original, smaller, sentences, seed, SPOKEN)
        states = [stretched(state, original) for state in spoken]
        if flow:
            part = progress.part(0.3, 0.5)
            states = refit_flow(original, smaller, kept, states, random, part)
        else:
            for block in flow_blocks(smaller.model):
                states = [block.run(smaller.model, state) for state in states]
    if decoder:
        pairs = _stretches(original, smaller, states, seed)
        refit_decoder(original, smaller, kept, pairs, random, progress.part(0.5, 1.0))
    progress.report("fitted", 1.0)


def _stretches(
    original: Voice, smaller: Voice, states: Sequence[State], seed: int
) -> list[tuple[State, State]]:
    """What enters both decoders, each in the order of channels that it reads."""
    places, flipped, found = np.random.default_rng(seed), latents_are_flipped(original, smaller), []
    for one in states:
        state = stretch(one, int(places.integers(1 << 30)), SEGMENT)
        found.append(({**state, "hidden": state["hidden"].flip(1)} if flipped else state, state))
    return found


# The text encoder


def _refit_encoder(
    original: Voice,
    smaller: Voice,
    kept: tuple[int, ...],
    sentences: Sequence[tuple[int, ...]],
    random: torch.Generator,
    progress: Progress,
) -> None:
    """Fit in place what ends each residual branch, and what reads the encoder first.

    The last map of the attention and of the feed-forward layer, so that the stream after each is
    the original's, the last layer standing for all that went after it; then the projection to the
    prior and the first convolution of the duration predictor.
    """
    pairs = [[state, dict(state)] for state in token_states(original.model, sentences)]
    layers = original.model.text_encoder.encoder.layers
    own = smaller.model.text_encoder.encoder.layers
    for new, old in enumerate(kept):
        progress.report(f"fitting encoder layer {new}", new / len(kept))
        until = kept[new + 1] if new + 1 < len(kept) else len(layers)
        if new and len(kept) < len(layers):  # its inputs are not what they were
            attended = (
                (seen["context"], wanted["given"] + wanted["attended"] - seen["given"], valid)
                for wanted, seen, valid in _traced_pairs(layers[old], own[new], pairs)
            )
            fit_layer(own[new].attention.out_proj, attended, len(pairs), random)
        last = until - 1 if until == len(layers) else old
        for pair in pairs:
            pair[0] = _through(layers[old:last], pair[0])
        if last != old:
            own[new].final_layer_norm = layers[last].final_layer_norm
        fed = (
            (
                seen["inputs"],
                (wanted["stream"] + wanted["added"] - seen["stream"]).transpose(1, 2),
                valid,
            )
            for wanted, seen, valid in _traced_pairs(layers[last], own[new], pairs)
        )
        fit_layer(own[new].feed_forward.conv_2, fed, len(pairs), random)
        for pair in pairs:
            pair[:] = [_through(layers[last:until], pair[0]), _through([own[new]], pair[1])]
    stochastic = original.model.config.use_stochastic_duration_prediction
    for name in (
        "text_encoder.project",
        f"duration_predictor.{'conv_pre' if stochastic else 'conv_1'}",
    ):
        theirs, mine = (voice.model.get_submodule(name) for voice in (original, smaller))
        read = (
            (encoder_output(beside), theirs(encoder_output(before)), before["valid"])
            for before, beside in pairs
        )
        fit_layer(mine, read, len(pairs), random)


def _through(layers: Sequence[nn.Module], state: State) -> State:
    for layer in layers:
        state = run_encoder_layer(layer, state)
    return state


def _traced_pairs(
    theirs: nn.Module, mine: nn.Module, pairs: Sequence[Sequence[State]]
) -> Iterator[tuple[State, State, torch.Tensor]]:
    for before, beside in pairs:
        yield _traced(theirs, before), _traced(mine, beside), before["valid"]


def _traced(layer: nn.Module, state: State) -> State:
    """What passes through a layer of the encoder.

    What it is "given", the attention's "context" and what it adds ("attended"), the "stream" after
    it, the "inputs" of the second convolution and what that one adds ("added").
    """
    seen: State = {"given": state["hidden"]}
    feed, attention = layer.feed_forward, layer.attention
    hooks = (
        attention.out_proj.register_forward_hook(
            lambda _module, given, output: seen.update(context=given[0], attended=output)
        ),
        feed.register_forward_hook(
            lambda _module, given, output: seen.update(stream=given[0], added=output)
        ),
        feed.conv_2.register_forward_pre_hook(lambda _module, given: seen.update(inputs=given[0])),
    )
    with removing(hooks):
        run_encoder_layer(layer, state)
    return seen
