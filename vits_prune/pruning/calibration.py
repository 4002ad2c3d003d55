"""What the layers of a voice do while it speaks: no data set is needed.

Calibration sums over the inputs of layers, as SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774,
section 3) does with sentences of a corpus.

Sensitivity says how much an error in a layer's output changes the speech, for all layers at once.
The speech is its log-mel spectrogram and the logarithms of its durations, f. Errors of a share e of
a layer's output, alike in all channels and positions and independent of each other, change f by e²
times sum (∂f/∂y)² var(y). That sum is estimated with random directions v, for which
E (∂(v·f)/∂y)² = sum (∂f/∂y)² (Hutchinson 1989; the Gauss-Newton matrix of Martens 2010): one
backward pass each.

The same voice, texts, seed and number of threads give the same numbers to the bit.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from vits_prune.caches import Bounded
from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress
from vits_prune.pruning import blocks
from vits_prune.pruning.blocks import State, inputs_of, not_finite, part_states
from vits_prune.pruning.layers import (
    MAX_COLUMNS,
    Layer,
    LayerMatrix,
    OverlapSums,
    overlap,
    prunable_layers,
)
from vits_prune.pruning.spec import PruneSpec
from vits_prune.synthesis.inference import encode, log_durations, speaker_embedding
from vits_prune.synthesis.speak import Delivery
from vits_prune.synthesis.spectra import mel_filter_bank, power_spectrum
from vits_prune.synthesis.texts import load_calibration_texts
from vits_prune.voices.voice import PARTS, Voice, draw_texts, spoken_language

WINDOWS = (3_000, 16_000)
"""Fewest and most windows of a layer that are counted, 8 for each column between the two."""
DRAWN_TEXTS = 120
KEPT_COVARIANCE_BYTES = 1 << 30
"""Covariances that are kept for another amount; those of a larger voice are gathered again."""
KEPT_VOICES = 2
SENTENCES, DIRECTIONS = 8, 2
KEPT_SENSITIVITY_BYTES = 64 << 20
"""Results that are kept: about 100 kB for each voice and choice of texts and seed."""
MEL_SCALE, DURATION_SCALE = 0.5, 0.1
"""Errors that count as equal: half a neper of log-mel amplitude, a tenth of a token's duration."""
_BANDS, _SIZE, _HOP = 80, 1024, 256


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
    for _, (run, states) in zip(range(last + 1), part_states(voice, texts, seed), strict=False):
        for block in run:
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


_Passed = dict[str, list[torch.Tensor]]
_kept_sensitivities: Bounded[tuple[object, ...], dict[str, np.ndarray]] = Bounded(
    KEPT_SENSITIVITY_BYTES, lambda found: sum(one.nbytes for one in found.values())
)


def channel_sensitivity(
    voice: Voice, texts: Sequence[str], seed: int, *, progress: Progress = SILENT
) -> dict[str, np.ndarray]:
    """Return the squared change of the speech if an output channel keeps nothing but its mean.

    By parameter name, float64 [channels], over SENTENCES of the texts. To the second order, and
    counted from the unchanged voice: changes of several channels add up only while they are small.
    """
    return _kept_sensitivities.get_or_make(
        (voice.speaker, tuple(texts), seed, torch.get_num_threads()),
        lambda: _measure_sensitivity(voice, texts, seed, progress),
        functools.partial(progress.report, "waiting for another measurement of this voice", 0.0),
        owner=voice.model,
    )


def _measure_sensitivity(
    voice: Voice, texts: Sequence[str], seed: int, progress: Progress
) -> dict[str, np.ndarray]:
    voice = voice.with_weights({})  # hooks go on a copy: another thread may be speaking
    layers = prunable_layers(voice)
    random, places = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    states = blocks.spoken_states(voice, voice, blocks.sentence_ids(voice, texts), seed, SENTENCES)
    found: dict[str, np.ndarray] = {}
    for layer in layers:
        module = voice.model.get_submodule(layer.name)
        linear = isinstance(module, nn.Linear)
        found[layer.parameter] = np.zeros(module.out_features if linear else module.out_channels)
    for state in progress.track(states, "measuring what errors do to the speech: sentence"):
        with torch.enable_grad(), _recording(voice.model, layers) as (energies, squares):
            for output, scale in speech_of(voice, state, int(places.integers(1 << 30))):
                share = DIRECTIONS * output.numel() * scale**2 * len(states)
                for _ in range(DIRECTIONS):
                    for square in squares.values():
                        square.clear()
                    direction = torch.randn(output.shape, generator=random)
                    (output * direction).sum().backward(retain_graph=True)
                    for layer in layers:
                        if squares[layer.name]:
                            product = sum(squares[layer.name]) * energies[layer.name][-1]
                            found[layer.parameter] += product.double().numpy() / share
    for name, change in found.items():
        if not np.isfinite(change).all():
            raise blocks.not_finite(voice, f"what errors of {name} do to the speech")
    progress.report("measured what errors do to the speech", 1.0)
    return found


@contextlib.contextmanager
def _recording(model: nn.Module, layers: Sequence[Layer]) -> Iterator[tuple[_Passed, _Passed]]:
    """Yield var(y) and the squared gradients of the layers' outputs, by channel."""
    energies: _Passed = {layer.name: [] for layer in layers}
    squares: _Passed = {layer.name: [] for layer in layers}

    def hook(name: str, channels_last: bool) -> Callable[..., torch.Tensor]:
        def record(_module: nn.Module, _given: object, output: torch.Tensor) -> torch.Tensor:
            if not output.requires_grad:
                output.requires_grad_(True)
                output = output * 1.0  # no leaf: some blocks add to it in place
            channels = output.dim() - 1 if channels_last else 1
            over = tuple(i for i in range(output.dim()) if i != channels)
            energies[name].append(output.detach().var(dim=over, unbiased=False))
            output.register_hook(
                lambda gradient: squares[name].append(gradient.detach().square().sum(dim=over))
            )
            return output

        return record

    modules = {layer.name: model.get_submodule(layer.name) for layer in layers}
    hooks = [
        module.register_forward_hook(hook(name, isinstance(module, nn.Linear)))
        for name, module in modules.items()
    ]
    with blocks.removing(hooks):
        yield energies, squares


def speech_of(voice: Voice, spoken: State, place: int) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield the log-durations of a sentence and the log-mel spectrogram of a stretch of it.

    Each with the size of an error that counts as one.
    """
    pace, conditioning = Delivery().for_voice(voice), speaker_embedding(voice)
    hidden, means, log_variances = encode(voice, spoken["ids"])
    with _attached(voice.model, hidden):
        logarithms = log_durations(voice.model, hidden, conditioning, spoken["key"], pace)
    yield logarithms, DURATION_SCALE
    prior = {"means": means, "log_variances": log_variances, "conditioning": conditioning}
    state = blocks.stretched({**spoken, **prior}, voice)
    for block in blocks.flow_blocks(voice.model):
        state = block.run(state)
    state = blocks.stretch(state, place)
    for block in blocks.decoder_blocks(voice.model):
        state = block.run(state)
    yield _log_mel(torch.tanh(state["hidden"])[0, 0], voice.sampling_rate), MEL_SCALE


@contextlib.contextmanager
def _attached(model: nn.Module, hidden: torch.Tensor) -> Iterator[None]:
    """Let gradients pass from a plain duration predictor to the text encoder; its code detaches."""
    if model.config.use_stochastic_duration_prediction:
        yield
        return
    hook = model.duration_predictor.conv_1.register_forward_pre_hook(
        lambda _module, given: given[0] + (hidden - hidden.detach())
    )
    with blocks.removing([hook]):
        yield


def _log_mel(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Log amplitudes in mel bands, [bands, frames], at least -80 dB below full scale."""
    size = min(_SIZE, 2 * (len(waveform) // 2))
    bank = torch.from_numpy(mel_filter_bank(sampling_rate, size, _BANDS).copy()).to(waveform)
    power = power_spectrum(waveform, size, _HOP)
    return 0.5 * torch.log(bank @ power + (1e-4 * size / 4) ** 2)
