"""Second-order pruning: each layer's output stays as close as possible to the original's.

The problem of a layer is that of SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774): least
squares on its inputs, with a number of zeros. It is solved by ADMM as in ALPS (Meng et al. 2024,
arXiv:2406.07831), which unlike one pass of error feedback can take a choice back, and ends with
conjugate gradients for the survivors. With bits the survivors then take places on a grid, by
coordinate descent (rounding.py). Biases take part, unrounded. Grouped and depthwise convolutions,
which have no one matrix, are pruned as by activation (scores.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.calibration import Statistics, calibrate
from vits_prune.pruning.layers import Layer, LayerMatrix, chosen_layers
from vits_prune.pruning.rounding import best_scales, bits_of, descend, largest_number, nearest
from vits_prune.pruning.scores import (
    check_finite,
    layer_costs,
    lowest,
    output_errors,
    pattern_mask,
    share_out,
    smallest,
    weigh,
    zeros_wanted,
)
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice

COVARIANCE_DAMPING = 0.01
"""Added to the covariance's diagonal, as a share of its mean: what few sentences did not show is
not to be trusted."""
ADMM_ROUNDS, ROUNDS_A_PENALTY = 16, 4
"""Of ADMM, and after how many of them the penalty grows."""
SMALL = 1 << 14
"""Weights of a layer up to which it has twice the rounds, since they cost nothing."""
FIRST_PENALTY, GROWTH, SLOW_GROWTH = 0.1, 2.0, 1.5
SETTLED, MOVING = 1e-3, 2e-2
"""Share of the kept weights that changed places under one penalty: below the first the choice is
final, above the second the penalty grows fast."""
SAMPLE = 16_384
"""Weights that say where to cut while the choice is not final."""
REFINEMENTS = 6
"""Steps of conjugate gradients for the survivors."""
_COUNTED = 0.4
"""Share of the work that is done when it is known how many weights each layer loses."""


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Progress = SILENT, original: Voice | None = None
) -> dict[str, torch.Tensor]:
    """Return the new weights and biases of the layers that lose any, by parameter name.

    Zeros of the voice stay zeros. In gradual pruning the aim is what the original would answer to
    the same inputs.
    """
    layers, aim = chosen_layers(voice, spec), original or voice
    counting = progress.part(0, _COUNTED)
    counts = {} if spec.neighbours else _counts(voice, aim, spec, layers, counting)
    changed: dict[str, torch.Tensor] = {}
    found = calibrate(voice, spec, layers, covariances=True, progress=counting)
    for done, (layer, statistics) in enumerate(found):
        count = counts.get(layer.parameter, 0)
        if count or spec.neighbours or spec.bits:
            changed |= _pruned(voice, aim, layer, statistics, count, spec)
        share = (done + 1) / len(layers)
        progress.report(f"pruned {layer.name}", _COUNTED + (1 - _COUNTED) * share)
    check_finite(voice, changed)
    return changed


def _counts(
    voice: Voice, aim: Voice, spec: PruneSpec, layers: Sequence[Layer], progress: Progress
) -> dict[str, int]:
    """How many weights each layer loses."""
    closed = {one.parameter: voice.model.get_parameter(one.parameter) == 0 for one in layers}
    heard = 0.7 if spec.scope == "sensitivity" else 1.0
    found = calibrate(voice, spec, layers, covariances=True, progress=progress.part(0.0, heard))
    scores = {
        layer.parameter: output_errors(aim, layer, one).masked_fill(closed[layer.parameter], 0.0)
        for layer, one in found
    }
    if spec.scope != "local":
        scores = weigh(aim, spec, scores, progress.part(heard, 1.0))
    check_finite(voice, scores)
    arrays = {name: one.masked_fill(closed[name], -1.0).numpy() for name, one in scores.items()}
    costs = layer_costs(aim, spec)
    zeros = zeros_wanted(voice, spec, layers, costs)
    return share_out(arrays, zeros, spec.scope, spec.floor, costs)


def _pruned(
    voice: Voice,
    aim: Voice,
    layer: Layer,
    statistics: Statistics,
    count: int,
    spec: PruneSpec,
) -> dict[str, torch.Tensor]:
    """A layer's new weight, and its bias where it has one."""
    closed = voice.model.get_parameter(layer.parameter).detach() == 0
    matrix = LayerMatrix(aim.model.get_submodule(layer.name))
    if statistics.covariance is None:
        scores = output_errors(aim, layer, statistics).masked_fill(closed, -1.0)
        mask = lowest(spec, scores, count, matrix, layer.name)
        weight = matrix.module.weight.detach()
        weight = weight.masked_fill(mask | closed, 0.0)
        return {layer.parameter: nearest(weight, matrix.module, bits_of(layer, spec))}
    covariance = damped(statistics.covariance, max(1, statistics.windows))
    target, shut, name = matrix.with_bias(), matrix.of(closed), layer.name
    pattern, bits = spec.neighbours, bits_of(layer, spec)
    problem = LayerProblem(target, covariance, shut, matrix, count, pattern, name, bits)
    return {f"{name}.{kind}": new for kind, new in matrix.split(problem.solve()).items()}


def damped(covariance: torch.Tensor, windows: int = 1) -> torch.Tensor:
    """Return the mean over windows, with a little of its mean energy added on the diagonal."""
    found = covariance / windows
    found.diagonal().add_(COVARIANCE_DAMPING * found.diagonal().mean().clamp(min=1e-12))
    return found


class LayerProblem:
    """Minimise tr (W - T) H (W - T)ᵀ over matrices W with a number of zeros.

    Args:
        target: T, [rows, columns], with one more column for a bias, which is never zeroed.
        covariance: H, positive definite, as wide as T.
        closed: which weights are zero already and stay so, bool [rows, columns].
        matrix, neighbours, name: of the layer and the pattern.
        count: how many weights become zero, for a pattern any; if more are closed, all of those.
        bits: of each weight that stays, on a grid of its output channel; 0 for no grid.
    """

    def __init__(
        self,
        target: torch.Tensor,
        covariance: torch.Tensor,
        closed: torch.Tensor,
        matrix: LayerMatrix,
        count: int,
        neighbours: tuple[int, int] | None = None,
        name: str = "the layer",
        bits: int = 0,
    ) -> None:
        # In units in which every input has energy 1, a weight's size says what it contributes.
        self._unit = covariance.diagonal().rsqrt()
        self._covariance = (covariance * self._unit[:, None]).mul_(self._unit[None])
        self._target = target / self._unit[None]
        self._closed, self._any_closed = closed, bool(closed.any())
        self._matrix, self._count, self._neighbours = matrix, count, neighbours
        self._name, self._bits = name, bits

    def solve(self) -> torch.Tensor:
        """Return W, as wide as the target."""
        kept, start = self._choose()
        found = self._refined(kept, start) * kept
        return self._rounded(found, kept) if self._bits else found * self._unit[None]

    def _choose(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Which weights stay, by ADMM, as a mask of 1 and 0; and the weights that it ends with."""
        # Products with such masks: torch.where is slower than a triangular solve.
        aim, penalty = self._target @ self._covariance, FIRST_PENALTY
        factor, proposed = self._factor(penalty), self._target
        kept = before = self._mask(proposed, exactly=False)
        dual, pull = 0.0, proposed * kept
        longer = 2 if proposed.numel() <= SMALL else 1
        for turn in range(1, longer * ADMM_ROUNDS + 1):
            half = torch.linalg.solve_triangular(
                factor.T, torch.add(aim, pull, alpha=penalty), upper=True, left=False
            )
            proposed = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
            proposed.add_(dual)
            kept = self._mask(proposed, exactly=False)
            sparse = proposed * kept
            dual = proposed - sparse  # scaled by the penalty
            if turn % (longer * ROUNDS_A_PENALTY) == 0 and turn < longer * ADMM_ROUNDS:
                moved = float((kept != before).sum()) / max(1, int(kept.sum()))
                if moved < SETTLED:
                    break
                growth = GROWTH if moved > MOVING else SLOW_GROWTH
                before, penalty, dual = kept, penalty * growth, dual / growth
                factor = self._factor(penalty)
            pull = sparse - dual
        kept = self._mask(proposed)
        return kept, proposed * kept

    def _factor(self, penalty: float) -> torch.Tensor:
        """Cholesky factor of the covariance with the penalty on its diagonal."""
        with_penalty = self._covariance.clone()
        with_penalty.diagonal().add_(penalty)
        return torch.linalg.cholesky(with_penalty)

    def _mask(self, weights: torch.Tensor, exactly: bool = True) -> torch.Tensor:
        """1 for those that stay, else 0; a sample says where to cut unless it must be exact."""
        columns = self._closed.shape[1]
        scores = weights[:, :columns].abs()
        if self._any_closed:
            scores.masked_fill_(self._closed, -1.0)
        kept = torch.ones(weights.shape)
        if self._neighbours:
            gone = pattern_mask(scores, self._matrix, self._neighbours, self._name)
        elif exactly or scores.numel() < 8 * SAMPLE:
            gone = smallest(scores, self._count)
        else:
            in_memory = scores if scores.is_contiguous() else scores.T
            sample = in_memory.reshape(-1)[:: scores.numel() // SAMPLE | 1].numpy()
            place = min(len(sample) - 1, len(sample) * self._count // scores.numel())
            gone = scores <= float(np.partition(sample, place)[place])
        kept[:, :columns] -= (gone | self._closed).float() if self._any_closed else gone.float()
        return kept

    def _refined(self, kept: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Least squares for the survivors alone: conjugate gradients in each row."""
        found = start
        residual = ((self._target - found) @ self._covariance).mul_(kept)
        direction, size = residual.clone(), residual.square().sum(1, keepdim=True)
        for _ in range(REFINEMENTS):
            ahead = (direction @ self._covariance).mul_(kept)
            step = size / (direction * ahead).sum(1, keepdim=True).clamp(min=1e-30)
            found = found + step * direction
            residual -= step * ahead
            new = residual.square().sum(1, keepdim=True)
            direction, size = residual + new / size.clamp(min=1e-30) * direction, new
        return found if math.isfinite(float(found.sum())) else start

    def _rounded(self, found: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The survivors on their grid, each where the output errs least given the others."""
        top, columns = largest_number(self._bits), self._closed.shape[1]
        kept, unit = kept[:, :columns], self._unit[None, :columns]
        phases = self._matrix.phases
        together = (found[:, :columns] * unit).reshape(-1, phases * columns)
        energies = self._unit[:columns].square().reciprocal().repeat(phases)
        scales = best_scales(together, top, energies).repeat_interleave(phases, dim=0)
        numbers, found = descend(found, self._target, self._covariance, kept, scales / unit, top)
        return torch.cat([numbers * scales, found[:, columns:] * self._unit[None, columns:]], 1)
