"""What is left of a voice after channels and branches went takes over their work: least squares, layer after layer, on its own speech.

Each layer that stays is fitted to what the original's layer gave (channel pruning by reconstruction: He et al. 2017, arXiv:1707.06168), on
the inputs that it now gets. Where the layer adds to a residual stream, the stream is aimed at instead, so that a later layer also makes up
for what earlier ones could not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from vits_prune.pruning.calibration import (
    MAX_COLUMNS,
    State,
    Step,
    flow_blocks,
    own_durations,
    sentence_ids,
    stretch_of,
    stretched,
    token_states,
)
from vits_prune.pruning.couplings import BRANCHES, ENCODER_LAYERS, RESBLOCKS
from vits_prune.pruning.matrix import LayerMatrix
from vits_prune.pruning.structured import Choice, groups, latents_are_flipped
from vits_prune.synthesis import encode, speaker_embedding
from vits_prune.voices.voice import Voice

DAMPING = 0.003
"""How firmly a layer holds on to what it had, as a share of the mean energy of its inputs."""
SPOKEN, SEGMENT = 60, 48
"""Sentences, and frames of each, that the decoder is fitted on."""
WINDOWS = 24_000
"""Most windows that one layer is fitted on."""


class Fit:
    """A layer's least squares problem, gathered batch by batch; a layer without one matrix, or with too large a one, keeps what it has."""

    def __init__(self, module: nn.Module, random: torch.Generator, batches: int) -> None:
        self.module, self._random, self._most = module, random, max(1, WINDOWS // batches)
        self.matrix = LayerMatrix(module)
        columns = self.matrix.shape[1] + (module.bias is not None)
        self._fits = self.matrix.dense and columns <= MAX_COLUMNS
        columns = columns if self._fits else 0
        self._gram, self._cross = torch.zeros(columns, columns), torch.zeros(self.matrix.shape[0], columns)
        self._windows = 0

    def add(self, inputs: torch.Tensor, wanted: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Count in a batch.

        Args:
            inputs: what the layer is given.
            wanted: what it should give, of its output's shape.
            valid: positions that are no padding, bool [batch, positions of the output]; None for all.
        """
        if not self._fits:
            return
        usable = self.matrix.usable(inputs, valid).nonzero()
        if len(usable) > self._most:
            usable = usable[torch.randperm(len(usable), generator=self._random)[: self._most]]
        batch, position = usable[:, 0], usable[:, 1]
        found = self.matrix.windows(inputs, batch, position)
        if self.module.bias is not None:
            found = torch.cat([found, torch.ones(len(found), 1)], dim=1)
        self._gram.addmm_(found.T, found)
        self._cross.addmm_(self.matrix.outputs(wanted, batch, position).T, found)
        self._windows += len(found)

    def solve(self) -> None:
        """Give the layer the weights that fit best, near those that it has."""
        if not self._windows:
            return
        module, columns = self.module, self.matrix.shape[1]
        now = self.matrix.of(module.weight.detach()).float()
        if module.bias is not None:
            now = torch.cat([now, module.bias.detach().repeat_interleave(len(now) // len(module.bias))[:, None]], dim=1)
        gram, cross = self._gram / max(1, self._windows), self._cross / max(1, self._windows)
        damping = DAMPING * float(gram.diagonal()[:columns].mean().clamp(min=1e-12))
        gram.diagonal().add_(damping)
        found = torch.cholesky_solve((cross + damping * now).T, torch.linalg.cholesky(gram)).T
        if not bool(torch.isfinite(found).all()):
            return
        module.weight = nn.Parameter(self.matrix.back(found[:, :columns].contiguous()), requires_grad=False)
        if module.bias is not None:
            module.bias = nn.Parameter(found[:, -1].reshape(len(module.bias), -1).mean(1).contiguous(), requires_grad=False)


def refit(original: Voice, smaller: Voice, choice: Choice, texts: Sequence[str], seed: int, *, on_step: Step | None = None) -> None:
    """Fit the encoder's feed-forward layers and the decoder of a voice that was cut, in place; its other parts stay as they were cut.

    Args:
        original: the voice before the cut.
        smaller: what `cut` made of it for this choice. Nobody else may hold it yet: its layers are given new weights.
        choice: what stayed.
        texts: what is spoken.
        seed: of the noise and of what is sampled.
        on_step: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing of the texts.
    """
    tell = on_step or (lambda _what, _share: None)
    kept = {group.name: choice.kept.get(group.name, tuple(range(group.size))) for group in groups(original)}
    random = torch.Generator().manual_seed(seed)
    sentences = sentence_ids(original, texts)
    if smaller.model.config.ffn_dim != original.model.config.ffn_dim:
        _refit_encoder(original, smaller, kept[ENCODER_LAYERS], sentences, random, tell)
    if any(len(kept[group.name]) < group.size for group in groups(original) if group.name.startswith("decoder.")):
        _refit_decoder(original, smaller, kept, _latents(original, smaller, sentences, seed), random, tell)
    tell("fitted", 1.0)


def _refit_encoder(
    original: Voice, smaller: Voice, kept: tuple[int, ...], sentences: Sequence[tuple[int, ...]], random: torch.Generator, tell: Step
) -> None:
    """The second convolution of each feed-forward layer, so that the stream behind it is the original's."""
    states = [[state, dict(state)] for state in token_states(original.model, sentences)]
    layers = original.model.text_encoder.encoder.layers
    for new, old in enumerate(kept):
        tell(f"fitting encoder layer {new}", 0.3 * new / len(kept))
        theirs, mine = layers[old], smaller.model.text_encoder.encoder.layers[new]
        fit = Fit(mine.feed_forward.conv_2, random, len(states))
        for before, beside in states:
            (_, stream, given) = _feed_forward(theirs, before)
            (inputs, own_stream, _) = _feed_forward(mine, beside)
            wanted = (stream + given - own_stream).transpose(1, 2)
            fit.add(inputs, wanted, before["valid"])
        fit.solve()
        for pair in states:
            pair[:] = [{**state, "hidden": _run(layer, state)} for layer, state in zip((theirs, mine), pair, strict=True)]


def _run(layer: nn.Module, state: State) -> torch.Tensor:
    return layer(state["hidden"], attention_mask=state["attention_mask"], padding_mask=state["padding_mask"])[0]


def _feed_forward(layer: nn.Module, state: State) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input of the second convolution, the residual stream before the feed-forward layer, what that layer adds)."""
    seen: dict[str, torch.Tensor] = {}
    hooks = (
        layer.feed_forward.register_forward_hook(lambda _module, given, output: seen.update(stream=given[0], added=output)),
        layer.feed_forward.conv_2.register_forward_pre_hook(lambda _module, given: seen.update(inputs=given[0])),
    )
    try:
        _run(layer, state)
    finally:
        for hook in hooks:
            hook.remove()
    return seen["inputs"], seen["stream"], seen["added"]


def _latents(original: Voice, smaller: Voice, sentences: Sequence[tuple[int, ...]], seed: int) -> list[tuple[State, State]]:
    """Stretches of what the original's flow hands its decoder, and the same in the order of channels that the smaller voice reads."""
    conditioning, places = speaker_embedding(original), np.random.default_rng(seed)
    flipped, found = latents_are_flipped(original, smaller), []
    for index, ids in enumerate(sentences[:: max(1, len(sentences) // SPOKEN)][:SPOKEN]):
        key = (seed, index)
        _, means, log_variances = encode(original, ids)
        durations = own_durations(original, ids, key)
        state = {"means": means, "log_variances": log_variances, "durations": durations, "key": key, "conditioning": conditioning}
        state = stretched(state, original)
        for block in flow_blocks(original.model):
            state = block.run(original.model, state)
        (state,) = stretch_of([state], int(places.integers(1 << 30)), SEGMENT)
        found.append((state, {**state, "hidden": state["hidden"].flip(1)} if flipped else state))
    return found


def _refit_decoder(
    original: Voice,
    smaller: Voice,
    kept: dict[str, tuple[int, ...]],
    states: Sequence[tuple[State, State]],
    random: torch.Generator,
    tell: Step,
) -> None:
    theirs, mine, slope = original.model.decoder, smaller.model.decoder, original.model.config.leaky_relu_slope
    branches = len(original.model.config.resblock_kernel_sizes)
    streams = [(_entered(theirs, before), _entered(mine, beside)) for before, beside in states]
    for stage in range(theirs.num_upsamples):
        tell(f"fitting decoder stage {stage}", 0.3 + 0.7 * stage / theirs.num_upsamples)
        stays = list(kept[f"decoder.upsampler.{stage}"])
        fit = Fit(mine.upsampler[stage], random, len(streams))
        raised = []
        for before, beside in streams:
            wanted, inputs = theirs.upsampler[stage](_leaky(before, slope)), _leaky(beside, slope)
            fit.add(inputs, wanted[:, stays])
            raised.append((wanted, inputs))
        fit.solve()
        ups = [(wanted, mine.upsampler[stage](inputs)) for wanted, inputs in raised]
        blocks = [theirs.resblocks[stage * branches + index] for index in range(branches)]
        own = mine.resblocks[stage * len(kept[BRANCHES]) : (stage + 1) * len(kept[BRANCHES])]
        streams = _refit_stage(blocks, list(own), list(kept[BRANCHES]), stays, ups, _inner(kept, stage, branches), slope, random)
    fit = Fit(mine.conv_post, random, len(streams))
    for before, beside in streams:
        fit.add(nn.functional.leaky_relu(beside), theirs.conv_post(nn.functional.leaky_relu(before)))
    fit.solve()


def _inner(kept: dict[str, tuple[int, ...]], stage: int, branches: int) -> dict[tuple[int, int], list[int]]:
    """(branch, step) -> channels that stay inside a ResBlock1."""
    found = {}
    for name, indices in kept.items():
        pieces = name.split(".")
        if name.startswith(f"{RESBLOCKS}.") and int(pieces[2]) // branches == stage:
            found[int(pieces[2]) % branches, int(pieces[4])] = list(indices)
    return found


def _entered(decoder: nn.Module, state: State) -> torch.Tensor:
    hidden = decoder.conv_pre(state["hidden"])
    return hidden if state["conditioning"] is None else hidden + decoder.cond(state["conditioning"])


def _leaky(hidden: torch.Tensor, slope: float) -> torch.Tensor:
    return nn.functional.leaky_relu(hidden, slope)


def _refit_stage(
    blocks: Sequence[nn.Module],
    own: Sequence[nn.Module],
    kept: Sequence[int],
    stays: list[int],
    ups: Sequence[tuple[torch.Tensor, torch.Tensor]],
    inner: dict[tuple[int, int], list[int]],
    slope: float,
    random: torch.Generator,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The residual branches of a stage; returns the stage's mean of both."""
    theirs = [[_trace(block, before, slope) for before, _ in ups] for block in blocks]
    totals = [sum(trace[index][-1] for trace in theirs) for index in range(len(ups))]
    done = [torch.zeros_like(beside) for _, beside in ups]
    for place, (mine, old) in enumerate(zip(own, kept, strict=True)):
        streams = [beside for _, beside in ups]
        steps = len(theirs[old][0]) - 1
        for step in range(steps):
            last = place == len(own) - 1 and step == steps - 1
            # The last layer of the stage also makes up for the branches that went and for what the others could not.
            aims = [totals[i][:, stays] - done[i] if last else theirs[old][i][step + 1][:, stays] for i in range(len(ups))]
            _refit_step(
                mine, blocks[old], step, [before[step] for before in theirs[old]], streams, aims, inner.get((old, step)), slope, random
            )
            streams = [_step(mine, step, stream, slope) for stream in streams]
        done = [total + stream for total, stream in zip(done, streams, strict=True)]
    return [(total / len(blocks), mine / len(own)) for total, mine in zip(totals, done, strict=True)]


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
    """One step of a residual block: aim - stream is what its convolution should give."""
    if not hasattr(mine, "convs1"):
        fit = Fit(mine.convs[step], random, len(streams))
        for stream, aim in zip(streams, aims, strict=True):
            fit.add(_leaky(stream, slope), aim - stream)
        fit.solve()
        return
    first = Fit(mine.convs1[step], random, len(streams))
    for before, stream in zip(befores, streams, strict=True):
        wanted = theirs.convs1[step](_leaky(before, slope))
        first.add(_leaky(stream, slope), wanted if inner is None else wanted[:, inner])
    first.solve()
    second = Fit(mine.convs2[step], random, len(streams))
    for stream, aim in zip(streams, aims, strict=True):
        second.add(_leaky(mine.convs1[step](_leaky(stream, slope)), slope), aim - stream)
    second.solve()


def _trace(block: nn.Module, hidden: torch.Tensor, slope: float) -> list[torch.Tensor]:
    """The residual stream before each step of a block, and behind the last."""
    found = [hidden]
    for step in range(len(block.convs1 if hasattr(block, "convs1") else block.convs)):
        found.append(_step(block, step, found[-1], slope))
    return found


def _step(block: nn.Module, step: int, stream: torch.Tensor, slope: float) -> torch.Tensor:
    if not hasattr(block, "convs1"):
        return block.convs[step](_leaky(stream, slope)) + stream
    return block.convs2[step](_leaky(block.convs1[step](_leaky(stream, slope)), slope)) + stream
