"""Calibration: sums over the inputs of a voice's layers while it speaks. No data set is needed.

SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774, section 3) does the same with sentences of a
corpus. The same voice, texts, seed and number of threads give the same numbers to the bit.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.blocks import State, inputs_of, part_states
from vits_prune.pruning.layers import Layer
from vits_prune.pruning.matrix import MAX_COLUMNS, LayerMatrix, OverlapSums, overlap
from vits_prune.pruning.spec import PruneSpec
from vits_prune.synthesis.texts import load_calibration_texts
from vits_prune.voices.voice import PARTS, Voice, draw_texts, spoken_language

WINDOWS = (3_000, 16_000)
"""Fewest and most windows of a layer that are counted, 8 for each column between the two."""
BLOCK_BYTES = 1 << 30
"""Covariances of one block that are gathered at a time; a block with more is run several times."""
DRAWN_TEXTS = 120
KEPT_BYTES = 1 << 30
"""Covariances that are kept for another amount; those of a larger voice are gathered again."""
KEPT_VOICES = 2


@dataclass(eq=False)
class Statistics:
    """Sums over the windows x of a layer's input; where it has a bias, x ends with a 1."""

    matrix: LayerMatrix
    covariance: torch.Tensor | None
    """Sum of x xᵀ, float32 [columns, columns]; None where only energies are wanted or exist."""
    energy: torch.Tensor
    """Sum of x², float32 [columns]; of a grouped convolution [channels of a group]."""
    windows: int = 0

    def add(self, found: torch.Tensor) -> None:
        """Count in windows, [windows, columns]."""
        self.energy += found.square().sum(0)
        if self.covariance is not None:
            self.covariance.addmm_(found.T, found)
        self.windows += len(found)

    def add_overlaps(self, sums: OverlapSums) -> None:
        """Count in a convolution's windows that are summed already."""
        columns, energy = self.matrix.shape[1], sums.energy()
        self.windows += sums.windows
        self.energy[:columns] += energy
        self.energy[columns:] += sums.windows
        if self.covariance is None:
            return
        self.covariance[:columns, :columns] += sums.covariance()
        if len(self.energy) > columns:
            self.covariance[:columns, columns] += sums.sums()
            self.covariance[columns, :columns] += sums.sums()
            self.covariance[columns, columns] += sums.windows


Found = tuple[tuple[Layer, Statistics], ...]
kept_statistics: Bounded[tuple[object, ...], Found] = Bounded(KEPT_VOICES, lambda _: 1)


def texts_for(voice: Voice, spec: PruneSpec) -> tuple[str, ...]:
    """Return the texts that a voice is calibrated on.

    The spec's own, else built-in English sentences, else draws from the voice's vocabulary.
    """
    if spec.texts:
        return spec.texts
    if spoken_language(voice) == "en":
        return load_calibration_texts()
    return draw_texts(voice, DRAWN_TEXTS, spec.seed)


def calibrate(
    voice: Voice,
    spec: PruneSpec,
    layers: Sequence[Layer],
    *,
    covariances: bool,
    progress: Progress = SILENT,
) -> Iterator[tuple[Layer, Statistics]]:
    """Yield the statistics of layers; take them from memory if they were gathered before.

    Args:
        voice: who speaks.
        spec: its texts and seed.
        layers: which are wanted.
        covariances: whether whole covariances are wanted, or energies alone.
        progress: may cancel the work.

    Raises:
        InputError: the voice can say none of the texts, or a covariance does not fit.
    """
    texts, names = texts_for(voice, spec), {layer.name for layer in layers}
    size = sum(_bytes(voice, layer) for layer in layers) if covariances else 0
    if size > KEPT_BYTES:
        yield from collect(voice, layers, texts, spec.seed, progress=progress)
        return

    def enough(found: Found) -> bool:
        return names <= {
            layer.name
            for layer, one in found
            if not covariances or one.covariance is not None or not one.matrix.dense
        }

    found = kept_statistics.get_or_make(
        (voice.speaker, texts, spec.seed, torch.get_num_threads()),
        lambda: tuple(
            collect(voice, layers, texts, spec.seed, covariances=covariances, progress=progress)
        ),
        functools.partial(progress.report, "waiting for another calibration of this voice", 0.0),
        owner=voice.model,
        enough=enough,
    )
    yield from (pair for pair in found if pair[0].name in names)


def collect(
    voice: Voice,
    layers: Sequence[Layer],
    texts: Sequence[str],
    seed: int,
    *,
    covariances: bool = True,
    progress: Progress = SILENT,
) -> Iterator[tuple[Layer, Statistics]]:
    """Yield the statistics of layers, block by block; a block's are held until all are yielded.

    Args:
        voice: who speaks.
        layers: which to look at.
        texts: what is spoken.
        seed: of the noise and of the sample of windows.
        covariances: whether whole covariances are wanted, or energies alone.
        progress: may cancel the work.

    Raises:
        InputError: the voice can say none of the texts, a covariance does not fit, or the input
            of a layer is not finite.
    """
    voice = voice.with_weights({})  # hooks go on a copy: another thread may be speaking
    if covariances:
        _check_memory(voice, layers)
    # Each layer has its own draws, so that its numbers do not depend on which others are asked for.
    random = {
        layer.name: torch.Generator().manual_seed(seed + (zlib.crc32(layer.name.encode()) << 32))
        for layer in layers
    }
    done, parts = 0, {layer.part for layer in layers}
    last = max((PARTS.index(part) for part in parts), default=-1)
    for _, (blocks, states) in zip(range(last + 1), part_states(voice, texts, seed), strict=False):
        for block in blocks:
            mine = [layer for layer in layers if block.holds(layer.name)]
            progress.report(f"calibrating {block.name}", done / max(1, len(layers)))
            after: list[State] = []
            for some in _turns(voice, mine) if covariances else [mine]:
                sums = {
                    layer.name: _Sums(
                        voice.model.get_submodule(layer.name), covariances, random[layer.name]
                    )
                    for layer in some
                }
                after = []
                for state in states:
                    with inputs_of(voice.model, some) as inputs:
                        after.append(block.run(voice.model, state))
                    for name, one in sums.items():
                        one.add(inputs[name], state.get("valid"), len(states))
                for layer in some:
                    yield layer, _finite(voice, layer, sums.pop(layer.name).statistics())
                    done += 1
            states[:] = after
    progress.report("calibrated", 1.0)


def _finite(voice: Voice, layer: Layer, statistics: Statistics) -> Statistics:
    if not bool(torch.isfinite(statistics.energy).all()):
        raise InputError(
            f"The input of {layer.name} of {voice.name} is not finite when it speaks: the voice is "
            "damaged, load it again."
        )
    return statistics


def _turns(voice: Voice, layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """Yield a block's layers in turns whose covariances fit into BLOCK_BYTES, at least one each."""
    some: list[Layer] = []
    size = 0
    for layer in layers:
        mine = 4 * LayerMatrix(voice.model.get_submodule(layer.name)).shape[1] ** 2
        if some and size + mine > BLOCK_BYTES:
            yield some
            some, size = [], 0
        some.append(layer)
        size += mine
    yield some


def _check_memory(voice: Voice, layers: Sequence[Layer]) -> None:
    for layer in layers:
        matrix = LayerMatrix(voice.model.get_submodule(layer.name))
        columns = matrix.shape[1]
        if matrix.dense and columns > MAX_COLUMNS:
            raise InputError(
                f"{layer.name} of {voice.name} has {columns:,} inputs, whose covariance would take "
                f"{4 * columns**2 / 1e9:.1f} GB: protect it, or prune by activation, which needs "
                "none."
            )


def _bytes(voice: Voice, layer: Layer) -> int:
    matrix = LayerMatrix(voice.model.get_submodule(layer.name))
    return 4 * (matrix.shape[1] + 1) ** 2 if matrix.dense else 0


class _Sums:
    """Adds up the inputs of one layer."""

    def __init__(self, module: nn.Module, covariances: bool, random: torch.Generator) -> None:
        self._matrix, self._random = LayerMatrix(module), random
        dense = self._matrix.dense
        columns = module.in_channels // module.groups if not dense else self._matrix.columns
        covariance = torch.zeros(columns, columns) if covariances and dense else None
        self._found = Statistics(self._matrix, covariance, torch.zeros(columns))
        self._overlaps: OverlapSums | None = None

    def add(self, inputs: torch.Tensor, valid: torch.Tensor | None, batches: int) -> None:
        """Count in a sample of the layer's windows, or all where they are few."""
        matrix, module = self._matrix, self._matrix.module
        if not matrix.dense:  # the sums are those of all groups together
            size = inputs.shape[1] // module.groups
            self._found.add(inputs.transpose(1, 2).reshape(-1, size))
            return
        usable = matrix.usable(inputs, valid)
        most = max(1, int(np.clip(8 * matrix.shape[1], *WINDOWS)) // batches)
        if int(usable.sum()) <= most and overlap(matrix, inputs):
            self._overlaps = self._overlaps or OverlapSums(
                module, self._found.covariance is not None
            )
            self._overlaps.add(inputs, usable)
            return
        self._found.add(matrix.sample(inputs, usable.nonzero(), most, self._random)[0])

    def statistics(self) -> Statistics:
        if self._overlaps is not None:
            self._found.add_overlaps(self._overlaps)
        return self._found
