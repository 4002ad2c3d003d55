"""Second-order pruning: zeros and survivors are found together, so that each layer's output stays as close as it can to the original's.

The layer-wise problem is that of SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774): least squares on what the layer is given, with a
number of zeros. It is solved by ADMM as in ALPS (Meng et al. 2024, arXiv:2406.07831), which unlike one pass of error feedback can take a
choice back, and ends with conjugate gradients for the survivors. Biases take part. Grouped and depthwise convolutions, which have no one
matrix, are pruned as in activation.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from vits_prune.pruning.activation import output_errors
from vits_prune.pruning.calibration import Statistics, Step, portion
from vits_prune.pruning.layers import Layer
from vits_prune.pruning.listening import chosen_layers, listen, zeros_wanted
from vits_prune.pruning.masks import pattern_mask, share_out, smallest
from vits_prune.pruning.matrix import LayerMatrix
from vits_prune.pruning.scored import check_finite, weigh
from vits_prune.pruning.spec import PruneSpec
from vits_prune.voices.voice import Voice

DAMPING = 0.01
"""Added to the covariance's diagonal, as a share of its mean: keeps what few sentences did not show from being trusted."""
ROUNDS, ROUNDS_A_PENALTY = 16, 4
"""Of ADMM, and after how many of them the penalty grows."""
SMALL = 1 << 14
"""Weights of a layer up to which it is given twice the rounds, since they cost nothing."""
FIRST_PENALTY, GROWTH, SLOW_GROWTH = 0.1, 2.0, 1.5
SETTLED, MOVING = 1e-3, 2e-2
"""Share of the kept weights that changed places under one penalty: below the first all is settled, above the second growth is fast."""
_COUNTED = 0.4
"""Share of the work that is done when it is known how many weights each layer loses."""
SAMPLE = 16_384
"""Weights that say where to cut while the choice is not final."""
REFINEMENTS = 6
"""Steps of conjugate gradients for the survivors."""


def prune_weights(
    voice: Voice, spec: PruneSpec, progress: Step | None = None, original: Voice | None = None
) -> dict[str, torch.Tensor]:
    """New weights and biases for the layers that lose any, by parameter name.

    Args:
        voice: who is calibrated; its zeros stay zeros.
        spec: how much, in which scope and pattern.
        progress: told how far it is; it may raise to cancel.
        original: whose answers to the same inputs are aimed at, where `voice` is a step of gradual pruning; None for `voice` itself.

    Raises:
        InputError: the voice can say nothing of the calibration texts, a covariance does not fit, or the layers cannot lose so much.
    """
    tell = progress or (lambda _what, _share: None)
    layers, aim = chosen_layers(voice, spec), original or voice
    counts = (
        None
        if spec.neighbours
        else _counts(voice, aim, spec, layers, portion(progress, 0.0, _COUNTED))
    )
    changed: dict[str, torch.Tensor] = {}
    heard = listen(voice, spec, layers, covariances=True, progress=portion(progress, 0.0, _COUNTED))
    for done, (layer, statistics) in enumerate(heard):
        count = counts[layer.parameter] if counts is not None else None
        if count != 0:
            changed |= _pruned(voice, aim, layer, statistics, count, spec)
        tell(f"pruned {layer.name}", _COUNTED + (1 - _COUNTED) * (done + 1) / len(layers))
    check_finite(voice, changed)
    return changed


def _counts(
    voice: Voice, aim: Voice, spec: PruneSpec, layers: tuple[Layer, ...], progress: Step | None
) -> dict[str, int]:
    """How many weights each layer loses."""
    closed = {layer.parameter: voice.model.get_parameter(layer.parameter) == 0 for layer in layers}
    heard, scores = 0.7 if spec.scope == "sensitivity" else 1.0, {}
    for layer, statistics in listen(
        voice, spec, layers, covariances=True, progress=portion(progress, 0.0, heard)
    ):
        scores[layer.parameter] = output_errors(aim, layer, statistics).masked_fill(
            closed[layer.parameter], 0.0
        )
    if spec.scope != "local":
        scores = weigh(aim, spec, scores, progress=portion(progress, heard, 1.0))
    check_finite(voice, scores)
    scores = {name: one.masked_fill(closed[name], -1.0) for name, one in scores.items()}
    return share_out(
        {name: one.numpy() for name, one in scores.items()},
        zeros_wanted(voice, spec, layers),
        spec.scope,
        spec.floor,
    )


def _pruned(
    voice: Voice,
    aim: Voice,
    layer: Layer,
    statistics: Statistics,
    count: int | None,
    spec: PruneSpec,
) -> dict[str, torch.Tensor]:
    """A layer's new weight, and its bias where it has one."""
    matrix, there = statistics.matrix, voice.model.get_parameter(layer.parameter).detach()
    module = aim.model.get_submodule(layer.name)
    if statistics.covariance is None:
        scores = output_errors(aim, layer, statistics).masked_fill(there == 0, -1.0)
        patterned = count is None
        mask = (
            matrix.back(pattern_mask(matrix.of(scores), matrix, spec.neighbours, layer.name))
            if patterned
            else smallest(scores, count)
        )
        return {layer.parameter: module.weight.detach().masked_fill(mask | (there == 0), 0.0)}
    target = matrix.of(module.weight.detach()).float()
    covariance = _damped(statistics.covariance, max(1, statistics.windows))
    if module.bias is not None:
        bias = module.bias.detach().float()
        target = torch.cat(
            [target, bias.repeat_interleave(matrix.shape[0] // len(bias))[:, None]], dim=1
        )
    closed = matrix.of(there) == 0
    problem = LayerProblem(target, covariance, closed, matrix, count, spec.neighbours, layer.name)
    found = problem.solve()
    new = {layer.parameter: matrix.back(found[:, : matrix.shape[1]])}
    if module.bias is not None:  # a transposed convolution's phases share theirs
        new[f"{layer.name}.bias"] = found[:, -1].reshape(len(bias), -1).mean(1).contiguous()
    return new


def _damped(covariance: torch.Tensor, windows: int = 1) -> torch.Tensor:
    """The mean over windows, with a little of its mean energy on the diagonal."""
    damped = covariance / windows
    damped.diagonal().add_(DAMPING * damped.diagonal().mean().clamp(min=1e-12))
    return damped


class LayerProblem:
    """Minimise tr (W - T) H (W - T)ᵀ over matrices W with a number of zeros."""

    def __init__(
        self,
        target: torch.Tensor,
        covariance: torch.Tensor,
        closed: torch.Tensor,
        matrix: LayerMatrix,
        count: int | None,
        neighbours: tuple[int, int] | None = None,
        name: str = "the layer",
    ) -> None:
        """Take the problem.

        Args:
            target: T, [rows, columns], with one more column for the bias where there is one; that one is never zeroed.
            covariance: H, positive definite, as wide as T.
            closed: which weights are zero already and stay so, bool [rows, columns].
            matrix: of the layer, for patterns.
            count: how many weights are to be zero, None with a pattern; where more are closed, all of those.
            neighbours: the pattern.
            name: of the layer, for messages.
        """
        # In units in which every input has energy 1: then a weight's size says what it contributes.
        self._unit = covariance.diagonal().rsqrt()
        self._covariance = (covariance * self._unit[:, None]).mul_(self._unit[None])
        self._target = target / self._unit[None]
        self._any_closed = bool(closed.any())
        self._closed, self._matrix, self._count, self._neighbours, self._name = (
            closed,
            matrix,
            count,
            neighbours,
            name,
        )

    def solve(self) -> torch.Tensor:
        """W, as wide as the target."""
        kept = self._choose()
        return self._refined(kept) * kept * self._unit[None]

    def _choose(self) -> torch.Tensor:
        """Which weights stay, by ADMM: 1 where they do and 0 elsewhere, as wide as the target.

        Products with such masks, not torch.where: that is slower than a triangular solve.
        """
        aim, penalty = self._target @ self._covariance, FIRST_PENALTY
        factor, proposed = self._factor(penalty), self._target
        kept = before = self._mask(proposed, exactly=False)
        dual, pull = 0.0, proposed * kept
        longer = 2 if proposed.numel() <= SMALL else 1
        for turn in range(1, longer * ROUNDS + 1):
            half = torch.linalg.solve_triangular(
                factor.T, torch.add(aim, pull, alpha=penalty), upper=True, left=False
            )
            proposed = torch.linalg.solve_triangular(factor, half, upper=False, left=False).add_(
                dual
            )
            kept = self._mask(proposed, exactly=False)
            sparse = proposed * kept
            dual = proposed - sparse  # scaled by the penalty
            if turn % (longer * ROUNDS_A_PENALTY) == 0 and turn < longer * ROUNDS:
                moved = float((kept != before).sum()) / max(1, int(kept.sum()))
                if moved < SETTLED:
                    break
                growth = GROWTH if moved > MOVING else SLOW_GROWTH
                before, penalty, dual = kept, penalty * growth, dual / growth
                factor = self._factor(penalty)
            pull = sparse - dual
        kept = self._mask(proposed)
        self._start = proposed * kept
        return kept

    def _factor(self, penalty: float) -> torch.Tensor:
        """Cholesky factor of the covariance with the penalty on its diagonal."""
        with_penalty = self._covariance.clone()
        with_penalty.diagonal().add_(penalty)
        return torch.linalg.cholesky(with_penalty)

    def _mask(self, weights: torch.Tensor, exactly: bool = True) -> torch.Tensor:
        """1 for those that stay if the smallest go, else 0; while the choice is not final a sample of them says where to cut."""
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

    def _refined(self, kept: torch.Tensor) -> torch.Tensor:
        """Least squares for the survivors alone: conjugate gradients in each row."""
        found = self._start
        residual = ((self._target - found) @ self._covariance).mul_(kept)
        direction, size = residual.clone(), residual.square().sum(1, keepdim=True)
        for _ in range(REFINEMENTS):
            ahead = (direction @ self._covariance).mul_(kept)
            step = size / (direction * ahead).sum(1, keepdim=True).clamp(min=1e-30)
            found = found + step * direction
            residual -= step * ahead
            new = residual.square().sum(1, keepdim=True)
            direction, size = residual + new / size.clamp(min=1e-30) * direction, new
        return found if math.isfinite(float(found.sum())) else self._start
