"""Scores to zeros, and the methods that score each weight by itself: magnitude, activation, random.

An amount is shared out among layers, and the weights that score lowest become zero.

Magnitude makes the same choice as `torch.nn.utils.prune.global_unstructured` and `l1_unstructured`
(Han et al. 2015, arXiv:1506.02626). Magnitudes are sorted once a voice: a new amount costs a
look-up of the threshold and one pass that writes zeros. Activation is Wanda (Sun et al. 2023,
arXiv:2306.11695); across layers its squared score, the error that a zero makes in the layer's
output, counts as a share of that output.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.blocks import not_finite
from vits_prune.pruning.calibration import Statistics, calibrate, channel_sensitivity, texts_for
from vits_prune.pruning.layers import (
    Layer,
    LayerMatrix,
    chosen_layers,
    prunable_layers,
    uses_of_weights,
)
from vits_prune.pruning.spec import PruneSpec
from vits_prune.synthesis.speak import Speech, speak
from vits_prune.voices.voice import PARTS, Voice

Scores = Mapping[str, torch.Tensor]
"""Parameter name -> score of each weight, in the weight's shape; the smallest go first."""
TEMPER = 0.25
"""Power of the measured sensitivities. They hold for small errors; at useful sparsities errors are
large and saturate, and the whole power would empty the decoder (joe at 0.8, tuning sentences:
log-mel distance 1.17 with 1, 0.51 with 0.4, 0.46 with 0.2)."""
HEARD = {"text_encoder": 0.5, "decoder": 2.0}
"""What the scores of a part count by sensitivity, of others 1. Wrong latents are still said as
speech, but an error of the decoder is noise: of joe's loss at 0.75 with equal weights (Distill-MOS
-0.41, held-out sentences) the decoder's zeros alone cost 0.41, the flow's 0.22, the text encoder's
0.02, though the log-mel distances are 2.6, 2.2 and 2.5 dB."""
COST_POWER = 0.25
"""Power of the costs that scores are divided by, for the same reason (joe, a third of
the arithmetic left, tuning sentences: Distill-MOS 3.49 with 0, 3.60 with 0.25, 3.48 with 0.5)."""
_SPACING = 512
"""Of the sorted magnitudes, one in so many says where about to cut."""


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Progress = SILENT
) -> dict[str, torch.Tensor]:
    """Return the new weights of the layers that lose any, by parameter name.

    Of weights of equal score the first in memory order become zero. In local scope activation
    takes the same share from each output of a layer, as in the paper.
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
        magnitudes = _magnitudes(voice, self.layers)
        self._sorted = {name: np.sort(one.numpy(), axis=None) for name, one in magnitudes.items()}

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
            counts = {name: round(spec.amount * m.size) for name, m in chosen.items()}
        else:
            counts = _smallest_of_all(
                chosen, round(spec.amount * sum(map(np.size, chosen.values())))
            )
        return {name: _cut(m, counts[name]) for name, m in chosen.items()}


_kept: Bounded[str, SortedMagnitudes] = Bounded(1, lambda _: 0)


def sorted_magnitudes(voice: Voice) -> SortedMagnitudes:
    """Return the sorted magnitudes of a voice, kept for as long as its model lives."""
    return _kept.get_or_make("", lambda: SortedMagnitudes(voice), owner=voice.model)


def sparsity_preview(
    voice: Voice, spec: PruneSpec, costs: Mapping[str, float] | None = None
) -> Mapping[str, float] | None:
    """Return the share of zeros that `prune` would make, of each part and "overall", 0 to 1.

    It equals what `measure_sparsity` finds after pruning. None where only pruning can tell:
    another method, protected layers, a floor, a pattern, shares by sensitivity, or rounding. With
    the costs of a weight of each layer the shares are of weights times costs.
    """
    if spec.bits or not _sorting_suffices(spec):
        return None
    magnitudes = sorted_magnitudes(voice)
    cuts = magnitudes.cuts(spec)
    zeros, weights = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    for layer in magnitudes.layers:
        cut, cost = cuts.get(layer.parameter, Cut()).zeros, costs[layer.parameter] if costs else 1
        zeros[layer.part] += cost * max(magnitudes.zeros(layer.parameter), cut)
        weights[layer.part] += cost * layer.weights
    shares = {part: zeros[part] / weights[part] for part in PARTS if weights[part]}
    return {"overall": sum(zeros.values()) / max(1, sum(weights.values())), **shares}


def _cut(magnitudes: np.ndarray, zeros: int) -> Cut:
    """The cut that zeroes so many of a layer's sorted magnitudes."""
    if zeros == 0:
        return Cut()
    threshold = magnitudes[zeros - 1]
    at_most = int(np.searchsorted(magnitudes, threshold, side="right"))
    return Cut(float(threshold), zeros, spared=at_most - zeros)


def _smallest_of_all(layers: Mapping[str, np.ndarray], count: int) -> dict[str, int]:
    """How many of each layer's sorted magnitudes are among the `count` smallest of all.

    Ties go in the order of the layers.
    """
    if not count:
        return dict.fromkeys(layers, 0)
    # A sample brackets the largest of them: fewer than `count` are smaller than the sample's value
    # at `first`, and at least so many are no larger than that at `last`.
    every = [m[::_SPACING] for m in layers.values()]
    sample = np.concatenate([*every, np.full(1, np.inf, np.float32)])
    first = (count - 1) // _SPACING
    last = min(first + 1 + len(layers), len(sample) - 1)
    sample.partition([first, last])
    bracket = [
        (np.searchsorted(m, sample[first]), np.searchsorted(m, sample[last], side="right"))
        for m in layers.values()
    ]
    between = [m[start:end] for m, (start, end) in zip(layers.values(), bracket, strict=True)]
    place = count - 1 - int(sum(start for start, _ in bracket))
    threshold = np.partition(np.concatenate(between), place)[place]
    below = {name: int(np.searchsorted(m, threshold, side="left")) for name, m in layers.items()}
    left = count - sum(below.values())
    for name, m in layers.items():
        taken = min(left, int(np.searchsorted(m, threshold, side="right")) - below[name])
        below[name] += taken
        left -= taken
    return below


def _apply(weight: torch.Tensor, cut: Cut) -> torch.Tensor:
    """A copy of the weight with the cut's zeros."""
    weight = weight.detach()
    pruned = nn.functional.hardshrink(weight, cut.threshold)  # 0 where |w| <= threshold
    if cut.spared:
        ties = (weight.abs() == cut.threshold).flatten().nonzero().flatten()
        kept = ties[ties.numel() - cut.spared :]
        pruned.view(-1)[kept] = weight.reshape(-1)[kept]
    return pruned


def layer_costs(voice: Voice, spec: PruneSpec) -> dict[str, float] | None:
    """Return the multiply-accumulates of one weight of each layer, per frame of the latents.

    By parameter name, counted on the first sentence of the calibration that the voice can speak.
    None where every weight costs one.
    """
    if spec.cost == PruneSpec.cost:
        return None
    spoken: list[Speech] = []

    def say(copy: Voice) -> None:
        for text in texts_for(voice, spec):
            with contextlib.suppress(InputError):
                spoken.append(speak(copy, text, spec.seed, kernels="dense"))
                return

    uses = uses_of_weights(voice, say)
    if not spoken:
        raise InputError(f"{voice.name} can speak none of the calibration sentences: give others.")
    frames = int(spoken[0].durations.sum())
    layers = prunable_layers(voice, spec.parts)
    return {layer.parameter: max(1, uses.get(layer.name, 0)) / frames for layer in layers}


def zeros_wanted(
    voice: Voice,
    spec: PruneSpec,
    chosen: Sequence[Layer],
    costs: Mapping[str, float] | None = None,
) -> int:
    """Return how many weights the chosen layers lose: the amount of all weights of the parts.

    With the costs of `layer_costs` both are weights times costs.
    """
    layers = prunable_layers(voice, spec.parts)
    cost = {layer.parameter: costs[layer.parameter] if costs else 1 for layer in layers}
    everything = sum(layer.weights * cost[layer.parameter] for layer in layers)
    wanted = round(spec.amount * everything)
    each = ((cost[one.parameter], most_zeros(one.weights, spec.floor)) for one in chosen)
    most = sum(one * count for one, count in each)
    if wanted > most:
        limit = f"unprotected layers can lose above the floor: {most / everything:.3f} is the most"
        raise InputError(
            f"An amount of {spec.amount:g} is more than {limit} here. Protect less, or prune less."
        )
    return wanted


def share_out(
    scores: Mapping[str, np.ndarray],
    zeros: int,
    scope: str,
    floor: float = 0.0,
    costs: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Return how many weights each layer loses: together `zeros`, or less if the floor forbids it.

    The scope "local" takes the same share from each layer, any other one ranks all together by
    scores that must be comparable. Every layer keeps at least the floor's share of its weights.
    With costs of a weight of each layer, `zeros` is the cost of all that go, and weights are ranked
    by their score for a tempered unit of it.
    """
    most = {name: most_zeros(one.size, floor) for name, one in scores.items()}
    if scope == "local":
        total = sum(one.size for one in scores.values())
        shares = {name: zeros * one.size / total for name, one in scores.items()}
        return _rounded(shares, zeros, most)
    found: dict[str, int] = {}
    left, rest = zeros, dict(scores)
    while rest:  # what a layer at its floor cannot lose, the others lose
        counts = _ranked_by_cost(rest, left, costs) if costs else _ranked(rest, left)
        full = {name: most[name] for name in rest if counts[name] > most[name]}
        if not full:
            return found | counts
        found |= full
        left -= round(sum(count * (costs[name] if costs else 1) for name, count in full.items()))
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


def _ranked_by_cost(
    scores: Mapping[str, np.ndarray], budget: int, costs: Mapping[str, float]
) -> dict[str, int]:
    """Return how many of each layer's go before the budget is spent, least score by cost first."""
    each = np.array([costs[name] for name in scores])
    sizes = [one.size for one in scores.values()]
    ratios = np.concatenate(
        [one.ravel() / costs[name] ** COST_POWER for name, one in scores.items()]
    )
    order = np.argsort(ratios, kind="stable")
    layers = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order]
    count = int(np.searchsorted(np.cumsum(each[layers]), budget, side="right"))
    counts = np.bincount(layers[:count], minlength=len(sizes)).tolist()
    return dict(zip(scores, counts, strict=True))


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
    return {
        name: one * HEARD.get(name.partition(".")[0], 1.0) * float(changes[name].sum()) ** TEMPER
        for name, one in found.items()
    }


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
        costs = layer_costs(voice, spec)
        zeros = zeros_wanted(voice, spec, layers, costs)
        counts = share_out(arrays, zeros, spec.scope, spec.floor, costs)
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
