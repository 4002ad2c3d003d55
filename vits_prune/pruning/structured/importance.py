"""How much the channels and blocks of a voice matter: what structured pruning takes out first, and by which of IMPORTANCES it judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from vits_prune.pruning.activation import output_errors
from vits_prune.pruning.calibration import Statistics, Step, collect, portion
from vits_prune.pruning.layers import Layer, prunable_layers
from vits_prune.pruning.listening import texts_for
from vits_prune.pruning.matrix import LayerMatrix
from vits_prune.pruning.sensitivity import channel_sensitivity
from vits_prune.pruning.spec import PruneSpec
from vits_prune.pruning.structured.couplings import Group, input_dimension
from vits_prune.pruning.structured.cut import weight_norm
from vits_prune.voices.voice import Voice

Importance = Callable[[Voice, Group], np.ndarray]
"""(voice, group) -> how much each member of the group matters, float64 [size]."""

ROUNDS = 32
"""In which the channels of a group are ranked by second order: after each the others stand in for those that went."""
DAMPING = 0.01
"""Added to a covariance's diagonal, as a share of its mean."""
_ENDS = ("conv_post", "out_proj", "conv_2", "convs2", "convs", "res_skip_layers")
"""Pieces of the names of layers that end a block."""


def measure_importance(
    voice: Voice, spec: PruneSpec, wanted: Sequence[Group], progress: Step | None = None
) -> dict[str, np.ndarray]:
    """The importance of the members of groups, by the spec's criterion: group name -> float64 [size].

    Args:
        voice: who is cut.
        spec: its criterion, and the texts and seed of calibration.
        wanted: the groups that lose members.
        progress: told how far it is; it may raise to cancel.

    Raises:
        InputError: the voice can say nothing of the texts.
    """
    if spec.importance == "weight_norm":
        return {group.name: weight_norm(voice, group) for group in wanted}
    if spec.importance == "activation":
        return activation(voice, spec, wanted, progress)
    heard = 0.4 if spec.importance == "second_order" else 1.0
    found = channel_sensitivity(
        voice, texts_for(voice, spec), spec.seed, progress=portion(progress, 0.0, heard)
    )
    by_sensitivity = importance(found)
    if spec.importance == "sensitivity":
        return {group.name: by_sensitivity(voice, group) for group in wanted}
    blocks = {group.name: by_sensitivity(voice, group) for group in wanted if group.blocks}
    speech = {name: float(change.sum()) for name, change in found.items()}
    return blocks | second_order(
        voice,
        spec,
        [group for group in wanted if not group.blocks],
        speech,
        portion(progress, heard, 1.0),
    )


def importance(found: Mapping[str, np.ndarray]) -> Importance:
    """Importance from `channel_sensitivity`: of a channel what is lost where nothing writes it, of a block where nothing of it is heard."""

    def of(voice: Voice, group: Group) -> np.ndarray:
        if group.blocks:
            return np.array([_of_block(found, modules) for modules in group.blocks])
        return sum(found[f"{name}.weight"] for name in group.writers if f"{name}.weight" in found)

    return of


def _of_block(found: Mapping[str, np.ndarray], modules: Sequence[str]) -> float:
    """The sum over the layers through which a block is heard: those that end it."""
    heard = [name for name in found if name.startswith(tuple(f"{module}." for module in modules))]
    last = [name for name in heard if any(end in name.split(".") for end in _ENDS)]
    return float(sum(found[name].sum() for name in last or heard))


def activation(
    voice: Voice, spec: PruneSpec, wanted: Sequence[Group], progress: Step | None = None
) -> dict[str, np.ndarray]:
    """The energy that each channel brings into the layers that read it, and each block out of those that end it.

    Of a channel the sum over its readers of E[x_c^2] ||W_c||^2, the output that is missing where it is zero: Wanda's score (Sun et al.
    2023, arXiv:2306.11695) summed over a channel. Of a block the same summed over all inputs, as if they were independent.
    """
    names = {name for group in wanted for name in group.readers}
    modules = tuple(f"{module}." for group in wanted for block in group.blocks for module in block)
    layers = [
        layer
        for layer in prunable_layers(voice)
        if layer.name in names or (modules and layer.name.startswith(modules))
    ]
    energies = {}
    for layer, statistics in collect(
        voice, layers, texts_for(voice, spec), spec.seed, covariances=False, progress=progress
    ):
        errors = output_errors(voice, layer, statistics)
        dimension = input_dimension(voice.model.get_submodule(layer.name))
        energies[layer.name] = (
            errors.movedim(dimension, 0)
            .reshape(errors.shape[dimension], -1)
            .double()
            .sum(1)
            .numpy()
        )
    totals = {f"{name}.weight": energy for name, energy in energies.items()}
    return {
        group.name: np.array([_of_block(totals, modules) for modules in group.blocks])
        if group.blocks
        else sum(energies[name] for name in group.readers)
        for group in wanted
    }


def second_order(
    voice: Voice,
    spec: PruneSpec,
    wanted: Sequence[Group],
    speech: Mapping[str, float],
    progress: Step | None = None,
) -> dict[str, np.ndarray]:
    """What the layers that read a channel lose without it although the channels that stay stand in for it.

    The least squares problem of Optimal Brain Surgeon (Hassibi & Stork 1993) for all weights of a channel at once, as in ZipLM (Kurtic
    et al. 2023, arXiv:2302.04089): the error in the output of a layer W is tr W_c ([H^-1]_cc)^-1 W_c^T with H the covariance of its inputs.
    Errors count as shares of a layer's output, times what such a share does to the speech. The channels go in ROUNDS, the least important
    first; one that goes later counts at least as much.

    Args:
        voice: who is cut.
        spec: texts and seed of calibration.
        wanted: groups of channels.
        speech: parameter name -> what a relative error of that layer's output does to the speech.
        progress: told how far it is; it may raise to cancel.
    """
    readers = {name for group in wanted for name in group.readers}
    layers = [layer for layer in prunable_layers(voice) if layer.name in readers]
    found: dict[str, np.ndarray] = {}
    held: dict[str, _Reader] = {}
    for layer, statistics in collect(
        voice, layers, texts_for(voice, spec), spec.seed, progress=progress
    ):
        held[layer.name] = _Reader(voice, layer, statistics, speech.get(layer.parameter, 0.0))
        for group in (
            wanted
        ):  # as soon as all that read it were heard, so that few covariances are held at a time
            if group.name not in found and all(name in held for name in group.readers):
                found[group.name] = _ranked([held.pop(name) for name in group.readers], group.size)
    return found


def _ranked(readers: Sequence[_Reader], size: int) -> np.ndarray:
    """Importance of channels that go round by round, float64 [size]."""
    scores, left, least = np.zeros(size), np.arange(size), 0.0
    for turn in range(ROUNDS):
        count = round(size * (turn + 1) / ROUNDS) - (size - len(left))
        if not count:
            continue
        losses = sum(reader.losses() for reader in readers)[left]
        order = np.argsort(losses, kind="stable")[:count]
        scores[left[order]] = np.maximum(losses[order], least)
        least = float(scores[left[order]].max())
        for reader in readers if count < len(left) else ():
            reader.take(left[order])
        left = np.delete(left, order)
    return scores


class _Reader:
    """A layer that reads a group's channels, while more and more of them go."""

    def __init__(self, voice: Voice, layer: Layer, statistics: Statistics, weight: float) -> None:
        self._matrix, module = (
            LayerMatrix(voice.model.get_submodule(layer.name)),
            voice.model.get_submodule(layer.name),
        )
        self._plain: np.ndarray | None = None
        if statistics.covariance is None:  # nothing can stand in for anything: energies
            errors, dimension = output_errors(voice, layer, statistics), input_dimension(module)
            energies = (
                errors.movedim(dimension, 0)
                .reshape(errors.shape[dimension], -1)
                .double()
                .sum(1)
                .numpy()
            )
            self._plain = weight * energies / max(1e-30, energies.sum())
            return
        covariance = statistics.covariance / max(1, statistics.windows)
        target = self._matrix.of(module.weight.detach()).float()
        columns = target.shape[1]
        inputs = covariance[:columns, :columns]
        self._scale = weight / max(1e-30, float((target @ inputs * target).sum()))
        covariance.diagonal().add_(DAMPING * inputs.diagonal().mean().clamp(min=1e-12))
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance))[
            :columns, :columns
        ].contiguous()
        self._target = target
        self._taps = self._matrix.channels(target).shape[2]

    def losses(self) -> np.ndarray:
        """What each channel's going would cost now, float64 [channels]; of those that went nothing that means anything."""
        if self._plain is not None:
            return self._plain
        channels = len(self._inverse) // self._taps
        blocks = (
            self._inverse.reshape(channels, self._taps, channels, self._taps)
            .diagonal(dim1=0, dim2=2)
            .permute(2, 0, 1)
        )
        mine = self._target.reshape(len(self._target), channels, self._taps).permute(1, 2, 0)
        blocks = blocks + 1e-12 * torch.eye(self._taps)
        return self._scale * (mine * torch.linalg.solve(blocks, mine)).sum((1, 2)).double().numpy()

    def take(self, gone: np.ndarray) -> None:
        """Channels go, and those that stay stand in for them."""
        if self._plain is not None:
            return
        places = (torch.from_numpy(gone)[:, None] * self._taps + torch.arange(self._taps)).reshape(
            -1
        )
        rows = self._inverse[places]
        step = torch.linalg.solve(rows[:, places], rows)
        self._target = self._target - self._target[:, places] @ step
        self._inverse = self._inverse - rows.T @ step
        self._target[:, places] = 0.0
        self._inverse[places, :] = self._inverse[:, places] = 0.0
        self._inverse[places, places] = 1.0
