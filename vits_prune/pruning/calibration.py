"""Calibration: sums over the inputs of a voice's layers while it speaks. No data set is needed.

SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774, section 3) does the same with sentences of a
corpus. The same voice, texts, seed and number of threads give the same numbers to the bit.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning.blocks import inputs_of, not_finite, part_states
from vits_prune.pruning.layers import Layer
from vits_prune.pruning.matrix import MAX_COLUMNS, LayerMatrix, OverlapSums, overlap
from vits_prune.pruning.spec import PruneSpec
from vits_prune.synthesis.texts import load_calibration_texts
from vits_prune.voices.voice import PARTS, Voice, draw_texts, spoken_language

WINDOWS = (3_000, 16_000)
"""Fewest and most windows of a layer that are counted, 8 for each column between the two."""
DRAWN_TEXTS = 120
KEPT_COVARIANCE_BYTES = 1 << 30
"""Covariances that are kept for another amount; those of a larger voice are gathered again."""
KEPT_VOICES = 2


class Statistics:
    """Sums over the windows x of a layer's input; where it has a bias, x ends with a 1.

    The sums of a grouped convolution are those of all groups together.
    """

    def __init__(self, matrix: LayerMatrix, covariances: bool = True) -> None:
        dense, module = matrix.dense, matrix.module
        columns = matrix.columns if dense else module.in_channels // module.groups
        self.matrix, self.windows = matrix, 0
        self.energy = torch.zeros(columns)
        """Sum of x², float32 [columns]; of a grouped convolution [channels of a group]."""
        wanted = covariances and dense
        self.covariance = torch.zeros(columns, columns) if wanted else None
        """Sum of x xᵀ, float32 [columns, columns]; None where only energies are wanted or exist."""
        self._overlaps: OverlapSums | None = None

    def add(self, found: torch.Tensor) -> None:
        """Count in windows, [windows, columns]."""
        self.energy += found.square().sum(0)
        if self.covariance is not None:
            self.covariance.addmm_(found.T, found)
        self.windows += len(found)

    def add_inputs(
        self, inputs: torch.Tensor, valid: torch.Tensor | None, batches: int, draws: torch.Generator
    ) -> None:
        """Count in a sample of the windows of one of so many batches, or all where they are few."""
        matrix, module = self.matrix, self.matrix.module
        if not matrix.dense:
            self.add(inputs.transpose(1, 2).reshape(-1, inputs.shape[1] // module.groups))
            return
        usable = matrix.usable(inputs, valid)
        most = max(1, int(np.clip(8 * matrix.shape[1], *WINDOWS)) // batches)
        if int(usable.sum()) > most or not overlap(matrix, inputs):
            self.add(matrix.sample(inputs, usable.nonzero(), most, draws)[0])
            return
        self._overlaps = self._overlaps or OverlapSums(module, self.covariance is not None)
        self._overlaps.add(inputs, usable)

    def finish(self) -> Statistics:
        """Add what was summed of overlapping windows, and return itself."""
        sums, columns = self._overlaps, self.matrix.shape[1]
        if sums is None:
            return self
        self.windows += sums.windows
        self.energy[:columns] += sums.energy()
        self.energy[columns:] += sums.windows
        if self.covariance is not None:
            self.covariance[:columns, :columns] += sums.covariance()
            self.covariance[:columns, columns:] += sums.sums()[:, None]
            self.covariance[columns:, :columns] += sums.sums()[None]
            self.covariance[columns:, columns:] += sums.windows
        self._overlaps = None
        return self


Found = tuple[tuple[Layer, Statistics], ...]
kept_statistics: Bounded[tuple[object, ...], Found] = Bounded(KEPT_VOICES, lambda _: 1)


def texts_for(voice: Voice, spec: PruneSpec) -> tuple[str, ...]:
    """Return the spec's own texts, else English sentences, else draws from the vocabulary."""
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

    The spec has the texts and the seed. Without covariances only energies are gathered.
    """
    texts, names = texts_for(voice, spec), {layer.name for layer in layers}
    matrices = (LayerMatrix(voice.model.get_submodule(name)) for name in names)
    size = sum(4 * (matrix.shape[1] + 1) ** 2 for matrix in matrices if matrix.dense)
    if covariances and size > KEPT_COVARIANCE_BYTES:
        yield from collect(voice, layers, texts, spec.seed, progress=progress)
        return

    def enough(found: Found) -> bool:
        fits = (not covariances or x.covariance is not None or not x.matrix.dense for _, x in found)
        return names <= {layer.name for (layer, _), fit in zip(found, fits, strict=True) if fit}

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

    The seed draws the noise and the sample of windows.

    Raises:
        InputError: the voice can say none of the texts, a covariance does not fit, or an input is
            not finite.
    """
    voice = voice.with_weights({})  # hooks go on a copy: another thread may be speaking
    matrices = {one.name: LayerMatrix(voice.model.get_submodule(one.name)) for one in layers}
    for name, matrix in matrices.items() if covariances else ():
        columns = matrix.shape[1]
        if matrix.dense and columns > MAX_COLUMNS:
            size = f"{columns:,} inputs, whose covariance would take {4 * columns**2 / 1e9:.1f} GB"
            what = f"{name} of {voice.name} has {size}"
            raise InputError(f"{what}: protect it, or prune by activation, which needs none.")
    # Each layer has its own draws, so that its numbers do not depend on which others are asked for.
    draws = {
        name: torch.Generator().manual_seed(seed + (zlib.crc32(name.encode()) << 32))
        for name in matrices
    }
    done, last = 0, max((PARTS.index(layer.part) for layer in layers), default=-1)
    for _, (blocks, states) in zip(range(last + 1), part_states(voice, texts, seed), strict=False):
        for block in blocks:
            mine = [layer for layer in layers if block.holds(layer.name)]
            progress.report(f"calibrating {block.name}", done / max(1, len(layers)))
            sums = {one.name: Statistics(matrices[one.name], covariances) for one in mine}
            for index, state in enumerate(states):
                with inputs_of(voice.model, mine) as inputs:
                    states[index] = block.run(state)
                for name, one in sums.items():
                    one.add_inputs(inputs[name], state.get("valid"), len(states), draws[name])
            for layer in mine:
                statistics = sums.pop(layer.name).finish()
                if not bool(torch.isfinite(statistics.energy).all()):
                    raise not_finite(voice, f"the input of {layer.name}")
                yield layer, statistics
                done += 1
    progress.report("calibrated", 1.0)
