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
    enter_decoder,
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
from vits_prune.pruning.structured.couplings import BRANCHES, ENCODER_LAYERS, RESBLOCKS, groups
from vits_prune.pruning.structured.cut import Choice, latents_are_flipped
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


# The decoder

Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""(stream of the original, stream of the smaller voice), by sentence."""


def refit_decoder(
    original: Voice,
    smaller: Voice,
    kept: dict[str, tuple[int, ...]],
    states: Sequence[tuple[State, State]],
    random: torch.Generator,
    progress: Progress,
) -> None:
    """Fit in place, stage by stage.

    Args:
        original: the voice before the cut.
        smaller: what the cut made of it.
        kept: group -> what stays of it, for all groups.
        states: what enters the decoders of both, each in the order of channels that it reads.
        random: for what is sampled.
        progress: may cancel the work.
    """
    theirs, mine = original.model.decoder, smaller.model.decoder
    config, branches = original.model.config, list(kept[BRANCHES])
    count, slope = len(config.resblock_kernel_sizes), config.leaky_relu_slope
    pairs = [(enter_decoder(theirs, before), enter_decoder(mine, own)) for before, own in states]
    for stage in range(theirs.num_upsamples):
        progress.report(f"fitting decoder stage {stage}", stage / theirs.num_upsamples)
        stays = list(kept[f"decoder.upsampler.{stage}"])
        leaky = [(_leaky(before, slope), _leaky(own, slope)) for before, own in pairs]
        raised = [(theirs.upsampler[stage](before), own) for before, own in leaky]
        upsampled = ((own, wanted[:, stays], None) for wanted, own in raised)
        fit_layer(mine.upsampler[stage], upsampled, len(raised), random)
        pairs = [(wanted, mine.upsampler[stage](own)) for wanted, own in raised]
        first, own_first = stage * count, stage * len(branches)
        blocks = list(theirs.resblocks[first : first + count])
        own_blocks = list(mine.resblocks[own_first : own_first + len(branches)])
        pairs = _refit_stage(
            blocks, own_blocks, branches, stays, pairs, _inner(kept, stage, count), slope, random
        )
    ends = (
        (
            nn.functional.leaky_relu(own),
            theirs.conv_post(nn.functional.leaky_relu(before)),
            None,
        )
        for before, own in pairs
    )
    fit_layer(mine.conv_post, ends, len(pairs), random)


def _inner(
    kept: dict[str, tuple[int, ...]], stage: int, branches: int
) -> dict[tuple[int, int], list[int]]:
    """(branch, step) -> channels that stay inside a ResBlock1."""
    found = {}
    for name, indices in kept.items():
        if name.startswith(f"{RESBLOCKS}."):
            block, step = (int(piece) for piece in name.split(".")[2::2])
            if block // branches == stage:
                found[block % branches, step] = list(indices)
    return found


def _leaky(hidden: torch.Tensor, slope: float) -> torch.Tensor:
    return nn.functional.leaky_relu(hidden, slope)


def _refit_stage(
    blocks: Sequence[nn.Module],
    own: Sequence[nn.Module],
    kept: Sequence[int],
    stays: list[int],
    pairs: Pairs,
    inner: dict[tuple[int, int], list[int]],
    slope: float,
    random: torch.Generator,
) -> Pairs:
    """Fit the residual branches of a stage; return the mean that each voice's stage makes."""
    theirs = [[_trace(block, before, slope) for before, _ in pairs] for block in blocks]
    done = [torch.zeros_like(beside) for _, beside in pairs]
    totals = []
    for index, (before, _) in enumerate(pairs):
        totals.append(sum((trace[index][-1] for trace in theirs), torch.zeros_like(before)))
    for place, (mine, old) in enumerate(zip(own, kept, strict=True)):
        streams = [beside for _, beside in pairs]
        steps = len(theirs[old][0]) - 1
        for step in range(steps):
            befores = [trace[step] for trace in theirs[old]]
            if place == len(own) - 1 and step == steps - 1:
                # The last layer also makes up for the branches that went, and for what the others
                # could not.
                aims = [total[:, stays] - one for total, one in zip(totals, done, strict=True)]
            else:
                aims = [trace[step + 1][:, stays] for trace in theirs[old]]
            shared = inner.get((old, step))
            _refit_step(mine, blocks[old], step, befores, streams, aims, shared, slope, random)
            streams = [_step(mine, step, stream, slope) for stream in streams]
        done = [total + stream for total, stream in zip(done, streams, strict=True)]
    means = zip(totals, done, strict=True)
    return [(total / len(blocks), mine / len(own)) for total, mine in means]


def _refit_step(
    mine: nn.Module,
    theirs: nn.Module,
    step: int,
    befores: Sequence[torch.Tensor],
    streams: Sequence[torch.Tensor],
    aims: Sequence[torch.Tensor],
    inner: list[int] | None,
    slope: float,
    random: torch.Generator,
) -> None:
    """Fit one step of a residual block: its convolution should give aim - stream."""
    ends: Sequence[torch.Tensor] = [_leaky(stream, slope) for stream in streams]
    last = mine.convs2[step] if hasattr(mine, "convs1") else mine.convs[step]
    if hasattr(mine, "convs1"):

        def wanted(before: torch.Tensor) -> torch.Tensor:
            found = theirs.convs1[step](_leaky(before, slope))
            return found if inner is None else found[:, inner]

        inside = ((end, wanted(before), None) for before, end in zip(befores, ends, strict=True))
        fit_layer(mine.convs1[step], inside, len(streams), random)
        ends = [_leaky(mine.convs1[step](end), slope) for end in ends]
    changes = (
        (end, aim - stream, None) for end, aim, stream in zip(ends, aims, streams, strict=True)
    )
    fit_layer(last, changes, len(streams), random)


def _trace(block: nn.Module, hidden: torch.Tensor, slope: float) -> list[torch.Tensor]:
    """The residual stream before each step of a block, and after the last."""
    found = [hidden]
    for step in range(len(block.convs1 if hasattr(block, "convs1") else block.convs)):
        found.append(_step(block, step, found[-1], slope))
    return found


def _step(block: nn.Module, step: int, stream: torch.Tensor, slope: float) -> torch.Tensor:
    if not hasattr(block, "convs1"):
        return block.convs[step](_leaky(stream, slope)) + stream
    return block.convs2[step](_leaky(block.convs1[step](_leaky(stream, slope)), slope)) + stream
