"""A tensor says itself whether it lies on a grid, and on which."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vits_prune.voices.grid import along, find_grid


def significant(scales):
    """With 8 significant bits, as rounding makes them."""
    return (scales.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(3, 5), (1, 2), (4, 3, 7), (6, 2, 1), (2, 9, 4)]),
    axis=st.sampled_from([0, 1]),
    top=st.sampled_from([1, 3, 7, 15, 127]),
    size=st.floats(1e-20, 1e10),
)
def test_a_grid_is_found_to_the_bit(seed, shape, axis, top, size):
    random = np.random.default_rng(seed)
    axis = axis if len(shape) > 2 else 0
    numbers = random.integers(-top, top + 1, shape).astype(np.float32)
    scales = significant(size * random.uniform(0.5, 50, shape[axis]))
    values = numbers * along(scales, axis, len(shape))
    found = find_grid(values)
    if np.count_nonzero(values) <= shape[axis]:
        return
    assert found is not None
    assert np.array_equal(found.values, values)
    assert found.values.dtype == np.float32
    assert abs(found.numbers.astype(int)).max() <= top


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32),
        np.full((3, 4), np.nan, np.float32),
        np.float32([[1, 2], [np.inf, 1]]),
        np.float32([[128, 1], [1, 1]]),  # 129 places and more need a ninth bit
        np.float32([1, 2, 3]),
        np.float32([[1], [2]]),
        np.float64([[1, 2], [3, 4]]),
        np.float32([[1e-20, 1e20]]),
        np.float32([[0.3, 0], [0, 0.7]]),
        np.zeros((3, 0, 2), np.float32),
    ],
)
def test_other_tensors_are_on_none(values):
    assert find_grid(values) is None


def test_a_row_of_zeros_has_any_scale():
    found = find_grid(np.float32([[0, 0, 0], [0.5, -1.5, 1]]))
    assert found.numbers.tolist() == [[0, 0, 0], [1, -3, 2]]
    assert found.scales.tolist() == [1.0, 0.5]
