"""From scores to zeros: share an amount out among layers, zero the weights that score lowest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.blocks import not_finite
from vits_prune.pruning.calibration import texts_for
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.pruning.matrix import LayerMatrix
from vits_prune.pruning.sensitivity import channel_sensitivity
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice

Scores = Mapping[str, torch.Tensor]
"""Parameter name -> score of each weight, in the weight's shape; the smallest go first."""

TEMPER = 0.25
"""Power of the measured sensitivities. They hold for small errors; at useful sparsities errors are
large and saturate, and the whole power would empty the decoder (joe at 0.8, tuning sentences:
log-mel distance 1.17 with 1, 0.51 with 0.4, 0.46 with 0.2)."""


def zeros_wanted(voice: Voice, spec: PruneSpec, chosen: Sequence[Layer]) -> int:
    """Return how many weights the chosen layers lose: the amount of all weights of the parts."""
    everything = sum(layer.weights for layer in prunable_layers(voice, spec.parts))
    wanted = round(spec.amount * everything)
    most = sum(most_zeros(layer.weights, spec.floor) for layer in chosen)
    if wanted > most:
        limit = f"unprotected layers can lose above the floor: {most / everything:.3f} is the most"
        raise InputError(
            f"An amount of {spec.amount:g} is more than {limit} here. Protect less, or prune less."
        )
    return wanted


def share_out(
    scores: Mapping[str, np.ndarray], zeros: int, scope: str, floor: float = 0.0
) -> dict[str, int]:
    """Return how many weights each layer loses: together `zeros`, or less if the floor forbids it.

    The scope "local" takes the same share from each layer, any other one ranks all together by
    scores that must be comparable. Every layer keeps at least the floor's share of its weights.
    """
    most = {name: most_zeros(one.size, floor) for name, one in scores.items()}
    if scope == "local":
        total = sum(one.size for one in scores.values())
        shares = {name: zeros * one.size / total for name, one in scores.items()}
        return _rounded(shares, zeros, most)
    found: dict[str, int] = {}
    left, rest = zeros, dict(scores)
    while rest:  # what a layer at its floor cannot lose, the others lose
        counts = _ranked(rest, left)
        full = {name: most[name] for name in rest if counts[name] > most[name]}
        if not full:
            return found | counts
        found |= full
        left -= sum(full.values())
        rest = {name: one for name, one in rest.items() if name not in full}
    return found


def most_zeros(size: int, floor: float) -> int:
    """Return how many weights of a layer can go if it keeps at least a share of them."""
    return size - math.ceil(floor * size - 1e-6)


def _rounded(shares: Mapping[str, float], total: int, most: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers near the shares with the given sum: the largest remainders are rounded up."""
    found = {name: min(most[name], int(share)) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: int(shares[name]) - shares[name])
    missing, before = total - sum(found.values()), 0
    while missing > 0 and missing != before:
        before = missing
        for name in by_remainder:
            if missing and found[name] < most[name]:
                found[name] += 1
                missing -= 1
    return found


def _ranked(scores: Mapping[str, np.ndarray], zeros: int) -> dict[str, int]:
    """How many of each layer's are among the `zeros` smallest; ties go in the order of layers."""
    if zeros <= 0:
        return dict.fromkeys(scores, 0)
    if zeros >= sum(one.size for one in scores.values()):
        return {name: one.size for name, one in scores.items()}
    joined = np.concatenate([one.ravel() for one in scores.values()])
    threshold = np.partition(joined, zeros - 1)[zeros - 1]
    found = {name: int((one < threshold).sum()) for name, one in scores.items()}
    left = zeros - sum(found.values())
    for name, one in scores.items():
        taken = min(left, int((one == threshold).sum()))
        found[name] += taken
        left -= taken
    return found


def smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask of the `count` smallest; of equal ones the first in memory order."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    if count <= 0:
        return mask
    flat = scores.reshape(-1)
    threshold = float(np.partition(flat.numpy(), count - 1)[count - 1])
    mask.view(-1)[:] = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    mask.view(-1)[ties[: count - int(mask.sum())]] = True
    return mask


def pattern_mask(
    scores: torch.Tensor, matrix: LayerMatrix, neighbours: tuple[int, int], name: str
) -> torch.Tensor:
    """Return which weights go so that of every M neighbouring input channels, at one tap, N stay.

    Those of the smallest scores go, [rows, columns]; `neighbours` are (N, M).
    """
    keep, of = neighbours
    cube = matrix.channels(scores)
    if cube.shape[1] % of:
        what = f"{name} has {cube.shape[1]} input channels, which cannot be grouped by {of}"
        raise InputError(f"{what} for {keep}:{of}: protect it (--protect {name}), or its part.")
    groups = cube.reshape(cube.shape[0], -1, of, cube.shape[2])
    order = groups.argsort(dim=2, stable=True).argsort(dim=2)
    return (order < of - keep).reshape(scores.shape)


def lowest(
    spec: PruneSpec, scores: torch.Tensor, count: int, matrix: LayerMatrix, name: str
) -> torch.Tensor:
    """Return which of a layer's weights go, by the spec's pattern or else `count` of them."""
    if not spec.neighbours:
        return smallest(scores, count)
    return matrix.back(pattern_mask(matrix.of(scores), matrix, spec.neighbours, name))


def weigh(
    voice: Voice, spec: PruneSpec, scores: Scores, progress: Progress = SILENT
) -> dict[str, torch.Tensor]:
    """Return scores of each layer by itself, made comparable across layers.

    In the scope "sensitivity" errors count by what they do to the speech, in others as a share of
    the layer's output.
    """
    found = {name: one / one.sum().clamp(min=1e-30) for name, one in scores.items()}
    if spec.scope != "sensitivity":
        return found
    changes = channel_sensitivity(voice, texts_for(voice, spec), spec.seed, progress=progress)
    return {name: one * float(changes[name].sum()) ** TEMPER for name, one in found.items()}


def zero_lowest(
    voice: Voice, spec: PruneSpec, layers: Sequence[Layer], scores: Scores, *, by_row: bool = False
) -> dict[str, torch.Tensor]:
    """Return the new weights of the layers that lose any, by parameter name.

    Scores must be comparable across layers. With `by_row`, the local scope takes the same share
    from each output.
    """
    weights = dict(voice.model.named_parameters())
    check_finite(voice, scores)
    # Zeros that are there go first: another step of gradual pruning takes no more than asked for.
    scores = {name: one.masked_fill(weights[name] == 0, -1.0) for name, one in scores.items()}
    counts: dict[str, int] = {}
    if not spec.neighbours:
        arrays = {one.parameter: scores[one.parameter].numpy() for one in layers}
        counts = share_out(arrays, zeros_wanted(voice, spec, layers), spec.scope, spec.floor)
    masks = {}
    for layer in layers:
        name, matrix = layer.parameter, LayerMatrix(voice.model.get_submodule(layer.name))
        if by_row and spec.scope == "local" and matrix.dense and not spec.neighbours:
            masks[name] = matrix.back(_smallest_of_rows(matrix.of(scores[name]), counts[name]))
        else:
            masks[name] = lowest(spec, scores[name], counts.get(name, 0), matrix, layer.name)
    return {
        name: weights[name].detach().masked_fill(mask, 0.0)
        for name, mask in masks.items()
        if bool(mask.any())
    }


def check_finite(voice: Voice, tensors: Scores) -> None:
    """Raise InputError if a tensor, by parameter name, is not finite."""
    for name, one in tensors.items():
        if not bool(torch.isfinite(one).all()):
            raise not_finite(voice, name)


def _smallest_of_rows(scores: torch.Tensor, count: int) -> torch.Tensor:
    each, over = divmod(count, len(scores))
    places = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return places < each + (torch.arange(len(scores)) < over)[:, None]
