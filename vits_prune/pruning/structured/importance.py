"""How much the channels and blocks of a voice matter, by each of IMPORTANCES."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.calibration import Statistics, channel_sensitivity, collect, texts_for
from vits_prune.pruning.layers import Layer, LayerMatrix, prunable_layers
from vits_prune.pruning.scores import output_errors
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured.couplings import Group, input_dimension
from vits_prune.voices.voice import Voice

RANKING_ROUNDS = 32
"""In which channels are ranked by second order; after each the others replace those that went."""
RANKING_DAMPING = 0.01
"""Added to a covariance's diagonal, as a share of its mean."""
_ENDS = {"conv_post", "out_proj", "conv_2", "convs2", "convs", "res_skip_layers"}
"""Pieces of the names of layers that end a block."""


def measure_importance(
    voice: Voice, spec: PruneSpec, wanted: Sequence[Group], progress: Progress = SILENT
) -> dict[str, np.ndarray]:
    """Return the importance of the members of groups, by group name, float64 [size]."""
    if spec.importance == "weight_norm":
        return {group.name: weight_norm(voice, group) for group in wanted}
    if spec.importance == "activation":
        return activation(voice, spec, wanted, progress)
    heard = 0.4 if spec.importance == "second_order" else 1.0
    texts, part = texts_for(voice, spec), progress.part(0.0, heard)
    found = channel_sensitivity(voice, texts, spec.seed, progress=part)
    scores = by_sensitivity(found, wanted)
    if spec.importance == "sensitivity":
        return scores
    channels = [group for group in wanted if not group.blocks]
    speech = {name: float(change.sum()) for name, change in found.items()}
    return scores | second_order(voice, spec, channels, speech, progress.part(heard, 1.0))


def weight_norm(voice: Voice, group: Group) -> np.ndarray:
    """Return the L2 norm of all that goes with each member of a group, float64 [size].

    Li et al. 2017, arXiv:1608.08710.
    """
    squares = np.zeros(group.size)
    for name, dimension in group.slices(voice.model):
        squares += by_channel(voice.model.get_parameter(name).double().square(), dimension)
    for member, modules in enumerate(group.blocks):
        for module in modules:
            for tensor in voice.model.get_submodule(module).parameters():
                squares[member] += float(tensor.detach().double().square().sum())
    return np.sqrt(squares)


def by_channel(tensor: torch.Tensor, dimension: int) -> np.ndarray:
    """Return the sum over all dimensions but one, float64 [size]."""
    rows = tensor.detach().movedim(dimension, 0).reshape(tensor.shape[dimension], -1)
    return rows.double().sum(1).cpu().numpy()


def by_sensitivity(
    found: Mapping[str, np.ndarray], wanted: Sequence[Group]
) -> dict[str, np.ndarray]:
    """Return importance by `channel_sensitivity`: what is lost without a channel or block."""
    return {group.name: _of_group(found, group, group.writers) for group in wanted}


def _of_group(found: Mapping[str, np.ndarray], group: Group, layers: Sequence[str]) -> np.ndarray:
    """What each block, or each channel through some layers, contributes, float64 [size]."""
    if group.blocks:
        return np.array([_of_block(found, modules) for modules in group.blocks])
    names = (f"{name}.weight" for name in layers)
    return sum((found[name] for name in names if name in found), np.zeros(group.size))


def _of_block(found: Mapping[str, np.ndarray], modules: Sequence[str]) -> float:
    """The sum over the layers through which a block is heard: those that end it."""
    heard = [name for name in found if name.startswith(tuple(f"{module}." for module in modules))]
    last = [name for name in heard if not _ENDS.isdisjoint(name.split("."))]
    return float(sum(found[name].sum() for name in last or heard))


def activation(
    voice: Voice, spec: PruneSpec, wanted: Sequence[Group], progress: Progress = SILENT
) -> dict[str, np.ndarray]:
    """Return the energy that each channel brings into its readers, each block out of its ends.

    Of a channel the sum over its readers of E[x_c^2] ||W_c||^2, the output that is missing where it
    is zero: Wanda's score (Sun et al. 2023, arXiv:2306.11695) summed over a channel. Of a block the
    same summed over all inputs, as if they were independent.
    """
    names = {name for group in wanted for name in group.readers}
    modules = tuple(f"{module}." for group in wanted for block in group.blocks for module in block)
    layers = [
        one for one in prunable_layers(voice) if one.name in names or one.name.startswith(modules)
    ]
    texts = texts_for(voice, spec)
    found = collect(voice, layers, texts, spec.seed, covariances=False, progress=progress)
    energies = {layer.parameter: _energies(voice, layer, one) for layer, one in found}
    return {group.name: _of_group(energies, group, group.readers) for group in wanted}


def _energies(voice: Voice, layer: Layer, statistics: Statistics) -> np.ndarray:
    """What each input channel of a layer brings into its output, float64 [channels]."""
    dimension = input_dimension(voice.model.get_submodule(layer.name))
    return by_channel(output_errors(voice, layer, statistics), dimension)


def second_order(
    voice: Voice,
    spec: PruneSpec,
    wanted: Sequence[Group],
    speech: Mapping[str, float],
    progress: Progress = SILENT,
) -> dict[str, np.ndarray]:
    """Return what a channel's readers lose without it even if the other channels replace it.

    The least squares problem of Optimal Brain Surgeon (Hassibi & Stork 1993) for all weights of a
    channel at once, as in ZipLM (Kurtic et al. 2023, arXiv:2302.04089): the error in the output of
    a layer W is tr W_c ([H^-1]_cc)^-1 W_c^T with H the covariance of its inputs. Errors count as
    shares of a layer's output, times what such a share does to the speech. The channels go in
    RANKING_ROUNDS, the least important first; one that goes later counts at least as much.

    `speech` has, by parameter name, what a relative error of a layer's output does to the speech.
    """
    readers = {name for group in wanted for name in group.readers}
    layers = [layer for layer in prunable_layers(voice) if layer.name in readers]
    texts, held = texts_for(voice, spec), dict[str, Reader]()
    found: dict[str, np.ndarray] = {}
    for layer, statistics in collect(voice, layers, texts, spec.seed, progress=progress):
        held[layer.name] = Reader(voice, layer, statistics, speech.get(layer.parameter, 0.0))
        # A group is ranked as soon as it can be, so that few covariances are held at a time.
        for group in wanted:
            if group.name not in found and all(name in held for name in group.readers):
                found[group.name] = rank([held.pop(name) for name in group.readers], group.size)
    return found


def rank(readers: Sequence[Reader], size: int) -> np.ndarray:
    """Return the importance of channels that go round by round, float64 [size]."""
    scores, left, least = np.zeros(size), np.arange(size), 0.0
    for turn in range(RANKING_ROUNDS):
        count = round(size * (turn + 1) / RANKING_ROUNDS) - (size - len(left))
        if not count:
            continue
        losses = sum((reader.losses() for reader in readers), np.zeros(size))[left]
        order = np.argsort(losses, kind="stable")[:count]
        scores[left[order]] = np.maximum(losses[order], least)
        least = float(scores[left[order]].max())
        for reader in readers if count < len(left) else ():
            reader.remove(left[order])
        left = np.delete(left, order)
    return scores


class Reader:
    """A layer that reads a group's channels, while more and more of them are removed."""

    def __init__(self, voice: Voice, layer: Layer, statistics: Statistics, weight: float) -> None:
        matrix = LayerMatrix(voice.model.get_submodule(layer.name))
        self._fixed: np.ndarray | None = None
        if statistics.covariance is None:  # no channel can replace another: energies
            energies = _energies(voice, layer, statistics)
            self._fixed = weight * energies / max(1e-30, energies.sum())
            return
        covariance = statistics.covariance / max(1, statistics.windows)
        target = matrix.of(matrix.module.weight.detach()).float()
        columns = target.shape[1]
        inputs = covariance[:columns, :columns]
        self._scale = weight / max(1e-30, float((target @ inputs * target).sum()))
        covariance.diagonal().add_(RANKING_DAMPING * inputs.diagonal().mean().clamp(min=1e-12))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
        self._inverse = inverse[:columns, :columns].contiguous()
        self._target, self._taps = target, matrix.channels(target).shape[2]

    def losses(self) -> np.ndarray:
        """Return the cost of removing each channel that is left, float64 [channels]."""
        if self._fixed is not None:
            return self._fixed
        channels, taps = len(self._inverse) // self._taps, self._taps
        grid = self._inverse.reshape(channels, taps, channels, taps)
        blocks = grid.diagonal(dim1=0, dim2=2).permute(2, 0, 1) + 1e-12 * torch.eye(taps)
        mine = self._target.reshape(len(self._target), channels, taps).permute(1, 2, 0)
        return self._scale * (mine * torch.linalg.solve(blocks, mine)).sum((1, 2)).double().numpy()

    def remove(self, gone: np.ndarray) -> None:
        """Remove channels; those that stay replace them."""
        if self._fixed is not None:
            return
        places = torch.from_numpy(gone)[:, None] * self._taps + torch.arange(self._taps)
        places = places.reshape(-1)
        rows = self._inverse[places]
        step = torch.linalg.solve(rows[:, places], rows)
        self._target = self._target - self._target[:, places] @ step
        self._inverse = self._inverse - rows.T @ step
        self._target[:, places] = 0.0
        self._inverse[places, :] = self._inverse[:, places] = 0.0
        self._inverse[places, places] = 1.0
