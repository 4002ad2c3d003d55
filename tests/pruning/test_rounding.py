"""Rounded weights lie on grids of the bits asked for, and err less than by rounding alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tests.pruning.test_second_order import error, problem, solved
from vits_prune import InputError, PruneSpec, prune
from vits_prune.pruning import prune_steps
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.rounding import best_scales, largest_number, nearest, on_grid, significant
from vits_prune.voices.grid import find_grid

QUICK = ("A cup of tea.", "The boats lay still.")


def numbers_of(voice, layer):
    return find_grid(voice.model.get_parameter(layer.parameter).detach().contiguous().numpy())


def grid_layers(voice):
    """The layers of more than one weight an output channel."""
    return [one for one in prunable_layers(voice) if one.weights > max(one.shape[:2])]


def delicate(layer):
    return layer.part in ("duration_predictor", "decoder")


@pytest.mark.parametrize("method", ["magnitude", "second_order"])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_every_weight_is_on_a_grid_of_its_channel(tiny, method, bits):
    spec = PruneSpec(method, "local", 0.5, bits=bits, texts=QUICK)
    pruned = prune(tiny, spec)
    for layer in grid_layers(tiny):
        found = numbers_of(pruned, layer)
        assert found is not None, layer.name
        top = largest_number(8 if delicate(layer) else bits)
        assert abs(found.numbers.astype(int)).max() <= top, layer.name
        transposed = isinstance(tiny.model.get_submodule(layer.name), nn.ConvTranspose1d)
        assert found.axis == int(transposed), layer.name
    assert pruned.recipe["pruned"][-1]["bits"] == bits


def test_zeros_stay_zeros_and_the_original_stays_as_it_is(tiny):
    plain = PruneSpec("magnitude", "local", 0.5)
    before = {name: one.clone() for name, one in tiny.model.named_parameters()}
    zeros, rounded = prune(tiny, plain), prune(tiny, dataclasses.replace(plain, bits=5))
    kept = dict(rounded.model.named_parameters())
    for layer in prunable_layers(tiny):
        was = zeros.model.get_parameter(layer.parameter)
        assert not kept[layer.parameter][was == 0].any()
    assert all(one.equal(before[name]) for name, one in tiny.model.named_parameters())


def test_layers_protected_by_name_are_not_rounded(tiny):
    spec = PruneSpec(amount=0.2, bits=4, protect=("decoder",))
    pruned = prune(tiny, spec)
    for name, one in pruned.model.named_parameters():
        if name.startswith("decoder."):
            assert one.equal(tiny.model.get_parameter(name)), name


def test_rounding_alone_is_a_pruning(tiny):
    spec = PruneSpec(amount=0.0, bits=8)
    assert not spec.idle
    pruned = prune(tiny, spec)
    assert all(numbers_of(pruned, layer) is not None for layer in grid_layers(tiny))


def test_steps_are_rounded_at_the_end_alone(tiny):
    spec = PruneSpec(amount=0.4, steps=2, bits=4)
    (_, first), (_, last) = prune_steps(tiny, spec)
    some = prunable_layers(tiny, ("flow",))[0]
    assert numbers_of(first, some) is None
    assert numbers_of(last, some) is not None


def test_structured_pruning_rounds_what_stays(tiny):
    pruned = prune(tiny, PruneSpec("structured", amount=0.2, importance="weight_norm", bits=8))
    assert all(numbers_of(pruned, layer) is not None for layer in grid_layers(pruned))


@pytest.mark.parametrize("bits", [2, 7, 16, -1, 4.5, "8"])
def test_other_bits_are_refused(bits):
    with pytest.raises(InputError, match="bits"):
        PruneSpec(bits=bits)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [5, 4, 3])
def test_descent_errs_less_than_rounding_the_solution(bits, bias):
    target, covariance, matrix, _ = problem(24, 40, bias=bias)
    count = 24 * 40 // 2
    plain = solved(target, covariance, matrix, count)
    found = solved(target, covariance, matrix, count, bits=bits)
    weights, top = plain[:, :40], largest_number(bits)
    scales = best_scales(weights, top, covariance.diagonal()[:40])
    simple = torch.cat([on_grid(weights, scales, top) * scales, plain[:, 40:]], 1)
    least, ours, theirs = (error(one, target, covariance) for one in (plain, found, simple))
    assert ours - least < 0.9 * (theirs - least)
    assert not found[:, :40][weights == 0].any()


def test_the_best_scale_clips_an_outlier():
    random = torch.Generator().manual_seed(0)
    rows = torch.cat([torch.randn(1, 1000, generator=random), torch.tensor([[4.5]])], 1)
    scales = best_scales(rows, 3)
    assert scales < rows.abs().max() / 3
    assert torch.equal(scales, significant(scales))


def test_no_bits_leave_a_weight_alone():
    weight = torch.randn(3, 4)
    assert nearest(weight, nn.Linear(4, 3), 0) is weight
