"""Weights on a grid: whole numbers times one scale for each output channel.

A weight that `PruneSpec(bits=...)` rounded is such a product, exact in float32. So the tensor
itself says which grid it lies on: no record is needed beside it, and any copy is still on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST = 127
"""Of the whole numbers: a grid has at most 8 bits."""
_MANTISSA = 24
_CLOSE = 7
"""Bits by which the exponents of two weights on one row of a grid can differ."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A tensor taken apart."""

    numbers: np.ndarray
    """int8, in the tensor's shape."""
    scales: np.ndarray
    """float32, one for each output channel; 1 where all its weights are zero."""
    axis: int
    """Of the output channels."""

    @property
    def values(self) -> np.ndarray:
        """The tensor, float32."""
        return self.numbers * along(self.scales, self.axis, self.numbers.ndim)


def along(scales: np.ndarray, axis: int, dimensions: int) -> np.ndarray:
    """Return scales in a shape that multiplies a tensor along one of its axes."""
    return scales.reshape([-1 if one == axis else 1 for one in range(dimensions)])


def find_grid(values: np.ndarray) -> Grid | None:
    """Return the coarsest grid that a float32 tensor lies on, to the bit; None if it is on none.

    The output channels are along the first axis, or along the second as in a ConvTranspose1d.
    """
    if values.ndim < 2 or values.dtype != np.float32 or not np.isfinite(values).all():
        return None
    axes = (0, 1) if values.ndim > 2 else (0,)
    found = [grid for axis in axes if (grid := _along(values, axis))]
    return min(found, key=lambda grid: int(np.abs(grid.numbers).max()), default=None)


def _along(values: np.ndarray, axis: int) -> Grid | None:
    """Return the grid whose scales are along one axis."""
    rows = np.moveaxis(values, axis, 0)
    shape = rows.shape
    if np.count_nonzero(values) <= len(rows):  # one in a row is on any grid
        return None
    rows = rows.reshape(len(rows), -1)
    if _steps(rows[:1]) is None or (scales := _steps(rows)) is None:
        return None
    numbers = np.moveaxis((rows / scales[:, None]).astype(np.int8).reshape(shape), 0, axis)
    return Grid(np.ascontiguousarray(numbers), scales, axis)


def _steps(rows: np.ndarray) -> np.ndarray | None:
    """Return the greatest common divisor of each row, None if it fits into a weight too often."""
    mantissas, exponents = np.frexp(rows)
    zero = rows == 0
    lowest = np.where(zero, np.iinfo(exponents.dtype).max, exponents).min(axis=1, keepdims=True)
    apart = np.where(zero, 0, exponents - lowest)
    if apart.max(initial=0) > _CLOSE:
        return None
    whole = (mantissas * (1 << _MANTISSA)).astype(np.int64) << apart
    divisors = np.gcd.reduce(whole, axis=1)
    if (np.abs(whole).max(axis=1, initial=0) > LARGEST * divisors).any():
        return None
    empty = divisors == 0
    steps = np.ldexp(divisors.astype(np.float64), np.where(empty, 0, lowest[:, 0]) - _MANTISSA)
    return np.where(empty, 1.0, steps).astype(np.float32)
