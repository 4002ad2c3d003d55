"""Programs: a residual stage, a coupling layer or one convolution as operations on buffers.

The weights that are not zero are packed row by row, each with its place in the source's buffer.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from vits_prune.kernels import tiles

MAX_BUFFER_BYTES = 1 << 20
"""Of one buffer of a tile: some of them together fit a core's share of the caches."""
LONGEST_TILE, SHORTEST_TILE = 4096, 64
MAX_MEMORY_BYTES = 64 << 20
"""Of all buffers of a tile. Published voices need a tenth; a stranger's dilations may need any."""


@dataclass
class Operation:
    """One operation of a program, its places still names of buffers."""

    kind: int
    source: str = ""
    target: str = ""
    rows: int = 0
    first: int = 0
    extra: int = 0
    mode: int = 0
    residual: str = ""
    kept: str = ""
    margin: int = 0


@dataclass(eq=False)
class Program:
    """What happens to a tile: operations, packed weights, and the layout of its memory."""

    operations: np.ndarray
    pointers: np.ndarray
    offsets: np.ndarray
    values: np.ndarray
    bias: np.ndarray
    numbers: int
    """float32 numbers of one tile's memory."""
    layout: tuple[int, ...]
    tile: int
    scales: tuple[np.float32, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(one.nbytes for one in (self.pointers, self.offsets, self.values, self.bias))

    def run(
        self,
        memory: np.ndarray,
        x: np.ndarray,
        out: np.ndarray,
        begin: int,
        end: int,
        bias: np.ndarray,
    ) -> None:
        """Compute the frames `begin` to `end` of `out`; lets go of the interpreter's lock."""
        weights = (self.pointers, self.offsets, self.values, bias)
        frame = (*self.layout, out.shape[1])
        tiles.run_tile(self.operations, weights, memory, x, out, begin, end, frame, self.scales)

    def thinned(self, share: float) -> Program:
        """Return a program that keeps this share of the weights, drawn at random, for a clock."""
        kept = np.random.default_rng(0).random(len(self.values)) < share
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        pointers, offsets, values = before[self.pointers], self.offsets[kept], self.values[kept]
        return dataclasses.replace(self, pointers=pointers, offsets=offsets, values=values)


@dataclass
class ProgramBuilder:
    """Collects operations and the layers that they compute.

    Args:
        full: pack every weight as if it were not zero, for a clock.
        slope: of leaky ReLU inside.
        last_slope: of leaky ReLU at the end.
        factor: of what is stored.
    """

    full: bool = False
    slope: float = 1.0
    last_slope: float = 1.0
    factor: float = 1.0
    operations: list[Operation] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    _layers: list[tuple[np.ndarray, np.ndarray, int, str]] = field(default_factory=list)
    _phases: tuple[int, int, int] = (1, 0, 1)
    """Stride, padding and taps of a phase of the transposed convolution."""

    def add(self, kind: int, source: str, target: str, rows: int, **more: Any) -> None:
        """Add an operation without weights; `rows` go to the target, or out."""
        self._reserve(target, rows)
        self.operations.append(Operation(kind, source, target, rows, **more))

    def load(self, target: str, rows: int, first: int = 0) -> None:
        """Load rows of the input."""
        self.add(tiles.LOAD, "", target, rows, first=first)

    def store(self, source: str, rows: int, first: int = 0, how: int = tiles.STORE_PLAIN) -> None:
        """Write rows of the output."""
        self.add(tiles.STORE, source, "", rows, first=first, extra=how)

    def upsample(self, layer: nn.ConvTranspose1d, target: str) -> None:
        """Load the input, of the low rate, and compute a transposed convolution of it."""
        (stride,), (padding,), (kernel,) = layer.stride, layer.padding, layer.kernel_size
        taps = -(-kernel // stride)
        self._phases = (stride, padding, taps)
        weight, bias = _arrays(layer)
        inputs, outputs = weight.shape[:2]
        full = np.zeros((inputs, outputs, taps * stride), np.float32)
        full[:, :, :kernel] = weight
        # [out, phase, in, tap], the last tap first: time runs forward in memory.
        phased = full.reshape(inputs, outputs, taps, stride).transpose(1, 3, 0, 2)[..., ::-1]
        self.add(tiles.LOAD_LOW, "", "low", inputs)
        first = self._pack(phased.reshape(outputs * stride, inputs, taps), bias.repeat(stride), 1)
        self._layers[-1] = (*self._layers[-1][:3], "low")
        self.add(tiles.UP, "low", target, outputs, first=first)

    def convolve(
        self,
        layer: nn.Conv1d,
        source: str,
        target: str = "",
        *,
        mode: int = tiles.PLAIN,
        residual: str = "",
        kept: str = "",
        weight: np.ndarray | None = None,
        bias: np.ndarray | None = None,
    ) -> None:
        """Compute a convolution and do with it what the mode says.

        `weight` and `bias` take the place of the layer's own, for some rows of it.
        """
        (dilation,), (kernel,) = layer.dilation, layer.kernel_size
        if weight is None or bias is None:
            weight, bias = _arrays(layer)
        reach, rows = dilation * (kernel - 1) // 2, len(weight)
        first = self._pack(weight, bias, dilation)
        for name in (target, kept):
            self._reserve(name, rows)
        self._reserve(source, weight.shape[1])
        places: dict[str, Any] = {"mode": mode, "residual": residual, "kept": kept}
        self.operations.append(Operation(tiles.CONV, source, target, rows, first, reach, **places))

    def _reserve(self, buffer: str, rows: int) -> None:
        if buffer:
            self.rows[buffer] = max(rows, self.rows.get(buffer, 0))

    def _pack(self, weight: np.ndarray, bias: np.ndarray, dilation: int) -> int:
        first = sum(len(one) for one, *_ in self._layers)
        self._layers.append((weight, bias, dilation, ""))
        return first

    def build(self) -> Program | None:
        """Return the program, packed; None if its tiles are too large to be of use."""
        reach = self._spread_margins()
        stride, padding, taps = self._phases
        widest = max(rows for name, rows in self.rows.items() if name != "low")
        origin = reach + stride
        edge = origin + reach + stride + tiles.WIDE
        tile = MAX_BUFFER_BYTES // (4 * widest) - edge
        tile = min(LONGEST_TILE, max(4 * reach, SHORTEST_TILE, tile))
        row = edge + tile
        low = (tile + 2 * reach) // stride + taps + 2 + tiles.WIDE
        places, numbers = {"": 0}, stride  # convolutions may begin before their first column
        for name, rows in self.rows.items():
            places[name] = numbers
            numbers += rows * (low if name == "low" else row) + tiles.WIDE
        spare, numbers = numbers, numbers + stride * low + tiles.WIDE
        if 4 * numbers > MAX_MEMORY_BYTES:
            return None
        table = [
            (
                *(one.kind, places[one.source], places[one.target], one.rows, one.first),
                *(one.margin, one.extra, one.mode, places[one.residual], places[one.kept]),
            )
            for one in self.operations
        ]
        return Program(
            np.array(table, np.int64),
            *self._packed(row, low),
            numbers,
            (row, origin, stride, padding, taps, low, spare, low),
            tile,
            tuple(np.float32(one) for one in (self.slope, self.last_slope, self.factor)),
        )

    def _spread_margins(self) -> int:
        """Give each operation the margin that those after it need; return the widest."""
        needed = dict.fromkeys(self.rows, 0)
        for one in reversed(self.operations):
            written = {name for name in (one.target, one.kept) if name}
            one.margin = max((needed[name] for name in written), default=0)
            if one.mode != tiles.SUM:
                needed |= dict.fromkeys(written, 0)
            reach = one.extra if one.kind == tiles.CONV else 0
            for name, margin in ((one.source, one.margin + reach), (one.residual, one.margin)):
                if name:
                    needed[name] = max(needed[name], margin)
        return max(one.margin for one in self.operations) + max(
            (one.extra for one in self.operations if one.kind == tiles.CONV), default=0
        )

    def _packed(self, row: int, low: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        counts, offsets, values, bias = [np.zeros(1, np.int64)], [], [], []
        for weight, shift, dilation, source in self._layers:
            if self.full:
                weight = np.full(weight.shape, 0.01, np.float32)
            output, channel, tap = np.nonzero(weight)
            stride = low if source == "low" else row
            counts.append(np.bincount(output, minlength=len(weight)))
            offsets.append((channel * stride + tap * dilation).astype(np.uint32))
            values.append(weight[output, channel, tap])
            bias.append(shift)
        empty = [np.zeros(0, np.float32)]
        return (
            np.cumsum(np.concatenate(counts)),
            np.concatenate(offsets or [np.zeros(0, np.uint32)]),
            np.concatenate(values or empty),
            np.concatenate(bias or empty).astype(np.float32),
        )


def _arrays(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer's weight, and its bias, zero if it has none."""
    weight = layer.weight.detach().float().cpu().numpy()
    transposed = isinstance(layer, nn.ConvTranspose1d)
    outputs = weight.shape[1] if transposed else weight.shape[0]
    if layer.bias is None:
        return weight, np.zeros(outputs, np.float32)
    return weight, layer.bias.detach().float().cpu().numpy()
