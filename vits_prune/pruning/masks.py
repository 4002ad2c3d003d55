"""From scores to which weights go: the amount shared out among the layers, and the pattern within one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from vits_prune.errors import InputError
from vits_prune.pruning.matrix import LayerMatrix

Scores = Mapping[str, np.ndarray]
"""Parameter name -> scores of a layer's weights, any shape; the smallest go first."""


def share_out(scores: Scores, zeros: int, scope: str, floor: float = 0.0) -> dict[str, int]:
    """How many weights each layer loses: `zeros` together, or all that the floor lets go where that is less.

    Args:
        scores: comparable across layers, unless the scope is local.
        zeros: how many all lose together.
        scope: "local" takes the same share from each, any other one ranks all together.
        floor: share of its weights that every layer keeps at least.
    """
    sizes = {name: one.size for name, one in scores.items()}
    most = {name: most_zeros(size, floor) for name, size in sizes.items()}
    total = sum(sizes.values())
    if scope == "local":
        return _exactly({name: zeros * size / total for name, size in sizes.items()}, zeros, most)
    found: dict[str, int] = {}
    left, rest = zeros, dict(scores)
    while rest:  # layers that reach their floor give what they cannot lose to the others
        counts = _ranked(rest, left)
        full = {name: most[name] for name in rest if counts[name] > most[name]}
        if not full:
            return found | counts
        found |= full
        left -= sum(full.values())
        rest = {name: one for name, one in rest.items() if name not in full}
    return found


def most_zeros(size: int, floor: float) -> int:
    """How many of a layer's weights can go if it keeps at least a share of them."""
    return size - math.ceil(floor * size - 1e-6)


def _exactly(shares: Mapping[str, float], total: int, most: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers near the shares that make the total: the largest remainders are rounded up."""
    found = {name: min(most[name], int(share)) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: int(shares[name]) - shares[name])
    missing = total - sum(found.values())
    while missing > 0:
        before = missing
        for name in by_remainder:
            if missing and found[name] < most[name]:
                found[name] += 1
                missing -= 1
        if missing == before:
            break
    return found


def _ranked(scores: Scores, zeros: int) -> dict[str, int]:
    """How many of each layer's are among the `zeros` smallest of all; ties at the threshold in the order of the layers."""
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
    """A mask of the `count` smallest scores, bool of their shape; of equal ones the first in memory order."""
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
    """Which weights go so that of every M neighbouring input channels, at one tap, N stay: bool [rows, columns].

    Args:
        scores: [rows, columns], the smallest go first.
        matrix: of the layer.
        neighbours: (N, M).
        name: of the layer, for the message.

    Raises:
        InputError: the input channels cannot be grouped by M.
    """
    keep, of = neighbours
    cube = matrix.channels(scores)
    if cube.shape[1] % of:
        raise InputError(
            f"{name} has {cube.shape[1]} input channels, which cannot be grouped by {of} for the pattern {keep}:{of}: protect it "
            f"(--protect {name}), or its whole part."
        )
    groups = cube.reshape(cube.shape[0], -1, of, cube.shape[2])
    order = groups.argsort(dim=2, stable=True).argsort(dim=2)
    return (order < of - keep).reshape(scores.shape)
