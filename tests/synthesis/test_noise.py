from __future__ import annotations

import numpy as np

from vits_prune.synthesis.stages import draw_noise


def test_noise_does_not_depend_on_how_many_rows_are_drawn():
    few, many = draw_noise((7, 0), 1, 5, 6), draw_noise((7, 0), 1, 500, 6)
    assert np.array_equal(few, many[:5])
    assert many.dtype == np.float32
    assert abs(many.mean()) < 0.1
    assert abs(many.std() - 1) < 0.1
    for other in (
        draw_noise((8, 0), 1, 5, 6),
        draw_noise((7, 1), 1, 5, 6),
        draw_noise((7, 0), 0, 5, 6),
    ):
        assert not np.isin(other, few).any()
