"""Sums over overlapping windows are those over windows that were copied out one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vits_prune.pruning.layers import LayerMatrix, OverlapSums, overlap

SHAPES = [(3, 1, 1), (5, 1, 2), (5, 2, 4), (7, 12, 36), (3, 1, 0), (4, 3, 2)]
"""Taps, dilation, padding."""


@pytest.mark.parametrize(("taps", "dilation", "padding"), SHAPES)
@pytest.mark.parametrize("lengths", [(60,), (60, 33, 1)])
def test_sums_are_those_of_the_windows(taps, dilation, padding, lengths):
    torch.manual_seed(taps)
    module = nn.Conv1d(4, 3, taps, dilation=dilation, padding=padding)
    matrix, sums = LayerMatrix(module), OverlapSums(module, covariances=True)
    expected = torch.zeros(4 * taps, 4 * taps, dtype=torch.float64)
    total, windows = torch.zeros(4 * taps, dtype=torch.float64), 0
    for _ in range(2):
        inputs = torch.randn(len(lengths), 4, 80)
        usable = matrix.usable(inputs, None)
        usable &= torch.arange(usable.shape[1]) < torch.tensor(lengths)[:, None]
        sums.add(inputs, usable)
        at = usable.nonzero()
        found = matrix.windows(inputs, at[:, 0], at[:, 1]).double()
        expected += found.T @ found
        total += found.sum(0)
        windows += len(found)
    assert sums.windows == windows
    size = float(expected.diagonal().max())
    assert torch.allclose(sums.covariance().double(), expected, atol=1e-5 * size)
    assert torch.equal(sums.covariance(), sums.covariance().T)
    assert torch.allclose(sums.energy().double(), expected.diagonal(), atol=1e-5 * size)
    assert torch.allclose(sums.sums().double(), total, atol=1e-5 * size)


def test_energies_are_the_same_without_covariances():
    module, inputs = nn.Conv1d(4, 3, 3, padding=1), torch.randn(2, 4, 50)
    both = [OverlapSums(module, covariances) for covariances in (True, False)]
    for one in both:
        one.add(inputs, torch.ones(2, 50, dtype=torch.bool))
    assert torch.equal(both[0].energy(), both[1].energy())


@pytest.mark.parametrize(
    ("module", "positions", "expected"),
    [
        (nn.Conv1d(4, 4, 3, padding=1), 50, True),
        (nn.Conv1d(4, 4, 7, dilation=12, padding=36), 50, False),  # the ends would be most of it
        (nn.Conv1d(4, 4, 1), 50, False),
        (nn.Conv1d(4, 4, 3, groups=4), 50, False),
        (nn.Conv1d(4, 4, 3, stride=2), 50, False),
        (nn.ConvTranspose1d(4, 4, 4, stride=2), 50, False),
    ],
)
def test_where_it_is_of_use(module, positions, expected):
    assert overlap(LayerMatrix(module), torch.zeros(1, 4, positions)) is expected
