"""The layer's problem: exactly the zeros asked for, and an error that simpler ways do not beat."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from tests.pruning.conftest import in_turn
from vits_prune.pruning import second_order
from vits_prune.pruning.layers import LayerMatrix
from vits_prune.pruning.second_order import LayerProblem, damped


def problem(rows, columns, seed=0, *, bias=False, windows=None, correlated=True):
    """(target, covariance, matrix, windows' inputs) of a random layer."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(windows or 40 * columns, columns, generator=random)
    if correlated:
        inputs = inputs @ torch.randn(columns, columns, generator=random) + 0.5 * torch.randn(
            columns, generator=random
        )
    inputs = inputs * (0.1 + torch.rand(columns, generator=random))
    if bias:
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    target = torch.randn(rows, columns + bias, generator=random)
    return (
        target,
        damped(inputs.T @ inputs / len(inputs)),
        LayerMatrix(nn.Linear(columns, rows, bias=bias)),
        inputs,
    )


def solved(target, covariance, matrix, count, closed=None, **options):
    closed = torch.zeros(matrix.shape, dtype=torch.bool) if closed is None else closed
    return LayerProblem(target, covariance, closed, matrix, count, **options).solve()


def error(found, target, covariance):
    change = (found - target).double()
    return float((change @ covariance.double() * change).sum())


def without_smallest(scores, target, count):
    kept = torch.ones(target.numel(), dtype=torch.bool)
    kept[scores.flatten().argsort()[:count]] = False
    return target * kept.reshape(target.shape)


def best_on(kept, target, covariance):
    """Least squares for one row on its support, by normal equations."""
    found = torch.zeros_like(target)
    if kept.any():
        gram = covariance.double()
        found[kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ target.double()).float()
    return found


def test_no_zeros_is_the_target():
    target, covariance, matrix, _ = problem(8, 12)
    assert torch.allclose(solved(target, covariance, matrix, 0), target, atol=1e-4)


@pytest.mark.parametrize(
    ("seed", "share", "rows", "columns"),
    [
        (seed, share, *size)
        for seed, share, size in in_turn(
            range(6), [0.1, 0.3, 0.5, 0.7, 0.9, 0.97], [(12, 20), (5, 48)]
        )
    ],
)
def test_never_worse_than_simpler_ways(rows, columns, share, seed):
    target, covariance, matrix, _ = problem(rows, columns, seed)
    count = round(share * target.numel())
    found = solved(target, covariance, matrix, count)
    assert int((found == 0).sum()) == count
    mine = error(found, target, covariance)
    assert mine <= error(without_smallest(target.abs(), target, count), target, covariance)
    assert mine <= error(
        without_smallest(target.abs() * covariance.diagonal().sqrt(), target, count),
        target,
        covariance,
    )


def test_close_to_the_best_there_is():
    exact = 0
    for seed, count in itertools.product(range(20), (1, 2, 3, 4, 5)):
        target, covariance, matrix, _ = problem(1, 6, seed)
        choices = (
            torch.tensor([i not in gone for i in range(6)])
            for gone in itertools.combinations(range(6), count)
        )
        best = min(
            error(best_on(kept, target[0], covariance)[None], target, covariance)
            for kept in choices
        )
        mine = error(solved(target, covariance, matrix, count), target, covariance)
        assert (
            best - 1e-6 <= mine <= best + 0.2 * error(torch.zeros_like(target), target, covariance)
        ), (seed, count)
        exact += mine <= 1.001 * best + 1e-6
    assert exact >= 75


def test_uncorrelated_inputs_have_an_exact_answer():
    target, _, matrix, _ = problem(10, 16)
    covariance = torch.diag(torch.linspace(0.1, 2, 16))
    found = solved(target, covariance, matrix, 80)
    assert torch.allclose(
        found, without_smallest(target.abs() * covariance.diagonal().sqrt(), target, 80), atol=1e-5
    )


@pytest.mark.parametrize("seed", range(3))
def test_survivors_are_the_least_squares_solution(seed):
    target, covariance, matrix, inputs = problem(6, 10, seed, correlated=False)
    found = solved(target, covariance, matrix, 30)
    for row in range(6):
        kept = found[row] != 0
        # The damping is that many more windows, one for each input alone.
        extra = torch.diag(
            (covariance - inputs.T @ inputs / len(inputs)).diagonal().clamp(min=0).sqrt()
        )
        rows = torch.cat([inputs / len(inputs) ** 0.5, extra])
        expected = torch.linalg.lstsq(
            rows[:, kept].double(), (rows @ target[row]).double()[:, None]
        ).solution[:, 0]
        assert torch.allclose(found[row, kept].double(), expected, atol=1e-3)


def test_what_is_closed_stays_zero_and_counts():
    target, covariance, matrix, _ = problem(12, 20)
    closed = torch.rand(12, 20, generator=torch.Generator().manual_seed(9)) < 0.4
    for share in (0.5, 0.8):
        count = round(share * 240)
        found = solved(target, covariance, matrix, count, closed)
        assert bool((found[closed] == 0).all())
        assert int((found == 0).sum()) == count
    fewer = solved(target, covariance, matrix, 10, closed)
    assert torch.equal(fewer == 0, closed)


@pytest.mark.parametrize("share", [0.5, 0.99, 1.0])
def test_the_bias_is_never_zeroed_and_makes_up_for_what_went(share):
    target, covariance, matrix, inputs = problem(12, 20, bias=True)
    target[:, -1] = 1e-6
    found = solved(target, covariance, matrix, round(share * 240))
    assert found.shape == (12, 21)
    assert int((found[:, :-1] == 0).sum()) == round(share * 240)
    assert bool((found[:, -1] != 0).all())
    if share == 1.0:
        assert torch.allclose(
            found[:, -1], (inputs @ target.T).mean(0), atol=0.05 * float((inputs @ target.T).std())
        )


@pytest.mark.parametrize("share_closed", [0.0, 0.7])
def test_patterns(share_closed):
    target, covariance, matrix, _ = problem(12, 20)
    closed = torch.rand(12, 20, generator=torch.Generator().manual_seed(9)) < share_closed
    found = solved(target, covariance, matrix, None, closed, neighbours=(2, 4))
    zeros = (found == 0).reshape(12, 5, 4).sum(2)
    assert bool((zeros >= 2).all())
    assert share_closed or bool((zeros == 2).all())
    assert bool((found[closed] == 0).all())
    pattern = target.abs().reshape(12, 5, 4).argsort(2).argsort(2).reshape(12, 20) < 2
    assert share_closed or error(found, target, covariance) < error(
        target.masked_fill(pattern, 0), target, covariance
    )


@pytest.mark.parametrize("windows", [1, 3, 10])
def test_fewer_windows_than_inputs(windows):
    target, covariance, matrix, inputs = problem(6, 30, windows=windows)
    found = solved(target, covariance, matrix, 90)
    assert bool(torch.isfinite(found).all())
    assert int((found == 0).sum()) == 90
    assert error(found, target, covariance) <= error(
        without_smallest(target.abs(), target, 90), target, covariance
    )
    assert float((inputs @ (found - target).T).square().mean()) < 0.2 * float(
        (inputs @ target.T).square().mean()
    )


def test_inputs_that_are_never_there():
    target, _, matrix, inputs = problem(6, 10)
    for dead, count in ((inputs * (torch.arange(10) > 2), 18), (inputs * 0, 30)):
        found = solved(target, damped(dead.T @ dead / len(dead)), matrix, count)
        assert bool(torch.isfinite(found).all())
        assert int((found == 0).sum()) == count
        assert count == 30 or int((found[:, :3] == 0).sum()) > 12


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("settled", [1e-3, 1.0], ids=["all rounds", "the first rounds"])
def test_large_layers_lose_exactly_as_many(share, settled, monkeypatch):
    target, covariance, matrix, _ = problem(40, 60)
    count = round(share * 2400)
    expected = error(solved(target, covariance, matrix, count), target, covariance)
    monkeypatch.setattr(second_order, "SETTLED", settled)
    monkeypatch.setattr(second_order, "SAMPLE", 100)
    closed = torch.rand(40, 60, generator=torch.Generator().manual_seed(9)) < 0.2
    found = solved(target, covariance, matrix, count)
    assert int((found == 0).sum()) == count
    assert error(found, target, covariance) <= (1.5 if settled < 1 else 5) * expected
    found = solved(target, covariance, matrix, count, closed)
    assert int((found == 0).sum()) == count
    assert bool((found[closed] == 0).all())


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_units_do_not_matter(scale):
    target, covariance, matrix, _ = problem(12, 20)
    plain, scaled = (
        solved(target, covariance, matrix, 120),
        solved(target * scale, covariance * scale**2, matrix, 120),
    )
    assert torch.equal(plain == 0, scaled == 0)
    assert torch.allclose(scaled / scale, plain, atol=1e-3)


def test_the_same_twice():
    target, covariance, matrix, _ = problem(12, 20)
    assert torch.equal(
        solved(target, covariance, matrix, 120), solved(target, covariance, matrix, 120)
    )
