"""L1 unstructured pruning: the weights smallest in absolute value go first, globally or by layer.

The same choice as `torch.nn.utils.prune.global_unstructured` and `l1_unstructured` (Han et al.
2015, arXiv:1506.02626). Magnitudes are sorted once a voice: a new amount costs a look-up of the
threshold and one pass that writes zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vits_prune.caches import Bounded
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.layers import chosen_layers, prunable_layers
from vits_prune.pruning.masks import weigh, zero_lowest
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import PARTS, Voice

_SAMPLES, _SPACING = 2_000, 64
"""Samples taken of each layer for the grid, and how many samples lie between two of its values."""


@dataclass(frozen=True)
class Cut:
    """Where one layer is cut: smaller magnitudes become zero, and the first of equal ones."""

    threshold: float
    """Largest magnitude that becomes zero; negative where none does."""
    zeros: int
    """How many weights of the layer become zero."""
    spared: int = 0
    """How many weights of exactly the threshold stay, the last ones in memory order."""


class SortedMagnitudes:
    """The absolute weights of every prunable layer of a voice, each sorted. Read-only."""

    def __init__(self, voice: Voice) -> None:
        self.layers = prunable_layers(voice)
        self._sorted: dict[str, np.ndarray] = {}
        for layer in self.layers:
            weight = voice.model.get_parameter(layer.parameter)
            magnitudes = weight.detach().abs().float().flatten().cpu().numpy()
            magnitudes.sort()
            self._sorted[layer.parameter] = magnitudes
        # How many weights of each layer lie at or below each of about 2,000 values spread over all:
        # brackets any global threshold at once.
        samples = [m[:: max(1, m.size // _SAMPLES)] for m in self._sorted.values()]
        self._grid = np.unique(np.concatenate(samples))[::_SPACING]
        self._counts = {
            name: np.searchsorted(m, self._grid, side="right") for name, m in self._sorted.items()
        }

    def zeros(self, parameter: str) -> int:
        """Return how many weights of a layer are zero already."""
        return int(np.searchsorted(self._sorted[parameter], 0.0, side="right"))

    def cuts(self, spec: PruneSpec) -> dict[str, Cut]:
        """Return the Cut of each layer of the chosen parts, by parameter name.

        Exactly round(amount x weights) are cut, ties included.
        """
        chosen = {
            layer.parameter: self._sorted[layer.parameter]
            for layer in self.layers
            if layer.part in spec.parts
        }
        if spec.scope == "local":
            return {name: _cut(m, round(spec.amount * m.size)) for name, m in chosen.items()}
        zeros = round(spec.amount * sum(m.size for m in chosen.values()))
        return _global_cuts(chosen, zeros, self._threshold(chosen, zeros) if zeros else None)

    def _threshold(self, chosen: Mapping[str, np.ndarray], rank: int) -> np.float32:
        """The rank-th smallest, from 1, of the chosen layers' magnitudes together."""
        totals = np.sum([self._counts[name] for name in chosen], axis=0)
        # The first value of the grid with enough weights at or below it.
        bracket = int(np.searchsorted(totals, rank))
        between = []
        for name, magnitudes in chosen.items():
            first = self._counts[name][bracket - 1] if bracket else 0
            last = self._counts[name][bracket] if bracket < len(totals) else magnitudes.size
            between.append(magnitudes[first:last])
        place = rank - 1 - (int(totals[bracket - 1]) if bracket else 0)
        return np.partition(np.concatenate(between), place)[place]


_kept: Bounded[str, SortedMagnitudes] = Bounded(1, lambda _: 0)


def sorted_magnitudes(voice: Voice) -> SortedMagnitudes:
    """Return the sorted magnitudes of a voice, kept for as long as its model lives."""
    return _kept.get_or_make("", lambda: SortedMagnitudes(voice), owner=voice.model)


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Progress = SILENT
) -> dict[str, torch.Tensor]:
    """Return the new weights of the layers that lose any, by parameter name.

    Of weights of equal magnitude the first in memory order become zero.

    Raises:
        InputError: the layers cannot lose so much, or a pattern does not fit one.
    """
    weights = dict(voice.model.named_parameters())
    if _plain(spec):
        cuts = sorted_magnitudes(voice).cuts(spec)
        return {name: _apply(weights[name], cut) for name, cut in cuts.items() if cut.zeros}
    layers = chosen_layers(voice, spec)
    scores = {
        layer.parameter: weights[layer.parameter].detach().float().abs().cpu() for layer in layers
    }
    if spec.scope == "sensitivity":
        scores = weigh(voice, spec, {name: one.square() for name, one in scores.items()}, progress)
    return zero_lowest(voice, spec, layers, scores)


def _plain(spec: PruneSpec) -> bool:
    """Whether the sorted magnitudes alone give the answer."""
    return spec.scope in ("global", "local") and not (spec.protected or spec.floor or spec.pattern)


def sparsity_preview(voice: Voice, spec: PruneSpec) -> Mapping[str, float] | None:
    """Return the share of zeros that `prune` would make, of each part and "overall", 0 to 1.

    It equals what `measure_sparsity` finds after pruning. None where only pruning can tell:
    another method, protected layers, a floor, a pattern, or shares by sensitivity.
    """
    if spec.method != "magnitude" or not _plain(spec):
        return None
    magnitudes = sorted_magnitudes(voice)
    cuts = magnitudes.cuts(spec)
    zeros, weights = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for layer in magnitudes.layers:
        cut = cuts[layer.parameter].zeros if layer.parameter in cuts else 0
        zeros[layer.part] += max(magnitudes.zeros(layer.parameter), cut)
        weights[layer.part] += layer.weights
    shares = {part: zeros[part] / weights[part] for part in PARTS if weights[part]}
    return {"overall": sum(zeros.values()) / max(1, sum(weights.values())), **shares}


def _cut(magnitudes: np.ndarray, zeros: int) -> Cut:
    """The cut that zeroes so many of a layer's sorted magnitudes."""
    if zeros == 0:
        return Cut(threshold=-1.0, zeros=0)
    threshold = magnitudes[zeros - 1]
    at_most = int(np.searchsorted(magnitudes, threshold, side="right"))
    return Cut(float(threshold), zeros, spared=at_most - zeros)


def _global_cuts(
    layers: Mapping[str, np.ndarray], zeros: int, threshold: np.float32 | None
) -> dict[str, Cut]:
    """One threshold for all; ties at it go layer after layer until the number is exact."""
    if threshold is None:
        return {name: Cut(threshold=-1.0, zeros=0) for name in layers}
    below = {name: int(np.searchsorted(m, threshold, side="left")) for name, m in layers.items()}
    ties_left = zeros - sum(below.values())
    just_below = float(np.nextafter(threshold, np.float32(-1.0)))
    cuts = {}
    for name, magnitudes in layers.items():
        ties = int(np.searchsorted(magnitudes, threshold, side="right")) - below[name]
        taken = min(ties, ties_left)
        ties_left -= taken
        # Only one layer's ties are split; after it a threshold just below spares all at no cost.
        if taken:
            cuts[name] = Cut(float(threshold), below[name] + taken, spared=ties - taken)
        else:
            cuts[name] = Cut(just_below, below[name])
    return cuts


def _apply(weight: torch.Tensor, cut: Cut) -> torch.Tensor:
    """A copy of the weight with the cut's zeros."""
    weight = weight.detach()
    pruned = nn.functional.hardshrink(weight, cut.threshold)  # 0 where |w| <= threshold
    if cut.spared:
        ties = (weight.abs() == cut.threshold).flatten().nonzero().flatten()
        kept = ties[ties.numel() - cut.spared :]
        pruned.view(-1)[kept] = weight.reshape(-1)[kept]
    return pruned
