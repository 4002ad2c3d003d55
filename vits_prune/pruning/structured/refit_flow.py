"""The flow's share of the refit: the couplings that stay do what the whole flow did.

What a coupling takes away from one half of the latents is linear in the gated activations of its
WaveNet, through the skip connections of its layers and the convolution that ends it: these are
fitted together, exactly. The activations themselves stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from vits_prune.progress import Progress
from vits_prune.pruning.blocks import State, flow_blocks, removing
from vits_prune.pruning.matrix import fit_layer
from vits_prune.pruning.structured.couplings import FLOWS
from vits_prune.pruning.structured.cut import latents_are_flipped
from vits_prune.voices.voice import Voice

_RANK = 1e-4
"""Singular values of a coupling's last convolution below this share of the largest count as 0."""


def refit_flow(
    original: Voice,
    smaller: Voice,
    kept: dict[str, tuple[int, ...]],
    states: Sequence[State],
    random: torch.Generator,
    progress: Progress,
) -> list[State]:
    """Fit the couplings that stay, in place; return what leaves the smaller voice's flow.

    `kept` says what stays of every group, the states are what enters the flow, by sentence.
    """
    # By sentence: what enters each of the original's couplings as they run, and the end.
    passed = [[state] for state in states]
    blocks = list(flow_blocks(original.model))
    for block in blocks:
        for passing in passed:
            passing.append(block.run(passing[-1]))
    running = sorted(kept[FLOWS], reverse=True)
    count, last = len(running), len(blocks) - 1
    own, own_blocks = list(states), list(flow_blocks(smaller.model))
    flipped = latents_are_flipped(original, smaller)
    for place, old in enumerate(running):
        progress.report(f"fitting coupling {count - 1 - place}", place / count)
        coupling = smaller.model.flow.flows[count - 1 - place]
        theirs = original.model.flow.flows[old]
        if place + 2 < count:  # the half that it changes is next changed by that one
            at, turns = last - running[place + 2], 1
        else:
            at, turns = last + 1, count - 1 - place + flipped
        steps = kept[f"{FLOWS}.{old}.wavenet"]
        if len(steps) < len(theirs.wavenet.in_layers):
            befores = [passing[last - old] for passing in passed]
            _fit_streams(theirs, coupling, steps, befores, own, random)
        wanted = [_turned(passing[at], turns) for passing in passed]
        _fit_readout(coupling, own, wanted, random)
        own = [own_blocks[place].run(state) for state in own]
    return own


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
    with removing(hooks):
        coupling(_turned(state), state["mask"], state["conditioning"], reverse=True)
    return given, gated


def _fit_streams(
    theirs: nn.Module,
    mine: nn.Module,
    steps: Sequence[int],
    befores: Sequence[State],
    own: Sequence[State],
    random: torch.Generator,
) -> None:
    """Fit the residual half of each WaveNet layer that stays, to the next one's former input."""
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

        fit_layer(part, map(batch, own, traces), len(own), random)
        for name in ("weight", "bias"):
            joined = torch.cat([getattr(part, name), getattr(layer, name)[hidden:]])
            setattr(layer, name, nn.Parameter(joined, requires_grad=False))


def _fit_readout(
    coupling: nn.Module,
    own: Sequence[State],
    wanted: Sequence[torch.Tensor],
    random: torch.Generator,
) -> None:
    """Fit the skip half of all WaveNet layers and the last convolution, as one linear map."""
    hidden, last, half = coupling.wavenet.hidden_size, coupling.conv_post, coupling.half_channels
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

    fit_layer(joined, map(batch, own, wanted), len(own), random)
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
