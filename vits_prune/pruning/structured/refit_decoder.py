"""The decoder's share of the refit: upsampling by upsampling, branch by branch, up to the last convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vits_prune.pruning.calibration import State, Step
from vits_prune.pruning.structured.couplings import BRANCHES, RESBLOCKS
from vits_prune.pruning.structured.least_squares import Fit
from vits_prune.voices.voice import Voice


def refit_decoder(
    original: Voice,
    smaller: Voice,
    kept: dict[str, tuple[int, ...]],
    states: Sequence[tuple[State, State]],
    random: torch.Generator,
    tell: Step,
) -> None:
    """Fit in place, stage by stage.

    Args:
        original: the voice before the cut.
        smaller: what the cut made of it.
        kept: group -> what stays of it, of all groups.
        states: what the decoder of each of the two is given, each in the order of channels that it reads.
        random: for what is sampled.
        tell: told how far it is.
    """
    theirs, mine, slope = (
        original.model.decoder,
        smaller.model.decoder,
        original.model.config.leaky_relu_slope,
    )
    branches = len(original.model.config.resblock_kernel_sizes)
    streams = [(_entered(theirs, before), _entered(mine, beside)) for before, beside in states]
    for stage in range(theirs.num_upsamples):
        tell(f"fitting decoder stage {stage}", stage / theirs.num_upsamples)
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
        streams = _refit_stage(
            blocks,
            list(own),
            list(kept[BRANCHES]),
            stays,
            ups,
            _inner(kept, stage, branches),
            slope,
            random,
        )
    fit = Fit(mine.conv_post, random, len(streams))
    for before, beside in streams:
        fit.add(
            nn.functional.leaky_relu(beside), theirs.conv_post(nn.functional.leaky_relu(before))
        )
    fit.solve()


def _inner(
    kept: dict[str, tuple[int, ...]], stage: int, branches: int
) -> dict[tuple[int, int], list[int]]:
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
            aims = [
                totals[i][:, stays] - done[i] if last else theirs[old][i][step + 1][:, stays]
                for i in range(len(ups))
            ]
            _refit_step(
                mine,
                blocks[old],
                step,
                [before[step] for before in theirs[old]],
                streams,
                aims,
                inner.get((old, step)),
                slope,
                random,
            )
            streams = [_step(mine, step, stream, slope) for stream in streams]
        done = [total + stream for total, stream in zip(done, streams, strict=True)]
    return [
        (total / len(blocks), mine / len(own)) for total, mine in zip(totals, done, strict=True)
    ]


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
