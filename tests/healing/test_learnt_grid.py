"""On a grid gradients go straight through, scales learn, and the voice is always on its grid."""

from __future__ import annotations

import pytest
import torch

from tests.healing.test_training import batches, training_of
from tests.pruning.test_rounding import grid_layers
from vits_prune import PruneSpec, prune
from vits_prune.healing.learnt_grid import LearntGrid, rounded
from vits_prune.healing.student import masks
from vits_prune.voices.grid import find_grid


@pytest.fixture(scope="module")
def pruned(tiny):
    return prune(tiny, PruneSpec(amount=0.5, scope="local", bits=4))


def test_the_weight_is_rounded_for_the_block_alone():
    weight = torch.nn.Parameter(torch.tensor([[0.5, -1.0, 0.0, 3.5], [0.25, 0.0, 1.75, 0.5]]))
    grid = LearntGrid.of(weight)
    assert grid.top == 7
    with torch.no_grad():
        weight += torch.tensor([[0.1, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.2]])
    free = weight.detach().clone()
    with rounded([grid]):
        assert weight.tolist() == [[0.5, -1.0, 0.0, 3.5], [0.25, 0.0, 1.75, 0.75]]
        weight.sum().backward()
    assert weight.equal(free)
    # Straight through, but for what is beyond the end of the grid.
    assert weight.grad.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_the_scale_has_the_gradient_of_lsq():
    weight = torch.nn.Parameter(torch.tensor([[0.5, -1.0, 3.5, 1.5]]))
    grid = LearntGrid.of(weight)
    with torch.no_grad():
        weight += torch.tensor([[0.1, -0.2, 1.0, 0.0]])
    with rounded([grid]):
        (weight * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    # d(weight)/d(log scale): rounded minus free inside, the rounded one at the end of the grid.
    slopes = 1 * (0.5 - 0.6) + 2 * (-1.0 + 1.2) + 3 * 3.5 + 4 * 0.0
    assert grid.log_scales.grad.item() == pytest.approx(slopes / (4 * 7) ** 0.5, rel=1e-5)


def test_weights_on_no_grid_have_none():
    assert LearntGrid.of(torch.randn(4, 5)) is None
    assert LearntGrid.of(torch.zeros(4, 5)) is None


def test_a_healed_voice_is_on_its_grid_with_the_zeros_in_place(tiny, pruned):
    training = training_of(pruned, tiny)
    for index, batch in enumerate(batches(tiny, 4)):
        training.step(batch, index / 4)
    voice, moved = training.voice(), 0
    for layer in grid_layers(tiny):
        found = find_grid(voice.model.get_parameter(layer.parameter).detach().contiguous().numpy())
        before = pruned.model.get_parameter(layer.parameter).detach()
        was = find_grid(before.contiguous().numpy())
        assert found is not None, layer.name
        top = 2 ** int(abs(was.numbers.astype(int)).max()).bit_length() - 1
        assert abs(found.numbers.astype(int)).max() <= top, layer.name
        moved += not voice.model.get_parameter(layer.parameter).equal(before)
    assert moved > 10
    weights = dict(voice.model.named_parameters())
    for name, mask in masks(pruned).items():
        assert not weights[name][mask == 0].any(), name


def test_scales_learn(tiny, pruned):
    training = training_of(pruned, tiny)
    before = {name: one.log_scales.detach().clone() for name, one in training._grids.items()}
    for index, batch in enumerate(batches(tiny, 3)):
        training.step(batch, index / 3)
    still = [name for name, one in training._grids.items() if one.log_scales.equal(before[name])]
    assert len(still) < len(before) / 10, still


def test_a_healing_on_a_grid_goes_on_from_its_state(tiny, pruned):
    whole, halves = training_of(pruned, tiny), training_of(pruned, tiny)
    drawn = batches(tiny, 4)
    for index in range(2):
        whole.step(drawn[index], index / 4)
        halves.step(drawn[index], index / 4)
    state = {name: tensor.detach().clone() for name, tensor in halves.state().items()}
    again = training_of(pruned, tiny)
    again.load(state)
    for index in (2, 3):
        whole.step(drawn[index], index / 4)
        again.step(drawn[index], index / 4)
    ours, theirs = again.voice(), whole.voice()
    for name, one in ours.model.named_parameters():
        assert one.equal(theirs.model.get_parameter(name)), name
