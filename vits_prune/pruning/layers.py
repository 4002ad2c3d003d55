"""The layers of a voice: which can be pruned, and each as a matrix.

A layer's inputs are the windows that its matrix multiplies, and least squares fit it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad as padded

from vits_prune.errors import InputError
from vits_prune.pruning.spec import METHODS, PruneSpec, begins_with
from vits_prune.voices.voice import PARTS, Voice, without_masks

PRUNABLE_KINDS = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)

_REASONS = {
    "Embedding": "a look-up table: its rows are read, not multiplied",
    "LayerNorm": "normalisation: a few scales that every channel needs",
    "Parameter": "a small table of the architecture, not a layer's weights",
}
_PROTECTED = {
    "duration_predictor": "protected: it sets the rhythm, and its errors make durations run away",
    "decoder.conv_post": "protected: it writes the waveform itself, with few weights",
    "decoder.cond": "protected: it tells the decoder who speaks",
    "flow.flows.*.wavenet.cond_layer": "protected: it tells the flow who speaks",
}
"""Why methods leave layers alone, by the pattern that protects them."""

MAX_COLUMNS = 12_288
"""Inputs of a layer whose covariance is still held: 600 MB."""
FIT_WINDOWS = 24_000
"""Most windows that one layer is fitted on."""
FIT_DAMPING = 0.003
"""How firmly a layer keeps its weights when fitted, as a share of its inputs' mean energy."""
SignalBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Inputs of a layer, the outputs that are wanted, and positions without padding (None for all)."""


@dataclass(frozen=True)
class Layer:
    """One weight tensor that runs at inference."""

    name: str
    """Module path, such as "decoder.conv_pre"."""
    part: str
    """One of PARTS, or "speaker" for the table of speakers."""
    kind: str
    """Class of the module, or "Parameter" for a tensor of no known kind of module."""
    shape: tuple[int, ...]
    """Conv1d [out, in/groups, k], ConvTranspose1d [in, out, k], Linear [out, in]."""
    weights: int
    """How many, bias not counted."""
    parameter: str
    """Name of the tensor in `model.named_parameters()`."""
    reason: str = ""
    """Why this layer cannot be pruned; empty for one that can."""

    @property
    def prunable(self) -> bool:
        """Whether its weights may become zero."""
        return not self.reason


def layers(voice: Voice) -> tuple[Layer, ...]:
    """Return every weight tensor that runs when a voice speaks, in the model's order, no biases."""
    found = []
    for name, module in without_masks(voice).model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            if short == "bias":
                continue
            kind = type(module).__name__ if short == "weight" else "Parameter"
            prunable = short == "weight" and isinstance(module, PRUNABLE_KINDS)
            part, full = name.partition(".")[0], f"{name}.{short}"
            layer = Layer(
                name=name if short == "weight" else full,
                part=part if part in PARTS else "speaker",
                kind=kind,
                shape=tuple(parameter.shape),
                weights=parameter.numel(),
                parameter=full,
                reason="" if prunable else _REASONS.get(kind, _REASONS["Parameter"]),
            )
            found.append(layer)
    return tuple(found)


def prunable_layers(voice: Voice, parts: tuple[str, ...] = PARTS) -> tuple[Layer, ...]:
    """Return the layers of the given parts whose weights may become zero."""
    return tuple(layer for layer in layers(voice) if layer.prunable and layer.part in parts)


def uses_of_weights(voice: Voice, run: Callable[[Voice], object]) -> dict[str, int]:
    """Return how often each weight of a layer is used while `run` lets a copy of a voice speak.

    By the name of each Conv1d, ConvTranspose1d and Linear that runs. A convolution uses each weight
    once per output frame, a transposed one once per input frame, a linear layer once per row.
    """
    uses: dict[str, int] = {}

    def count(name: str, module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        if isinstance(module, nn.Linear):
            found = output.numel() // output.shape[-1]
        else:
            frames = inputs[0] if isinstance(module, nn.ConvTranspose1d) else output
            found = frames.shape[0] * frames.shape[-1]
        uses[name] = uses.get(name, 0) + found

    copy = voice.with_weights({})  # another thread may be speaking with this voice
    for name, module in copy.model.named_modules():
        if isinstance(module, PRUNABLE_KINDS):
            module.register_forward_hook(functools.partial(count, name))
    run(copy)
    return uses


def chosen_layers(voice: Voice, spec: PruneSpec) -> tuple[Layer, ...]:
    """Return the layers of the spec's parts that are not protected.

    Raises:
        InputError: none is left, or the voice does not have a layer to protect.
    """
    there = prunable_layers(voice)
    for pattern in spec.protect or ():
        if not any(begins_with(layer.name, pattern) for layer in there):
            what = f"{voice.name} has no layer {pattern[:80]!r} to protect"
            raise InputError(f"{what}: `layers` lists them.")
    found = tuple(one for one in there if one.part in spec.parts and not spec.protects(one.name))
    if not found:
        parts = ", ".join(spec.parts)
        what = f"All layers of {parts} are protected, so nothing is left to prune"
        raise InputError(f"{what}: protect less.")
    return found


def why_protected(layer: Layer, steps: Sequence[Mapping[str, Any]]) -> str:
    """Return why an original's layer was left alone by every pruning of its part, or "".

    The steps are the prunings of a recipe, each a PruneSpec as a dictionary; one of a single layer
    has its name under "layer".
    """
    mine = [
        PruneSpec.from_dict({key: value for key, value in step.items() if key != "layer"})
        for step in steps
        if layer.part in step.get("parts", PARTS)
    ]

    def rigid(spec: PruneSpec) -> bool:
        return METHODS[spec.method].structured and layer.part == "duration_predictor"

    if not mine or not all(spec.protects(layer.name) or rigid(spec) for spec in mine):
        return ""
    if METHODS[mine[-1].method].structured:
        return "structured pruning cannot shrink it"
    if mine[-1].protect is not None:
        return "protected: as asked for"
    reasons = (words for pattern, words in _PROTECTED.items() if begins_with(layer.name, pattern))
    return next(reasons, "protected: by the method")


@dataclass(frozen=True)
class LayerMatrix:
    """A Linear, Conv1d or ConvTranspose1d read as y = W x.

    W has a row for each output and a column for each input channel and tap. A strided
    ConvTranspose1d is `stride` interleaved convolutions of the same windows (polyphase form,
    Vaidyanathan 1990): its rows are (output channel, phase), its columns (input channel, tap of
    the phase).
    """

    module: nn.Module

    @property
    def dense(self) -> bool:
        """Whether the layer has one matrix.

        Grouped convolutions have none, nor transposed ones of a kernel that is no multiple of the
        stride.
        """
        if getattr(self.module, "groups", 1) != 1:
            return False
        return not self._transposed or self.module.kernel_size[0] % self.module.stride[0] == 0

    @property
    def _transposed(self) -> bool:
        return isinstance(self.module, nn.ConvTranspose1d)

    @property
    def phases(self) -> int:
        """Rows of each output channel."""
        return self.module.stride[0] if self._transposed and self.dense else 1

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns), the bias not counted."""
        size, phases = self.module.weight.shape, self.phases
        if self._transposed:
            return size[1] * phases, size[0] * (size[2] // phases)
        return size[0], self.module.weight.numel() // size[0]

    @property
    def columns(self) -> int:
        """Columns with the bias counted."""
        return self.shape[1] + (self.module.bias is not None)

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight of the layer's shape as [rows, columns]."""
        if not self._transposed:
            return weight.reshape(self.shape)
        inputs, outputs, taps = weight.shape
        phases = weight.reshape(inputs, outputs, taps // self.phases, self.phases)
        return phases.permute(1, 3, 0, 2).reshape(self.shape)

    def back(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return [rows, columns] as a weight of the layer's shape."""
        if not self._transposed:
            return matrix.reshape(self.module.weight.shape).contiguous()
        inputs, outputs, taps = self.module.weight.shape
        phases = matrix.reshape(outputs, self.phases, inputs, taps // self.phases)
        return phases.permute(2, 0, 3, 1).reshape(inputs, outputs, taps).contiguous()

    def with_bias(self) -> torch.Tensor:
        """Return the layer's own weight as float32 [rows, columns], its bias as the last column."""
        weight = self.of(self.module.weight.detach()).float()
        if self.module.bias is None:
            return weight
        bias = self.module.bias.detach().float()
        return torch.cat([weight, bias.repeat_interleave(len(weight) // len(bias))[:, None]], 1)

    def split(self, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a matrix like that of `with_bias` as the layer's new "weight" and "bias"."""
        new = {"weight": self.back(matrix[:, : self.shape[1]].contiguous())}
        if self.module.bias is not None:  # the phases of a transposed convolution share theirs
            phases = matrix[:, -1].reshape(len(self.module.bias), -1)
            new["bias"] = phases.mean(1).contiguous()
        return new

    def channels(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return a matrix as [rows, input channels, taps]."""
        taps = 1 if isinstance(self.module, nn.Linear) else self.module.kernel_size[0]
        return matrix.reshape(matrix.shape[0], -1, taps // self.phases)

    def usable(self, inputs: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Return which windows there are, bool [batch, positions].

        Inputs are [batch, positions, channels] of a Linear and [batch, channels, positions] of a
        convolution; `valid` says which positions are no padding, None for all.
        """
        module = self.module
        if self._transposed:
            stride, size = module.stride[0], module.kernel_size[0]
            found = torch.ones(len(inputs), inputs.shape[2] + size // stride - 1, dtype=torch.bool)
            cut = -(-module.padding[0] // stride)  # some of their outputs are cut off
            found[:, :cut] = found[:, found.shape[1] - cut :] = False
            return found
        if valid is not None:
            return valid
        if isinstance(module, nn.Linear):
            return torch.ones(inputs.shape[:-1], dtype=torch.bool)
        around = 2 * module.padding[0] - module.dilation[0] * (module.kernel_size[0] - 1)
        return torch.ones(len(inputs), inputs.shape[2] + around, dtype=torch.bool)

    def windows(
        self, inputs: torch.Tensor, batch: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Return inputs as [windows, columns], for a batch and position of each window."""
        module = self.module
        if isinstance(module, nn.Linear):
            return inputs[batch, position]
        taps, step, pad = module.kernel_size[0], module.dilation[0], module.padding[0]
        if self._transposed:
            taps, step = taps // module.stride[0], -1
            pad = taps - 1
            position = position + pad
        whole = padded(inputs, (pad, pad)) if pad else inputs
        seen = [whole[batch, :, position + tap * step] for tap in range(taps)]
        return torch.stack(seen, dim=2).reshape(len(batch), -1)

    def sample(
        self, inputs: torch.Tensor, places: torch.Tensor, most: int, random: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `most` of the windows at some places, int64 [windows, 2].

        Return them, [windows, columns] with a 1 for the bias, and their places.
        """
        if len(places) > most:
            places = places[torch.randperm(len(places), generator=random)[:most]]
        found = self.windows(inputs, places[:, 0], places[:, 1])
        if self.module.bias is not None:
            found = torch.cat([found, torch.ones(len(found), 1)], 1)
        return found, places

    def outputs(
        self, outputs: torch.Tensor, batch: torch.Tensor, position: torch.Tensor
    ) -> torch.Tensor:
        """Return outputs as [windows, rows]: each row the matrix times a window, plus the bias."""
        module = self.module
        if isinstance(module, nn.Linear):
            return outputs[batch, position]
        if not self._transposed:
            return outputs[batch, :, position]
        stride, pad, size = module.stride[0], module.padding[0], outputs.shape[2]
        whole = (size + 2 * pad + stride - 1) // stride * stride
        phases = padded(outputs, (pad, whole - pad - size))
        phases = phases.reshape(len(outputs), outputs.shape[1], -1, stride)
        return phases[batch, :, position].reshape(len(batch), -1)


class OverlapSums:
    """Sums over all windows x of a Conv1d of stride 1 and one group: x², x and, if asked, x xᵀ."""

    def __init__(self, module: nn.Conv1d, covariances: bool) -> None:
        self._taps, channels = module.kernel_size[0], module.in_channels
        self._step, self._pad = module.dilation[0], module.padding[0]
        self._sums = torch.zeros(self._taps, channels)
        self._squares = torch.zeros(self._taps, channels)
        self._lags = torch.zeros(self._taps, channels, channels) if covariances else None
        self._ends = {
            (i, lag): torch.zeros(channels, channels)
            for i in range(1, self._taps)
            for lag in range(self._taps - i)
        }
        self.windows = 0

    def add(self, inputs: torch.Tensor, usable: torch.Tensor) -> None:
        """Count in the usable windows, bool [batch, positions of the output]."""
        whole = padded(inputs.transpose(1, 2), (0, 0, self._pad, self._pad))
        rows = whole.reshape(-1, whole.shape[2])
        # Rows that tap 0 sees.
        first = padded(usable, (0, whole.shape[1] - usable.shape[1])).reshape(-1)
        self.windows += int(usable.sum())
        squares = rows.square()
        seen = [first.roll(tap * self._step) for tap in range(self._taps)]
        for tap, here in enumerate(seen):
            self._sums[tap] += here.float() @ rows
            self._squares[tap] += here.float() @ squares
        if self._lags is None:
            return
        left = rows * first[:, None]
        for lag in range(self._taps):
            ahead = lag * self._step
            self._lags[lag].addmm_(left[: len(rows) - ahead].T, rows[ahead:])
        for (tap, lag), ends in self._ends.items():
            for sign, which in ((1.0, seen[tap] & ~first), (-1.0, first & ~seen[tap])):
                at = which.nonzero().flatten()
                ends.addmm_(rows[at].T, rows[at + lag * self._step], alpha=sign)

    def energy(self) -> torch.Tensor:
        """Return the sum of x², [columns], in the order of LayerMatrix: channel, then tap."""
        return self._squares.T.reshape(-1)

    def sums(self) -> torch.Tensor:
        """Return the sum of x, [columns]."""
        return self._sums.T.reshape(-1)

    def covariance(self) -> torch.Tensor:
        """Return the sum of x xᵀ, [columns, columns]."""
        assert self._lags is not None
        channels = self._sums.shape[1]
        found = torch.empty(channels, self._taps, channels, self._taps)
        for i in range(self._taps):
            for j in range(i, self._taps):
                block = self._lags[j - i] + self._ends[i, j - i] if i else self._lags[j]
                found[:, i, :, j] = block
                if j > i:
                    found[:, j, :, i] = block.T
        return found.reshape(channels * self._taps, channels * self._taps)


def overlap(matrix: LayerMatrix, inputs: torch.Tensor) -> bool:
    """Return whether a layer's windows overlap so much that OverlapSums is faster."""
    module = matrix.module
    if not isinstance(module, nn.Conv1d) or not matrix.dense or module.stride[0] != 1:
        return False
    taps = module.kernel_size[0]
    return taps > 1 and inputs.shape[2] >= 8 * module.dilation[0] * (taps - 1)


def fit_layer(
    module: nn.Module, batches: Iterable[SignalBatch], count: int, random: torch.Generator
) -> None:
    """Give a layer the weights that best make what `count` batches want, near those that it has.

    A layer without one matrix, or with too large a one, keeps its weights.
    """
    matrix = LayerMatrix(module)
    columns, most = matrix.columns, max(1, FIT_WINDOWS // count)
    if not matrix.dense or columns > MAX_COLUMNS:
        return
    gram, cross = torch.zeros(columns, columns), torch.zeros(matrix.shape[0], columns)
    windows = 0
    for inputs, wanted, valid in batches:
        places = matrix.usable(inputs, valid).nonzero()
        found, places = matrix.sample(inputs, places, most, random)
        gram.addmm_(found.T, found)
        cross.addmm_(matrix.outputs(wanted, places[:, 0], places[:, 1]).T, found)
        windows += len(found)
    if not windows:
        return
    gram, cross = gram / windows, cross / windows
    damping = FIT_DAMPING * float(gram.diagonal()[: matrix.shape[1]].mean().clamp(min=1e-12))
    gram.diagonal().add_(damping)
    aim = (cross + damping * matrix.with_bias()).T
    fitted = torch.cholesky_solve(aim, torch.linalg.cholesky(gram)).T
    if bool(torch.isfinite(fitted).all()):
        for name, new in matrix.split(fitted).items():
            setattr(module, name, nn.Parameter(new, requires_grad=False))
