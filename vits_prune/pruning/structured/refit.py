"""Fit what is left of a voice to the work of what was removed: least squares, layer after layer.

Each layer that stays is fitted to what the original's layer gave (channel pruning by
reconstruction: He et al. 2017, arXiv:1707.06168), on the inputs that it now gets. Where the layer
adds to a residual stream, the stream is the aim, so that a later layer also makes up for what
earlier ones could not. The aim of a coupling is what the whole flow made of its half of the
latents.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.functional import leaky_relu

from vits_prune.progress import Progress
from vits_prune.pruning import blocks
from vits_prune.pruning.blocks import State
from vits_prune.pruning.calibration import texts_for
from vits_prune.pruning.layers import fit_layer
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured.couplings import (
    BRANCHES,
    ENCODER_LAYERS,
    FLOWS,
    RESBLOCKS,
    Kept,
    groups,
    latents_are_flipped,
    whole,
)
from vits_prune.voices.voice import Voice

_RANK = 1e-4
"""Singular values of a coupling's last convolution below this share of the largest count as 0."""
FITTED_SENTENCES, FITTED_FRAMES = 60, 48
"""Sentences that the flow and decoder are fitted on, and frames of each for the decoder."""
Streams = list[torch.Tensor]
"""What passes at one place, by sentence."""


def refit(
    original: Voice, smaller: Voice, choice: Kept, spec: PruneSpec, progress: Progress
) -> None:
    """Fit the parts of a voice that was cut, in place; a part that lost nothing stays as it is.

    The parts of both voices get the same inputs, what the smaller voice makes of the sentences. If
    each part aimed at what the original's makes of its own inputs, it would learn to say less where
    the part before it errs: a decoder of full width after two fitted couplings then had a log-mel
    distance of 0.88 in place of 0.26 (joe).

    The smaller voice is what `cut` made of the original for this choice; nobody else may hold it.
    """
    original = original.with_weights({})  # hooks go on a copy: another thread may be speaking
    kept = whole(original, choice)
    shorter = [one.name for one in groups(original) if len(kept[one.name]) < one.size]
    lost = {name.split(".")[0] for name in shorter}
    fit = _Refit(original, smaller, kept, torch.Generator().manual_seed(spec.seed))
    sentences = blocks.sentence_ids(original, texts_for(original, spec))
    if "text_encoder" in lost:
        fit.encoder(sentences, progress.part(0.0, 0.3))
    if lost & {"flow", "decoder"}:
        spoken = blocks.spoken_states(original, smaller, sentences, spec.seed, FITTED_SENTENCES)
        states = [blocks.stretched(state, original) for state in spoken]
        if "flow" in lost:
            states = fit.flow(states, progress.part(0.3, 0.5))
        else:
            for block in blocks.flow_blocks(smaller.model):
                states = [block.run(state) for state in states]
    if "decoder" in lost:
        places, flipped = np.random.default_rng(spec.seed), latents_are_flipped(original, smaller)
        own = [
            blocks.stretch(state, int(places.integers(1 << 30)), FITTED_FRAMES) for state in states
        ]
        # Each decoder reads its own order of channels.
        flips = [{**one, "hidden": one["hidden"].flip(1)} if flipped else one for one in own]
        fit.decoder(flips, own, progress.part(0.5, 1.0))
    progress.report("fitted", 1.0)


@dataclass(frozen=True)
class _Refit:
    """Fits the parts of a smaller voice in place; `kept` has what stays of every group."""

    original: Voice
    smaller: Voice
    kept: Kept
    random: torch.Generator

    def encoder(self, sentences: Sequence[tuple[int, ...]], progress: Progress) -> None:
        """Fit what ends each residual branch, and what reads the encoder first."""
        # The last map of the attention and of the feed-forward layer, so that the stream after each
        # is the original's, the last layer standing for all that went after it; then the projection
        # to the prior and the first convolution of the duration predictor.
        pairs = [
            [state, dict(state)] for state in blocks.token_states(self.original.model, sentences)
        ]
        kept = self.kept[ENCODER_LAYERS]
        layers = self.original.model.text_encoder.encoder.layers
        own = self.smaller.model.text_encoder.encoder.layers
        for new, old in enumerate(kept):
            progress.report(f"fitting encoder layer {new}", new / len(kept))
            until = kept[new + 1] if new + 1 < len(kept) else len(layers)
            if new and len(kept) < len(layers):  # its inputs are not what they were
                attended = (
                    (seen["context"], wanted["given"] + wanted["attended"] - seen["given"], valid)
                    for wanted, seen, valid in _traced_pairs(layers[old], own[new], pairs)
                )
                fit_layer(own[new].attention.out_proj, attended, len(pairs), self.random)
            last = until - 1 if until == len(layers) else old
            for pair in pairs:
                pair[0] = _through(layers[old:last], pair[0])
            if last != old:
                own[new].final_layer_norm = layers[last].final_layer_norm
            fed = (
                (seen["inputs"], (wanted["stream"] + wanted["added"] - seen["stream"]).mT, valid)
                for wanted, seen, valid in _traced_pairs(layers[last], own[new], pairs)
            )
            fit_layer(own[new].feed_forward.conv_2, fed, len(pairs), self.random)
            for pair in pairs:
                pair[:] = [_through(layers[last:until], pair[0]), _through([own[new]], pair[1])]
        stochastic = self.original.model.config.use_stochastic_duration_prediction
        durations = f"duration_predictor.{'conv_pre' if stochastic else 'conv_1'}"
        for name in ("text_encoder.project", durations):
            theirs, mine = (
                voice.model.get_submodule(name) for voice in (self.original, self.smaller)
            )
            read = (
                (
                    blocks.encoder_output(after),
                    theirs(blocks.encoder_output(before)),
                    before["valid"],
                )
                for before, after in pairs
            )
            fit_layer(mine, read, len(pairs), self.random)

    def flow(self, states: Sequence[State], progress: Progress) -> list[State]:
        """Fit the couplings to what enters the flow; return what leaves the smaller flow."""
        # What a coupling takes away from one half of the latents is linear in the gated activations
        # of its WaveNet, through the skip connections of its layers and the convolution that ends
        # it: these are fitted together, exactly. The activations themselves stay as they are.
        # By sentence: what enters each of the original's couplings as they run, and the end.
        passed = [[state] for state in states]
        couplings = list(blocks.flow_blocks(self.original.model))
        for block in couplings:
            for passing in passed:
                passing.append(block.run(passing[-1]))
        running = sorted(self.kept[FLOWS], reverse=True)
        count, last = len(running), len(couplings) - 1
        own, own_blocks = list(states), list(blocks.flow_blocks(self.smaller.model))
        flipped = latents_are_flipped(self.original, self.smaller)
        for place, old in enumerate(running):
            progress.report(f"fitting coupling {count - 1 - place}", place / count)
            coupling = self.smaller.model.flow.flows[count - 1 - place]
            theirs = self.original.model.flow.flows[old]
            if place + 2 < count:  # the half that it changes is next changed by that one
                at, turns = last - running[place + 2], 1
            else:
                at, turns = last + 1, count - 1 - place + flipped
            steps = self.kept[f"{FLOWS}.{old}.wavenet"]
            if len(steps) < len(theirs.wavenet.in_layers):
                befores = [passing[last - old] for passing in passed]
                self._fit_streams(theirs, coupling, steps, befores, own)
            wanted = [_turned(passing[at], turns) for passing in passed]
            self._fit_readout(coupling, own, wanted)
            own = [own_blocks[place].run(state) for state in own]
        return own

    def _fit_streams(
        self,
        theirs: nn.Module,
        mine: nn.Module,
        steps: Sequence[int],
        befores: Sequence[State],
        own: Sequence[State],
    ) -> None:
        """Fit the residual half of each WaveNet layer to the next one's former input."""
        hidden = mine.wavenet.hidden_size
        traces = [_activations(theirs, before)[0] for before in befores]
        for new, old_next in enumerate(steps[1:]):
            layer = mine.wavenet.res_skip_layers[new]
            part = _convolution(layer.weight[:hidden, :, 0], layer.bias[:hidden])

            def batch(
                state: State, trace: list[torch.Tensor], new: int = new, old_next: int = old_next
            ) -> tuple[torch.Tensor, torch.Tensor, None]:
                given, gated = _activations(mine, state)
                return gated[new], trace[old_next] - given[new], None

            fit_layer(part, map(batch, own, traces), len(own), self.random)
            for name in ("weight", "bias"):
                joined = torch.cat([getattr(part, name), getattr(layer, name)[hidden:]])
                setattr(layer, name, nn.Parameter(joined, requires_grad=False))

    def _fit_readout(
        self, coupling: nn.Module, own: Sequence[State], wanted: Sequence[torch.Tensor]
    ) -> None:
        """Fit the skip half of all WaveNet layers and the last convolution, as one linear map."""
        hidden, last, half = (
            coupling.wavenet.hidden_size,
            coupling.conv_post,
            coupling.half_channels,
        )
        layers, ending = coupling.wavenet.res_skip_layers, last.weight[:, :, 0]
        skips = torch.cat([layer.weight[-hidden:, :, 0] for layer in layers], dim=1)
        offset = sum(layer.bias[-hidden:] for layer in layers)
        # With full rank the skip connections alone can make any map.
        free = int(torch.linalg.matrix_rank(ending.double(), rtol=_RANK)) == half
        both = (ending @ skips, last.bias + ending @ offset) if free else (ending, last.bias)
        joined = _convolution(*both)
        before = joined.weight[:, :, 0].clone(), joined.bias.clone()

        def batch(state: State, aim: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
            gated = torch.cat(_activations(coupling, state)[1], dim=1)
            inputs = gated if free else skips @ gated + offset[:, None]
            return inputs, (_turned(state) - aim)[:, half:], None

        fit_layer(joined, map(batch, own, wanted), len(own), self.random)
        change, shift = (joined.weight[:, :, 0] - before[0]), joined.bias - before[1]
        last.bias = nn.Parameter(last.bias + shift, requires_grad=False)
        if not free:
            last.weight = nn.Parameter(joined.weight.detach().clone(), requires_grad=False)
            return
        inverse = torch.linalg.pinv(ending.double(), rtol=_RANK)
        for layer, part in zip(layers, change.double().split(hidden, dim=1), strict=True):
            weight = layer.weight.clone()
            weight[-hidden:, :, 0] += (inverse @ part).float()
            layer.weight = nn.Parameter(weight, requires_grad=False)

    def decoder(self, before: Sequence[State], own: Sequence[State], progress: Progress) -> None:
        """Fit upsampling by upsampling, branch by branch, to what enters each voice's decoder."""
        theirs, mine = self.original.model.decoder, self.smaller.model.decoder
        wanted = [blocks.enter_decoder(theirs, state) for state in before]
        streams = [blocks.enter_decoder(mine, state) for state in own]
        for stage in range(theirs.num_upsamples):
            progress.report(f"fitting decoder stage {stage}", stage / theirs.num_upsamples)
            stays = list(self.kept[f"decoder.upsampler.{stage}"])
            wanted = [theirs.upsampler[stage](self._bend(one)) for one in wanted]
            ends = [self._bend(stream) for stream in streams]
            self._fit(mine.upsampler[stage], ends, (one[:, stays] for one in wanted))
            streams = [mine.upsampler[stage](end) for end in ends]
            wanted, streams = self._stage(stage, stays, wanted, streams)
        aims = (theirs.conv_post(leaky_relu(one)) for one in wanted)
        self._fit(mine.conv_post, [leaky_relu(stream) for stream in streams], aims)

    def _fit(self, layer: nn.Module, inputs: Streams, aims: Iterable[torch.Tensor]) -> None:
        batches = ((given, aim, None) for given, aim in zip(inputs, aims, strict=True))
        fit_layer(layer, batches, len(inputs), self.random)

    def _stage(
        self, stage: int, stays: list[int], wanted: Streams, given: Streams
    ) -> tuple[Streams, Streams]:
        """Fit the residual branches of a stage; return the mean that each voice's stage makes."""
        theirs, mine = self.original.model.decoder, self.smaller.model.decoder
        branches, count, left = self.kept[BRANCHES], theirs.num_kernels, mine.num_kernels
        wholes = [_steps(one) for one in theirs.resblocks[stage * count :][:count]]
        own = [_steps(one) for one in mine.resblocks[stage * left :][:left]]
        traces = [[self._trace(steps, one) for one in wanted] for steps in wholes]
        ends = ([trace[-1] for trace in one] for one in zip(*traces, strict=True))
        totals = [functools.reduce(torch.add, one) for one in ends]
        done = [torch.zeros_like(stream) for stream in given]
        for old, steps in zip(branches, own, strict=True):
            streams = given
            for step, (convs, before) in enumerate(zip(steps, wholes[old], strict=True)):
                aims = [trace[step + 1][:, stays] for trace in traces[old]]
                if steps is own[-1] and convs is steps[-1]:
                    # The last layer also makes up for the branches that went, and for what the
                    # others could not.
                    aims = [total[:, stays] - one for total, one in zip(totals, done, strict=True)]
                read = [self._bend(stream) for stream in streams]
                if len(convs) == 2:
                    inner = list(self.kept[f"{RESBLOCKS}.{stage * count + old}.convs1.{step}"])
                    befores = (before[0](self._bend(trace[step])) for trace in traces[old])
                    self._fit(convs[0], read, (one[:, inner] for one in befores))
                    read = [self._bend(convs[0](one)) for one in read]
                changes = [aim - stream for aim, stream in zip(aims, streams, strict=True)]
                self._fit(convs[-1], read, changes)
                streams = [self._run(convs, stream) for stream in streams]
            done = [total + stream for total, stream in zip(done, streams, strict=True)]
        return [one / count for one in totals], [one / len(own) for one in done]

    def _trace(self, steps: Sequence[Sequence[nn.Module]], hidden: torch.Tensor) -> Streams:
        """The residual stream before each step of a block, and after the last."""
        found = [hidden]
        for convs in steps:
            found.append(self._run(convs, found[-1]))
        return found

    def _run(self, convs: Sequence[nn.Module], stream: torch.Tensor) -> torch.Tensor:
        change = stream
        for conv in convs:
            change = conv(self._bend(change))
        return change + stream

    def _bend(self, stream: torch.Tensor) -> torch.Tensor:
        return leaky_relu(stream, self.original.model.config.leaky_relu_slope)


def _through(layers: Sequence[nn.Module], state: State) -> State:
    for layer in layers:
        state = blocks.run_encoder_layer(layer, state)
    return state


def _traced_pairs(
    theirs: nn.Module, mine: nn.Module, pairs: Sequence[Sequence[State]]
) -> Iterator[tuple[State, State, torch.Tensor]]:
    for before, own in pairs:
        yield _traced(theirs, before), _traced(mine, own), before["valid"]


def _traced(layer: nn.Module, state: State) -> State:
    """What passes through a layer of the encoder."""
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
    with blocks.removing(hooks):
        blocks.run_encoder_layer(layer, state)
    return seen


def _steps(block: nn.Module) -> list[tuple[nn.Module, ...]]:
    """The convolutions of each step of a residual block, two or one."""
    two = hasattr(block, "convs1")
    return list(zip(block.convs1, block.convs2, strict=True) if two else zip(block.convs))


def _turned(state: State, turns: int = 1) -> torch.Tensor:
    return state["latents"].flip(1) if turns % 2 else state["latents"]


def _activations(
    coupling: nn.Module, state: State
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The input of each WaveNet layer, and the gated activations that it makes of it."""
    given: list[torch.Tensor] = []
    gated: list[torch.Tensor] = []
    net = coupling.wavenet
    hooks = [
        layer.register_forward_pre_hook(lambda _module, seen, to=to: to.append(seen[0]))
        for layers, to in ((net.in_layers, given), (net.res_skip_layers, gated))
        for layer in layers
    ]
    with blocks.removing(hooks):
        coupling(_turned(state), state["mask"], state["conditioning"], reverse=True)
    return given, gated


def _convolution(weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv1d:
    """A convolution of one tap with this matrix."""
    made = nn.Conv1d(weight.shape[1], weight.shape[0], 1)
    made.weight = nn.Parameter(weight[..., None].detach().clone(), requires_grad=False)
    made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made
