"""Noise that comes from a key alone: one stream a key and purpose (numpy's Philox generator), drawn row by row."""

from __future__ import annotations

import numpy as np

DURATION_NOISE, PRIOR_NOISE, POSTERIOR_NOISE = 0, 1, 2
"""Purposes of noise: no two share a stream."""


def draw_noise(key: int | tuple[int, ...], purpose: int, rows: int, columns: int) -> np.ndarray:
    """Standard normal float32 [rows, columns], the first rows the same whatever the number of rows.

    Args:
        key: what it is drawn for, such as (seed, number of the sentence).
        purpose: DURATION_NOISE, PRIOR_NOISE or POSTERIOR_NOISE.
        rows, columns: of the array.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key, spawn_key=(purpose,))))
    return generator.standard_normal((rows, columns), dtype=np.float32)
