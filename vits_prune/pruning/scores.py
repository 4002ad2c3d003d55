"""Methods that score each weight by itself and zero the lowest: magnitude, activation and random.

Magnitude makes the same choice as `torch.nn.utils.prune.global_unstructured` and `l1_unstructured`
(Han et al. 2015, arXiv:1506.02626). Magnitudes are sorted once a voice: a new amount costs a
look-up of the threshold and one pass that writes zeros. Activation is Wanda (Sun et al. 2023,
arXiv:2306.11695); across layers its squared score, the error that a zero makes in the layer's
output, counts as a share of that output.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vits_prune.caches import Bounded
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.calibration import Statistics, calibrate
from vits_prune.pruning.layers import Layer, chosen_layers, prunable_layers
from vits_prune.pruning.masks import weigh, zero_lowest
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import PARTS, Voice

_SAMPLES, _SPACING = 2_000, 64
"""Samples taken of each layer for the grid, and how many samples lie between two of its values."""


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Progress = SILENT
) -> dict[str, torch.Tensor]:
    """Return the new weights of the layers that lose any, by parameter name.

    Of weights of equal score the first in memory order become zero. In local scope activation
    takes the same share from each output of a layer, as in the paper.

    Raises:
        InputError: the layers cannot lose so much, a pattern does not fit one, or the voice can say
            none of the calibration texts.
    """
    if _sorting_suffices(spec):
        weights, cuts = dict(voice.model.named_parameters()), sorted_magnitudes(voice).cuts(spec)
        return {name: _apply(weights[name], cut) for name, cut in cuts.items() if cut.zeros}
    layers, activation = chosen_layers(voice, spec), spec.method == "activation"
    heard = (0.5 if spec.scope == "sensitivity" else 1.0) if activation else 0.0
    if activation:
        part = progress.part(0.0, heard)
        found = calibrate(voice, spec, layers, covariances=False, progress=part)
        scores = {layer.parameter: output_errors(voice, layer, one) for layer, one in found}
    elif spec.method == "random":
        scores = {layer.parameter: _drawn(layer, spec.seed) for layer in layers}
    else:
        scores = _magnitudes(voice, layers)
        if spec.scope == "sensitivity":
            scores = {name: one.square() for name, one in scores.items()}
    if activation or spec.scope == "sensitivity":
        scores = weigh(voice, spec, scores, progress.part(heard, 1.0))
    return zero_lowest(voice, spec, layers, scores, by_row=activation)


def output_errors(voice: Voice, layer: Layer, statistics: Statistics) -> torch.Tensor:
    """Return the mean squared error that a zero in each place of a weight makes in the output."""
    weight, matrix = voice.model.get_parameter(layer.parameter).detach().float(), statistics.matrix
    energy = statistics.energy / max(1, statistics.windows)
    if matrix.dense:
        return matrix.back(matrix.of(weight).square() * energy[: matrix.shape[1]])
    if isinstance(matrix.module, nn.ConvTranspose1d):
        return weight.square() * energy.repeat(matrix.module.groups)[:, None, None]
    return weight.square() * energy[None, :, None]


def _drawn(layer: Layer, seed: int) -> torch.Tensor:
    random = np.random.Generator(np.random.Philox([seed, zlib.crc32(layer.parameter.encode())]))
    return torch.from_numpy(random.random(layer.shape, dtype=np.float32))


def _magnitudes(voice: Voice, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
    weights = {one.parameter: voice.model.get_parameter(one.parameter) for one in layers}
    return {name: one.detach().float().abs().cpu() for name, one in weights.items()}


def _sorting_suffices(spec: PruneSpec) -> bool:
    more = spec.scope == "sensitivity" or spec.protected or spec.floor or spec.pattern
    return spec.method == "magnitude" and not more


@dataclass(frozen=True)
class Cut:
    """Where one layer is cut: smaller magnitudes become zero, and the first of equal ones."""

    threshold: float = -1.0
    """Largest magnitude that becomes zero; negative where none does."""
    zeros: int = 0
    """How many weights of the layer become zero."""
    spared: int = 0
    """How many weights of exactly the threshold stay, the last ones in memory order."""


class SortedMagnitudes:
    """The absolute weights of every prunable layer of a voice, each sorted. Read-only."""

    def __init__(self, voice: Voice) -> None:
        self.layers = prunable_layers(voice)
        self._sorted = {
            name: np.sort(one.numpy(), axis=None)
            for name, one in _magnitudes(voice, self.layers).items()
        }
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
        mine = [layer.parameter for layer in self.layers if layer.part in spec.parts]
        chosen = {name: self._sorted[name] for name in mine}
        if spec.scope == "local":
            return {name: _cut(m, round(spec.amount * m.size)) for name, m in chosen.items()}
        zeros = round(spec.amount * sum(m.size for m in chosen.values()))
        if not zeros:
            return dict.fromkeys(chosen, Cut())
        return _global_cuts(chosen, zeros, self._threshold(chosen, zeros))

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


def sparsity_preview(voice: Voice, spec: PruneSpec) -> Mapping[str, float] | None:
    """Return the share of zeros that `prune` would make, of each part and "overall", 0 to 1.

    It equals what `measure_sparsity` finds after pruning. None where only pruning can tell:
    another method, protected layers, a floor, a pattern, or shares by sensitivity.
    """
    if not _sorting_suffices(spec):
        return None
    magnitudes = sorted_magnitudes(voice)
    cuts = magnitudes.cuts(spec)
    zeros, weights = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
    for layer in magnitudes.layers:
        cut = cuts.get(layer.parameter, Cut()).zeros
        zeros[layer.part] += max(magnitudes.zeros(layer.parameter), cut)
        weights[layer.part] += layer.weights
    shares = {part: zeros[part] / weights[part] for part in PARTS if weights[part]}
    return {"overall": sum(zeros.values()) / max(1, sum(weights.values())), **shares}


def _cut(magnitudes: np.ndarray, zeros: int) -> Cut:
    """The cut that zeroes so many of a layer's sorted magnitudes."""
    if zeros == 0:
        return Cut()
    threshold = magnitudes[zeros - 1]
    at_most = int(np.searchsorted(magnitudes, threshold, side="right"))
    return Cut(float(threshold), zeros, spared=at_most - zeros)


def _global_cuts(
    layers: Mapping[str, np.ndarray], zeros: int, threshold: np.float32
) -> dict[str, Cut]:
    """One threshold for all; ties at it go layer after layer until the number is exact."""
    below = {name: int(np.searchsorted(m, threshold, side="left")) for name, m in layers.items()}
    ties_left = zeros - sum(below.values())
    just_below = float(np.nextafter(threshold, np.float32(-1.0)))
    cuts = {}
    for name, magnitudes in layers.items():
        ties = int(np.searchsorted(magnitudes, threshold, side="right")) - below[name]
        taken = min(ties, ties_left)
        ties_left -= taken
        # Only one layer's ties are split; after it a threshold just below spares all at no cost.
        spared, most = (ties - taken, float(threshold)) if taken else (0, just_below)
        cuts[name] = Cut(most, below[name] + taken, spared)
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
