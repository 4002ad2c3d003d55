"""L1 unstructured pruning: the weights smallest in absolute value go first, globally or layer by layer.

The same choice as `torch.nn.utils.prune.global_unstructured` and `l1_unstructured` (Han et al. 2015, arXiv:1506.02626) by another road:
magnitudes are sorted once a voice, so a new amount costs a look-up of the threshold and one pass that writes zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vits_prune.caches import Bounded
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import PARTS, Voice

Step = Callable[[str, float], None]
_GRID, _GRID_STEP = 2_000, 64
"""Samples taken of each layer for the grid, and how many of all the samples lie between two of its values."""


@dataclass(frozen=True)
class Cut:
    """Where one layer is cut: all magnitudes below the threshold are zeroed, and of those equal to it the first few."""

    threshold: float
    """Largest magnitude that is zeroed; negative where none is."""
    zeros: int
    """How many weights of the layer are zeroed."""
    spared: int = 0
    """How many weights of exactly the threshold's magnitude stay, the last ones in memory order."""


class SortedMagnitudes:
    """The absolute weights of every prunable layer of a voice, each layer sorted ascending. Read-only after it is made."""

    def __init__(self, voice: Voice) -> None:
        self.layers: tuple[Layer, ...] = prunable_layers(voice)
        parameters = dict(voice.model.named_parameters())
        self._sorted: dict[str, np.ndarray] = {}
        for layer in self.layers:
            magnitudes = parameters[layer.parameter].detach().abs().float().flatten().cpu().numpy()
            magnitudes.sort()
            self._sorted[layer.parameter] = magnitudes
        # How many weights of each layer lie at or below each of about 2,000 values spread over all: brackets any global threshold at once.
        self._grid = np.unique(
            np.concatenate([m[:: max(1, m.size // _GRID)] for m in self._sorted.values()])
        )[::_GRID_STEP]
        self._counts = {
            name: np.searchsorted(m, self._grid, side="right") for name, m in self._sorted.items()
        }

    def cuts(self, spec: PruneSpec) -> dict[str, Cut]:
        """Parameter name -> Cut for every layer of the chosen parts. Exactly round(amount x weights) are cut, ties included."""
        chosen = {
            layer.parameter: self._sorted[layer.parameter]
            for layer in self.layers
            if layer.part in spec.parts
        }
        if spec.scope == "local":
            return {
                name: _cut(magnitudes, round(spec.amount * magnitudes.size))
                for name, magnitudes in chosen.items()
            }
        zeros = round(spec.amount * sum(m.size for m in chosen.values()))
        return _global_cuts(chosen, zeros, self._threshold(chosen, zeros) if zeros else None)

    def _threshold(self, chosen: Mapping[str, np.ndarray], rank: int) -> np.float32:
        """The rank-th smallest (from 1) of the chosen layers' magnitudes together: found between two values of the grid."""
        totals = np.sum([self._counts[name] for name in chosen], axis=0)
        bracket = int(
            np.searchsorted(totals, rank)
        )  # the first grid value with enough weights at or below it
        between = []
        for name, magnitudes in chosen.items():
            first = self._counts[name][bracket - 1] if bracket else 0
            last = self._counts[name][bracket] if bracket < len(totals) else magnitudes.size
            between.append(magnitudes[first:last])
        place = rank - 1 - (int(totals[bracket - 1]) if bracket else 0)
        return np.partition(np.concatenate(between), place)[place]


_kept: Bounded[str, SortedMagnitudes] = Bounded(1, lambda _: 0)
"""Of every voice, as long as its model lives."""


def sorted_magnitudes(voice: Voice) -> SortedMagnitudes:
    """The sorted magnitudes of a voice, made at the first call and kept for as long as the voice's model lives."""
    return _kept.get_or_make("", lambda: SortedMagnitudes(voice), owner=voice.model)


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Step | None = None
) -> dict[str, torch.Tensor]:
    """New weights for the layers that lose any, by parameter name.

    Among weights of equal magnitude the first in memory order are zeroed; torch leaves that choice to the inside of its `topk`.

    Raises:
        InputError: the layers cannot lose so much, or a pattern does not fit one.
    """
    if not _plain(spec):
        return _with_conditions(voice, spec, progress)
    parameters = dict(voice.model.named_parameters())
    cuts = sorted_magnitudes(voice).cuts(spec)
    return {name: _apply(parameters[name], cut) for name, cut in cuts.items() if cut.zeros}


def _plain(spec: PruneSpec) -> bool:
    """Whether the sorted magnitudes alone give the answer."""
    return spec.scope in ("global", "local") and not (spec.protected or spec.floor or spec.pattern)


def _with_conditions(
    voice: Voice, spec: PruneSpec, progress: Step | None
) -> dict[str, torch.Tensor]:
    """Protected layers, a floor, a pattern, or shares by sensitivity: by scores, as the other methods."""
    from vits_prune.pruning.listening import chosen_layers
    from vits_prune.pruning.scored import weigh, zero_lowest

    layers = chosen_layers(voice, spec)
    scores = {
        layer.parameter: voice.model.get_parameter(layer.parameter).detach().float().abs().cpu()
        for layer in layers
    }
    if spec.scope == "sensitivity":
        scores = weigh(
            voice, spec, {name: one.square() for name, one in scores.items()}, progress=progress
        )
    return zero_lowest(voice, spec, layers, scores)


def sparsity_preview(voice: Voice, spec: PruneSpec) -> Mapping[str, float] | None:
    """What `prune` would make of a voice, from the sorted magnitudes alone: part -> share of zeros, and "overall" (0 to 1).

    Counts the zeros that the voice has already, so it equals what `measure_sparsity` finds after pruning.
    None where only pruning itself can tell: another method, protected layers, a floor, a pattern, or shares by sensitivity.
    """
    if spec.method != "magnitude" or not _plain(spec):
        return None
    magnitudes = sorted_magnitudes(voice)
    cuts = magnitudes.cuts(spec)
    zeros, weights = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for layer in magnitudes.layers:
        there = int(np.searchsorted(magnitudes._sorted[layer.parameter], 0.0, side="right"))
        zeros[layer.part] += max(
            there, cuts[layer.parameter].zeros if layer.parameter in cuts else 0
        )
        weights[layer.part] += layer.weights
    shares = {part: zeros[part] / weights[part] for part in PARTS if weights[part]}
    return {"overall": sum(zeros.values()) / max(1, sum(weights.values())), **shares}


def _cut(magnitudes: np.ndarray, zeros: int) -> Cut:
    """The cut that zeroes the given number of a layer's sorted magnitudes."""
    if zeros == 0:
        return Cut(threshold=-1.0, zeros=0)
    threshold = magnitudes[zeros - 1]
    return Cut(
        float(threshold),
        zeros,
        spared=int(np.searchsorted(magnitudes, threshold, side="right")) - zeros,
    )


def _global_cuts(
    layers: Mapping[str, np.ndarray], zeros: int, threshold: np.float32 | None
) -> dict[str, Cut]:
    """One threshold for all layers; ties at it are zeroed layer after layer until the number is exact."""
    if threshold is None:
        return {name: Cut(threshold=-1.0, zeros=0) for name in layers}
    below = {name: int(np.searchsorted(m, threshold, side="left")) for name, m in layers.items()}
    ties_left = zeros - sum(below.values())
    just_below = np.nextafter(threshold, np.float32(-1.0))
    cuts = {}
    for name, magnitudes in layers.items():
        ties = int(np.searchsorted(magnitudes, threshold, side="right")) - below[name]
        taken = min(ties, ties_left)
        ties_left -= taken
        # Only one layer's ties are split; in the layers after it a threshold just below spares them all at no cost.
        cuts[name] = (
            Cut(float(threshold), below[name] + taken, spared=ties - taken)
            if taken
            else Cut(float(just_below), below[name])
        )
    return cuts


def _apply(weight: torch.Tensor, cut: Cut) -> torch.Tensor:
    """A copy of the weight with the cut's zeros."""
    pruned = nn.functional.hardshrink(
        weight.detach(), cut.threshold
    )  # 0 where |w| <= threshold, in one pass
    if cut.spared:
        ties = (weight.detach().abs() == cut.threshold).flatten().nonzero().flatten()
        kept = ties[ties.numel() - cut.spared :]
        pruned.view(-1)[kept] = weight.detach().reshape(-1)[kept]
    return pruned
