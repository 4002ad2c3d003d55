"""Weights to a grid of few bits: nearest, or each where the layer's output errs least.

A grid is `voices/grid.py`'s: whole numbers times one scale for each output channel. Scales have 8
significant bits, so that every product is exact in float32.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.pruning.spec import DELICATE, PruneSpec, begins_with
from vits_prune.voices.voice import Voice

DELICATE_BITS = 8
"""Fewest of a delicate layer and of the decoder, which holds few of the weights and is heard most
(joe, 80% zeros, nearest, ten tuning sentences: Distill-MOS 3.36 unrounded, 2.65 with 5 bits in
every part, 3.31 with 8 in the decoder)."""
_NARROWEST, _TRIED = 0.3, 20
"""Scales are tried down to this share of the one at which nothing is clipped, and how many."""
SWEEPS = 4
"""Of coordinate descent. After one the error is up to an eighth larger at 5 bits, and two fifths at
4 (seven layers of joe, 75% zeros)."""
_BLOCK = 64
"""Columns after which the other columns learn of the changes, in one product."""


def largest_number(bits: int) -> int:
    """Return the largest whole number of a symmetric grid: 7 for 4 bits."""
    return (1 << (bits - 1)) - 1


def round_voice(
    voice: Voice, spec: PruneSpec, done: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Return the weights of the spec's parts, each at its nearest place on a grid, by name.

    The decoder and delicate layers get 8 bits or more, and those that are protected by name stay as
    they are. `done` names the parameters that are on their grid already.
    """
    weights, found = dict(voice.model.named_parameters()), {}
    for layer in prunable_layers(voice, spec.parts):
        name, named = layer.parameter, spec.protect is not None and spec.protects(layer.name)
        if name not in done and not named:
            module = voice.model.get_submodule(layer.name)
            found[name] = nearest(weights[name].detach(), module, bits_of(layer, spec))
    return found


def bits_of(layer: Layer, spec: PruneSpec) -> int:
    """Return the bits of a layer's weights, 0 for all of float32."""
    delicate = any(begins_with(layer.name, one) for one in ("decoder", *DELICATE))
    return max(spec.bits, DELICATE_BITS) if spec.bits and delicate else spec.bits


def nearest(weight: torch.Tensor, module: nn.Module, bits: int) -> torch.Tensor:
    """Return a layer's weight with each value at the nearest place of its channel's grid.

    With 0 bits it stays as it is.
    """
    if not bits:
        return weight
    axis = 1 if isinstance(module, nn.ConvTranspose1d) else 0
    rows, top = weight.float().movedim(axis, 0), largest_number(bits)
    scales = best_scales(rows.flatten(1), top).reshape(-1, *[1] * (rows.ndim - 1))
    return on_grid(rows, scales, top).mul_(scales).movedim(0, axis).contiguous()


def on_grid(weights: torch.Tensor, scales: torch.Tensor, top: int) -> torch.Tensor:
    """Return the whole numbers nearest to weights over scales, at most `top` in size."""
    return torch.div(weights, scales).round_().clamp_(-top, top)


def best_scales(rows: torch.Tensor, top: int, energies: torch.Tensor | None = None) -> torch.Tensor:
    """Return the scale [rows, 1] of each row at which rounding errs least, of those tried.

    Errors of each column count by its energy.
    """
    widest = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / top
    least = torch.full_like(widest, torch.inf)
    found = significant(widest)
    for share in torch.linspace(1.0, _NARROWEST, _TRIED).tolist():
        scales = significant(widest * share)
        errors = (on_grid(rows, scales, top).mul_(scales) - rows).square_()
        error = errors.sum(1, keepdim=True) if energies is None else (errors @ energies)[:, None]
        found = torch.where(error < least, scales, found)
        least = torch.minimum(error, least)
    return found


def significant(scales: torch.Tensor) -> torch.Tensor:
    """Return scales with their 8 most significant bits."""
    return scales.bfloat16().float()


def descend(
    start: torch.Tensor,
    target: torch.Tensor,
    covariance: torch.Tensor,
    kept: torch.Tensor,
    scales: torch.Tensor,
    top: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise tr (W - T) H (W - T)ᵀ over a grid, one column after the other, in some sweeps.

    Each column takes its best place given all others, which are not rounded until it is their turn:
    coordinate descent, as in CDQuant (Nair & Suggala 2024, arXiv:2406.17542).

    Args:
        start, target: W to begin with and T, [rows, columns + any biases].
        covariance: H, as wide.
        kept: 1 for those that may be other than zero, else 0, [rows, columns].
        scales: of the grid, [rows, columns].
        top: largest whole number.

    Returns:
        The whole numbers [rows, columns], and W.
    """
    found, columns = start.clone(), kept.shape[1]
    numbers = torch.zeros_like(kept)
    residual, energies = (found - target) @ covariance, covariance.diagonal()
    for _ in range(SWEEPS):
        for begin in range(0, found.shape[1], _BLOCK):
            end = min(begin + _BLOCK, found.shape[1])
            mine, near = residual[:, begin:end].clone(), covariance[begin:end, begin:end]
            before = found[:, begin:end].clone()
            for at in range(begin, end):
                best = found[:, at] - mine[:, at - begin] / energies[at]
                if at < columns:
                    numbers[:, at] = on_grid(best, scales[:, at], top) * kept[:, at]
                    best = numbers[:, at] * scales[:, at]
                mine.addr_(best - found[:, at], near[at - begin])
                found[:, at] = best
            residual.addmm_(found[:, begin:end] - before, covariance[begin:end])
    return numbers, found
