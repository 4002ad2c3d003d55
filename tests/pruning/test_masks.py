"""Exactly as many zeros as asked, in every scope, above every floor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vits_prune import InputError
from vits_prune.pruning.masks import most_zeros, pattern_mask, share_out, smallest
from vits_prune.pruning.matrix import LayerMatrix

SIZES = {"a": 1, "b": 10, "c": 37, "d": 400}


def scores_of(sizes, seed=0, levels=None):
    random = np.random.default_rng(seed)
    drawn = {
        name: random.random(size, dtype=np.float32) * (place + 1)
        for place, (name, size) in enumerate(sizes.items())
    }
    return (
        drawn
        if levels is None
        else {name: np.floor(one * levels).astype(np.float32) for name, one in drawn.items()}
    )


@pytest.mark.parametrize("scope", ["local", "global", "sensitivity"])
@pytest.mark.parametrize("levels", [None, 2, 0], ids=["different", "ties", "all equal"])
@pytest.mark.parametrize("zeros", [0, 1, 7, 224, 447, 448])
def test_the_total_is_exact(scope, levels, zeros):
    scores = scores_of(SIZES, levels=levels)
    found = share_out(scores, zeros, scope)
    assert sum(found.values()) == zeros
    assert found.keys() == scores.keys()
    assert all(0 <= found[name] <= size for name, size in SIZES.items())


@pytest.mark.parametrize("zeros", range(0, 449, 32))
def test_local_is_within_one_of_the_share(zeros):
    for name, count in share_out(scores_of(SIZES), zeros, "local").items():
        assert abs(count - zeros * SIZES[name] / 448) < 1


@pytest.mark.parametrize("zeros", [5, 100, 300])
def test_global_is_one_ranking(zeros):
    scores = scores_of(SIZES)
    threshold = np.sort(np.concatenate(list(scores.values())))[zeros - 1]
    assert share_out(scores, zeros, "global") == {
        name: int((one <= threshold).sum()) for name, one in scores.items()
    }


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("floor", [0.1, 0.3, 0.5, 0.9])
def test_floors_hold_and_others_make_up(scope, floor):
    scores = scores_of(SIZES)
    most = {name: most_zeros(size, floor) for name, size in SIZES.items()}
    assert all(SIZES[name] - count >= floor * SIZES[name] - 1e-6 for name, count in most.items())
    for zeros in (1, sum(most.values()) // 2, sum(most.values())):
        found = share_out(scores, zeros, scope, floor)
        assert sum(found.values()) == zeros
        assert all(found[name] <= most[name] for name in SIZES)


def test_a_floor_is_no_less_than_it_says():
    assert [most_zeros(10, floor) for floor in (0, 0.3, 0.9, 0.95, 1)] == [10, 7, 1, 0, 0]
    assert most_zeros(1000, 0.7) == 300


def test_layers_at_their_floor_give_to_the_others_in_order():
    scores = {"low": np.zeros(10, np.float32), "high": np.arange(1, 21, dtype=np.float32)}
    assert share_out(scores, 8, "global") == {"low": 8, "high": 0}
    assert share_out(scores, 8, "global", 0.5) == {"low": 5, "high": 3}


@pytest.mark.parametrize("scope", ["local", "global"])
def test_more_than_there_is(scope):
    scores = {"large": np.zeros(100, np.float32), "small": np.ones(2, np.float32)}
    assert share_out(scores, 100, scope, 0.5) == {"large": 50, "small": 1}
    assert share_out(scores, 500, scope) == {"large": 100, "small": 2}


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_the_smallest_and_of_equal_ones_the_first(count):
    scores = torch.tensor([[2.0, 1.0, 1.0], [0.0, 1.0, 3.0]])
    order = [3, 1, 2, 4, 0, 5]
    assert sorted(smallest(scores, count).flatten().nonzero().flatten().tolist()) == sorted(
        order[:count]
    )


PATTERNED = {
    "linear": nn.Linear(8, 3),
    "convolution": nn.Conv1d(8, 3, 5),
    "upsampling": nn.ConvTranspose1d(8, 3, 4, 2, padding=1),
    "uneven upsampling": nn.ConvTranspose1d(8, 3, 7, 4),
}


@pytest.mark.parametrize("kind", PATTERNED)
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 2), (1, 4), (3, 8)])
def test_patterns_leave_so_many_of_so_many_input_channels(kind, keep, of):
    module = PATTERNED[kind]
    matrix, scores = LayerMatrix(module), module.weight.detach().abs()
    mask = matrix.back(pattern_mask(matrix.of(scores), matrix, (keep, of), "layer"))
    assert mask.dtype == torch.bool
    channels = 0 if isinstance(module, nn.ConvTranspose1d) else 1
    groups, values = ((one.movedim(channels, -1)).reshape(-1, of) for one in (mask, scores))
    assert bool((groups.sum(1) == of - keep).all())
    assert bool(
        (
            values.masked_fill(groups, 9).min(1).values
            >= values.masked_fill(~groups, -9).max(1).values
        ).all()
    )


def test_a_pattern_that_does_not_fit_names_the_layer():
    matrix = LayerMatrix(nn.Conv1d(6, 3, 5))
    with pytest.raises(
        InputError, match=r"flow\.x has 6 input channels, which cannot be grouped by 4"
    ) as error:
        pattern_mask(torch.zeros(matrix.shape), matrix, (2, 4), "flow.x")
    assert str(error.value).endswith(".")
