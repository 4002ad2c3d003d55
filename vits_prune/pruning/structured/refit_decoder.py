"""The decoder's share of the refit: upsampling by upsampling, branch by branch, to the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vits_prune.progress import Progress
from vits_prune.pruning.blocks import State, enter_decoder
from vits_prune.pruning.matrix import fit_layer
from vits_prune.pruning.structured.couplings import BRANCHES, RESBLOCKS
from vits_prune.voices.voice import Voice

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
