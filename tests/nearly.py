"""Equality up to the rounding of float32, for what was computed twice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

ROUNDING = 1e-5
"""Relative and absolute. The last digits of float32 sums depend on the processor and on where
tensors lie in memory: two renderings by one voice were seen 1.6e-6 apart. Other voices, texts and
seeds change samples by more than 0.01, and a step of 16-bit sound is 3e-5."""


def nearly(one: Any, other: Any, rounding: float = ROUNDING) -> bool:
    """Return whether two nested values are equal but for rounding.

    Whole numbers and texts are equal, samples of 16 bits differ by at most 1.
    """
    if isinstance(one, torch.Tensor):
        one, other = one.detach().numpy(), other.detach().numpy()
    if isinstance(one, np.ndarray):
        one, other = np.asarray(one), np.asarray(other)
        if one.shape != other.shape:
            return False
        if one.dtype == np.int16:
            return bool(np.all(np.abs(one.astype(int) - other) <= 1))
        if one.dtype.kind == "f":
            return np.allclose(one, other, rounding, rounding, equal_nan=True)
        return np.array_equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(nearly(one[k], other[k], rounding) for k in one)
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(nearly(*pair, rounding) for pair in pairs)
    if isinstance(one, float) and isinstance(other, int | float):
        same = math.isclose(one, other, rel_tol=rounding, abs_tol=rounding)
        return same or (math.isnan(one) and math.isnan(other))
    return bool(one == other)
