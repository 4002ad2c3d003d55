import pytest
import torch
from torch import nn

from vits_prune.healing.optimizer import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 16), (12, 80), (80, 12)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    made = orthogonal(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ made @ right.T
    assert inside.diagonal().min() > 0.6
    assert inside.diagonal().max() < 1.3
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-3, rtol=0)


def test_no_gradient_moves_nothing():
    assert torch.equal(orthogonal(torch.zeros(8, 24)), torch.zeros(8, 24))


def _stepped(optimizer_of, weight, steps=3):
    weight = nn.Parameter(weight.clone())
    optimizer = optimizer_of(weight)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=random)
        optimizer.step()
        optimizer.zero_grad()
    return weight.detach()


def _adamw(weight):
    return torch.optim.AdamW([weight], 1e-3, (0.9, 0.99), weight_decay=0.0, fused=True)


@pytest.mark.parametrize("shape", [(24,), (4, 24, 3), (24, 1, 3)])
def test_vectors_and_thin_weights_are_left_to_adamw(shape):
    start = torch.ones(shape)
    ours = _stepped(lambda one: Muon([{"params": [one]}], 1e-3, (0.9, 0.99), True, [one]), start)
    assert torch.equal(ours, _stepped(_adamw, start))


def test_weights_that_are_not_chosen_are_left_to_adamw():
    start = torch.ones(16, 8, 3)
    ours = _stepped(lambda one: Muon([{"params": [one]}], 1e-3, (0.9, 0.99), True, []), start)
    assert torch.equal(ours, _stepped(_adamw, start))


def test_a_step_has_its_size_whatever_the_gradient():
    start = torch.zeros(64, 64, 3)
    ours = _stepped(lambda one: Muon([{"params": [one]}], 1e-3, (0.9, 0.99), True, [one]), start, 1)
    assert float(ours.square().mean().sqrt()) == pytest.approx(0.2e-3, rel=0.3)
