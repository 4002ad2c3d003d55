"""A voice run block by block: the states that enter each part, and what each block does.

The text encoder reads all sentences, the flow sees some of them whole, and the decoder short
stretches of those. Nothing here depends on torch's random state.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from vits_prune.errors import InputError
from vits_prune.pruning.layers import Layer
from vits_prune.synthesis.inference import (
    encode,
    log_durations,
    predict_durations,
    sample_prior,
    speaker_embedding,
)
from vits_prune.synthesis.speak import Delivery, read_text
from vits_prune.voices.voice import Voice, copy_with_weights

READ_TOKENS = 8_192
"""Tokens that the text encoder reads, about (joe: twice as many are no better)."""
SPOKEN, SEGMENT = 16, 40
"""Sentences that the flow sees, and frames of each that the decoder sees."""
MAX_FRAMES = 1_500
"""Longest sentence that is spoken, in frames."""
BATCH_TOKENS = 4_096

State = dict[str, Any]
Run = Callable[[State], State]


@dataclass(frozen=True)
class Block:
    """A piece of the network that runs as one."""

    name: str
    """Beginning of the names of its layers."""
    run: Run
    """State before -> state after."""
    others: tuple[str, ...] = ()
    """Layers that run with it under another name."""

    def holds(self, layer: str) -> bool:
        """Return whether a layer runs in this block."""
        return layer in (self.name, *self.others) or layer.startswith(f"{self.name}.")


def not_finite(voice: Voice, what: str) -> InputError:
    """Return the error for a voice that has or makes numbers that are not finite."""
    return InputError(f"{voice.name} is damaged, load it again: {what} is not finite.")


def sentence_ids(voice: Voice, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the ids of every sentence of the texts; skip texts that the voice cannot say.

    Raises:
        InputError: it can say none of them.
    """
    found, refused = [], None
    for text in texts:
        try:
            found += [sentence.ids for sentence in read_text(voice, text)[0]]
        except InputError as error:
            refused = refused or error
    if not found:
        raise refused or InputError(
            "There are no texts to calibrate on: give some, or leave them out for built-in ones."
        )
    return found


def part_states(
    voice: Voice, texts: Sequence[str], seed: int
) -> Iterator[tuple[Iterator[Block], list[State]]]:
    """Yield for each part, in the order of PARTS, its blocks and the states that enter the first.

    The caller replaces the states by what leaves each block: the decoder gets what left the flow.
    """
    model, sentences = voice.model, sentence_ids(voice, texts)
    some = sentences[:: max(1, round(sum(map(len, sentences)) / READ_TOKENS))]
    yield _encoder_blocks(model), list(token_states(model, some))
    pace, spoken = Delivery().for_voice(voice), spoken_states(voice, voice, sentences, seed, SPOKEN)

    def durations(state: State) -> State:
        log_durations(model, state["hidden"], state["conditioning"], state["key"], pace)
        return state

    yield iter((Block("duration_predictor", durations),)), spoken
    flow = [stretched(state, voice) for state in spoken]
    yield flow_blocks(model), flow
    places = np.random.default_rng(seed)
    yield decoder_blocks(model), [stretch(state, int(places.integers(1 << 30))) for state in flow]


def token_states(model: nn.Module, sentences: Sequence[tuple[int, ...]]) -> Iterator[State]:
    """Yield what enters the first layer of the text encoder, in batches of similar lengths."""
    # A copy, because another thread may be speaking.
    text_encoder, first = copy_with_weights(model, {}).text_encoder, _FirstLayer()
    text_encoder.encoder.layers = nn.ModuleList([first])
    ordered = sorted(sentences, key=len)
    while ordered:
        longest = len(ordered[-1])
        batch = [ordered.pop() for _ in range(min(len(ordered), max(1, BATCH_TOKENS // longest)))]
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros(len(batch), longest)
        for row, sentence in enumerate(batch):
            ids[row, : len(sentence)] = torch.tensor(sentence)
            mask[row, : len(sentence)] = 1
        text_encoder(
            input_ids=ids, padding_mask=mask[..., None], attention_mask=mask, return_dict=True
        )
        yield {"valid": mask.bool(), **first.given}


class _FirstLayer(nn.Module):
    """Keeps what transformers gives the first encoder layer: hidden states and both masks."""

    def forward(self, hidden: torch.Tensor, **named: Any) -> tuple[torch.Tensor]:
        masks = {name: named[name] for name in ("attention_mask", "padding_mask")}
        self.given = {"hidden": hidden, **masks}
        return (hidden,)


@contextlib.contextmanager
def removing(hooks: Sequence[Any]) -> Iterator[None]:
    """Remove hooks when the block ends."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def inputs_of(model: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a mapping of layer name to the last input of the layer."""
    inputs: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        # A clone: some blocks add to their input in place.
        return lambda _module, given: inputs.__setitem__(name, given[0].clone())

    hooks = [
        model.get_submodule(layer.name).register_forward_pre_hook(hook(layer.name))
        for layer in layers
    ]
    with removing(hooks):
        yield inputs


def run_encoder_layer(layer: nn.Module, state: State) -> State:
    """Return the state after a layer of the text encoder."""
    masks = {name: state[name] for name in ("attention_mask", "padding_mask")}
    return {**state, "hidden": layer(state["hidden"], **masks)[0]}


def encoder_output(state: State) -> torch.Tensor:
    """Return what the prior and the durations read, [batch, channels, tokens]."""
    return (state["hidden"] * state["padding_mask"]).transpose(1, 2)


def _encoder_blocks(model: nn.Module) -> Iterator[Block]:
    def project(state: State) -> State:
        model.text_encoder.project(encoder_output(state))
        return state

    for index, layer in enumerate(model.text_encoder.encoder.layers):
        run = functools.partial(run_encoder_layer, layer)
        yield Block(f"text_encoder.encoder.layers.{index}", run)
    yield Block("text_encoder.project", project)


def spoken_states(
    voice: Voice, reader: Voice, sentences: Sequence[tuple[int, ...]], seed: int, most: int
) -> list[State]:
    """Return what the reader's text encoder makes of `most` of the sentences.

    Durations and noise are the voice's; the reader is the voice or a pruned version of it.
    """
    conditioning, found = speaker_embedding(reader), []
    for index, ids in enumerate(sentences[:: max(1, len(sentences) // most)][:most]):
        own, key = encode(voice, ids), (seed, index)
        hidden, means, log_variances = own if reader is voice else encode(reader, ids)
        state = {"ids": ids, "key": key, "hidden": hidden, "conditioning": conditioning}
        durations = own_durations(voice, own[0], key)
        prior = {"means": means, "log_variances": log_variances, "durations": durations}
        found.append({**state, **prior})
    return found


def own_durations(voice: Voice, hidden: torch.Tensor, key: tuple[int, int]) -> np.ndarray:
    """Return the frames of each token, int64 [tokens], MAX_FRAMES together at most.

    Raises:
        InputError: the voice makes numbers that are not finite.
    """
    pace, conditioning = Delivery().for_voice(voice), speaker_embedding(voice)
    broken = not_finite(voice, "what its text encoder reads")
    if not bool(torch.isfinite(hidden).all()):
        raise broken
    try:
        return predict_durations(voice, hidden, conditioning, key, pace, MAX_FRAMES)[0]
    except ValueError as error:  # the spline of a stochastic predictor refuses such numbers
        raise broken from error


def stretched(state: State, voice: Voice) -> State:
    """Return what enters the flow: the prior of a spoken state, stretched and sampled."""
    scale = Delivery().for_voice(voice).noise_scale
    prior, durations = (state["means"], state["log_variances"]), state["durations"]
    latents = sample_prior(*prior, durations, state["key"], scale)
    mask = torch.ones_like(latents[:, :1])
    return {"latents": latents, "mask": mask, "conditioning": state["conditioning"]}


def flow_blocks(model: nn.Module) -> Iterator[Block]:
    """Yield the coupling layers in the order in which they run when the voice speaks."""

    def run(coupling: nn.Module, state: State) -> State:
        call = torch.flip(state["latents"], [1]), state["mask"], state["conditioning"]
        return {**state, "latents": coupling(*call, reverse=True)[0]}

    for index, coupling in reversed(list(enumerate(model.flow.flows))):
        yield Block(f"flow.flows.{index}", functools.partial(run, coupling))


def stretch(state: State, place: int, length: int = SEGMENT) -> State:
    """Return what enters the decoder for `length` frames of what left the flow.

    `place` is any whole number, taken modulo the places that there are.
    """
    start = place % max(1, state["latents"].shape[2] - length + 1)
    hidden = state["latents"][:, :, start : start + length]
    return {"hidden": hidden, "conditioning": state["conditioning"]}


def enter_decoder(decoder: nn.Module, state: State) -> torch.Tensor:
    """Return what the first layer of the decoder makes of a state, the speaker added."""
    hidden = decoder.conv_pre(state["hidden"])
    return hidden if state["conditioning"] is None else hidden + decoder.cond(state["conditioning"])


def decoder_blocks(model: nn.Module) -> Iterator[Block]:
    """Yield the layers and residual branches of the decoder up to its last convolution."""
    decoder, slope = model.decoder, model.config.leaky_relu_slope
    branches = decoder.num_kernels

    def first(state: State) -> State:
        return {**state, "hidden": enter_decoder(decoder, state)}

    def upsample(upsampler: nn.Module, state: State) -> State:
        hidden = upsampler(nn.functional.leaky_relu(state["hidden"], slope))
        return {**state, "hidden": hidden, "sum": torch.zeros_like(hidden)}

    def branch(index: int, state: State) -> State:
        total = state["sum"] + decoder.resblocks[index](state["hidden"])
        if (index + 1) % branches:
            return {**state, "sum": total}
        return {**state, "hidden": total / branches, "sum": None}

    def final(state: State) -> State:
        return {**state, "hidden": decoder.conv_post(nn.functional.leaky_relu(state["hidden"]))}

    yield Block("decoder.conv_pre", first, ("decoder.cond",))
    for stage, upsampler in enumerate(decoder.upsampler):
        yield Block(f"decoder.upsampler.{stage}", functools.partial(upsample, upsampler))
        for index in range(stage * branches, (stage + 1) * branches):
            yield Block(f"decoder.resblocks.{index}", functools.partial(branch, index))
    yield Block("decoder.conv_post", final)
