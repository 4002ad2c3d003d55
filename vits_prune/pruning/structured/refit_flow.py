"""The flow's share of the refit: the couplings that stay carry what the whole flow did, in the order in which they run.

What a coupling takes away from one half of the latents is linear in its WaveNet's gated activations, through the skip connections of
its layers and the convolution that ends it: these are fitted together, exactly. The activations themselves stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vits_prune.pruning.calibration import State, Step, flow_blocks
from vits_prune.pruning.structured.couplings import FLOWS
from vits_prune.pruning.structured.cut import latents_are_flipped
from vits_prune.pruning.structured.least_squares import Fit
from vits_prune.voices.voice import Voice

_RANK = 1e-4
"""Singular values of the convolution that ends a coupling below this share of the largest count as none."""


def refit_flow(
    original: Voice,
    smaller: Voice,
    kept: dict[str, tuple[int, ...]],
    states: Sequence[State],
    random: torch.Generator,
    tell: Step,
) -> list[State]:
    """Fit the couplings that stay, in place.

    Args:
        original: the voice before the cut.
        smaller: what the cut made of it.
        kept: group -> what stays of it, of all groups.
        states: what the flow is given, by sentence.
        random: for what is sampled.
        tell: told how far it is.

    Returns:
        What the smaller voice's flow makes of it, in the order of channels in which its decoder reads.
    """
    # By sentence: what enters each of the original's couplings as they run, and the end.
    passed = [[state] for state in states]
    blocks = list(flow_blocks(original.model))
    for block in blocks:
        for walk in passed:
            walk.append(block.run(original.model, walk[-1]))
    running = sorted(kept[FLOWS], reverse=True)
    count, last = len(running), len(blocks) - 1
    own, own_blocks = list(states), list(flow_blocks(smaller.model))
    flipped = latents_are_flipped(original, smaller)
    for place, old in enumerate(running):
        tell(f"fitting coupling {count - 1 - place}", place / count)
        coupling = smaller.model.flow.flows[count - 1 - place]
        if place + 2 < count:  # the half that it changes is next changed by that one
            at, turns = last - running[place + 2], 1
        else:
            at, turns = last + 1, count - 1 - place + flipped
        wanted = [_turned(walk[at]["latents"], turns) for walk in passed]
        steps = kept[f"{FLOWS}.{old}.wavenet"]
        if len(steps) < len(original.model.flow.flows[old].wavenet.in_layers):
            befores = [_turned(walk[last - old]["latents"], 1) for walk in passed]
            _fit_streams(original.model.flow.flows[old], coupling, steps, befores, own, random)
        _fit_readout(coupling, own, wanted, random)
        own = [own_blocks[place].run(smaller.model, state) for state in own]
    return own


def _turned(latents: torch.Tensor, turns: int) -> torch.Tensor:
    """Channels reversed so many times."""
    return latents.flip(1) if turns % 2 else latents


def _activations(
    coupling: nn.Module, inputs: torch.Tensor, state: State
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each WaveNet layer what it is given, and the gated activations that it makes of it.

    Args:
        coupling: whose WaveNet.
        inputs: latents as the coupling gets them, already turned.
        state: its mask and conditioning.
    """
    given: list[torch.Tensor] = []
    gated: list[torch.Tensor] = []
    net = coupling.wavenet
    hooks = [
        layer.register_forward_pre_hook(lambda _module, seen: given.append(seen[0]))
        for layer in net.in_layers
    ]
    hooks += [
        layer.register_forward_pre_hook(lambda _module, seen: gated.append(seen[0]))
        for layer in net.res_skip_layers
    ]
    try:
        coupling(inputs, state["mask"], state["conditioning"], reverse=True)
    finally:
        for hook in hooks:
            hook.remove()
    return given, gated


def _fit_streams(
    theirs: nn.Module,
    mine: nn.Module,
    steps: Sequence[int],
    befores: Sequence[torch.Tensor],
    own: Sequence[State],
    random: torch.Generator,
) -> None:
    """The residual half of each WaveNet layer that stays: so that the next one is given what it was."""
    hidden = mine.wavenet.hidden_size
    traces = [
        _activations(theirs, before, state)[0] for before, state in zip(befores, own, strict=True)
    ]
    for new, old_next in enumerate(steps[1:]):
        layer = mine.wavenet.res_skip_layers[new]
        part = _convolution(layer.weight[:hidden, :, 0], layer.bias[:hidden])
        fit = Fit(part, random, len(own))
        for state, trace in zip(own, traces, strict=True):
            given, gated = _activations(mine, _turned(state["latents"], 1), state)
            fit.add(gated[new], trace[old_next] - given[new])
        fit.solve()
        layer.weight = nn.Parameter(
            torch.cat([part.weight, layer.weight[hidden:]]), requires_grad=False
        )
        layer.bias = nn.Parameter(torch.cat([part.bias, layer.bias[hidden:]]), requires_grad=False)


def _fit_readout(
    coupling: nn.Module,
    own: Sequence[State],
    wanted: Sequence[torch.Tensor],
    random: torch.Generator,
) -> None:
    """The skip half of all WaveNet layers and the convolution that ends the coupling, as the one linear map that they are."""
    hidden, last, half = coupling.wavenet.hidden_size, coupling.conv_post, coupling.half_channels
    layers, ending = coupling.wavenet.res_skip_layers, last.weight[:, :, 0]
    skips, offset = (
        torch.cat([layer.weight[-hidden:, :, 0] for layer in layers], dim=1),
        sum(layer.bias[-hidden:] for layer in layers),
    )
    free = (
        int(torch.linalg.matrix_rank(ending.double(), rtol=_RANK)) == half
    )  # any map can be had by the skip connections alone
    joined = _convolution(
        ending @ skips if free else ending, last.bias + ending @ offset if free else last.bias
    )
    before = joined.weight[:, :, 0].clone(), joined.bias.clone()
    fit = Fit(joined, random, len(own))
    for state, aim in zip(own, wanted, strict=True):
        inputs = _turned(state["latents"], 1)
        gated = torch.cat(_activations(coupling, inputs, state)[1], dim=1)
        fit.add(gated if free else (skips @ gated + offset[:, None]), (inputs - aim)[:, half:])
    fit.solve()
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


def _convolution(weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv1d:
    """A convolution of one tap with this matrix."""
    made = nn.Conv1d(weight.shape[1], weight.shape[0], 1)
    made.weight = nn.Parameter(weight[..., None].detach().clone(), requires_grad=False)
    made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made
