"""What a channel or block is judged by: each criterion does what it says, for every kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tests.pruning.conftest import KINDS, SENTENCES, in_turn
from vits_prune import PruneSpec, prune
from vits_prune.pruning import Shape
from vits_prune.pruning.calibration import Statistics
from vits_prune.pruning.layers import Layer, LayerMatrix, prunable_layers
from vits_prune.pruning.spec import IMPORTANCES
from vits_prune.pruning.structured.couplings import groups
from vits_prune.pruning.structured.cut import chosen
from vits_prune.pruning.structured.importance import (
    Reader,
    measure_importance,
    rank,
    weight_norm,
)

SHAPE = Shape(
    decoder_width=0.5,
    ffn_width=0.5,
    branches=1,
    encoder_layers=1,
    flows=1,
    wavenet_layers=1,
    multiple=4,
)


def spec_of(importance, **options):
    return PruneSpec("structured", importance=importance, texts=SENTENCES, **options)


@pytest.mark.parametrize(("kind", "importance"), in_turn(KINDS, IMPORTANCES))
def test_every_group_gets_a_number_a_member(families, kind, importance):
    voice = families[kind]
    wanted = groups(voice)
    found = measure_importance(voice, spec_of(importance), wanted)
    assert set(found) == {group.name for group in wanted}
    for group in wanted:
        assert found[group.name].shape == (group.size,)
        assert np.isfinite(found[group.name]).all()
        assert (found[group.name] >= 0).all()
        assert found[group.name].max() > 0
    again = measure_importance(voice.with_weights({}), spec_of(importance), wanted)
    assert all(np.array_equal(found[name], again[name]) for name in found)


@pytest.mark.parametrize("importance", [name for name in IMPORTANCES if name != "sensitivity"])
def test_the_criterion_chooses(families, importance):
    voice = families["plain"]
    shape = Shape(decoder_width=0.5, ffn_width=0.5, multiple=4)
    kept = {name: chosen(voice, spec_of(name), shape) for name in (importance, "sensitivity")}
    assert kept[importance].keys() == kept["sensitivity"].keys()
    assert kept[importance] != kept["sensitivity"]


@pytest.mark.parametrize("kind", ["plain", "piper-high"])
def test_the_same_from_the_recipe(families, kind):
    voice, spec = (
        families[kind],
        spec_of("second_order", shape=dataclasses.replace(SHAPE, flows=None)),
    )
    pruned = prune(voice, spec)
    again = prune(voice, PruneSpec.from_dict(pruned.recipe["pruned"][0]))
    assert all(
        torch.equal(one, two)
        for one, two in zip(pruned.model.parameters(), again.model.parameters(), strict=True)
    )


def heard(layer, inputs):
    """A layer's statistics of these windows, [windows, columns], with a 1 appended."""
    found = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    statistics = Statistics(LayerMatrix(layer))
    statistics.add(found)
    return statistics


class One(nn.Module):
    """A model of one layer, enough of a voice for `Reader`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def reader(layer, inputs):
    voice = type("Voice", (), {"model": One(layer)})()
    return Reader(
        voice,
        Layer("layer", "decoder", "", tuple(layer.weight.shape), 0, "layer.weight"),
        heard(layer, inputs),
        1.0,
    )


def test_what_others_can_stand_in_for_goes_first():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 6, generator=random)
    inputs[:, 4] = inputs[:, 1] + 0.01 * torch.randn(
        4000, generator=random
    )  # one and four say the same
    layer = nn.Linear(6, 5)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 6, generator=random))
        layer.weight[:, [1, 4]] *= 3  # each of them alone is the most heard
    scores = rank([reader(layer, inputs)], 6)
    first, last = (scores[[1, 4]].min(), scores[[1, 4]].max())
    assert first < 0.1 * scores[[0, 2, 3, 5]].min()
    assert last == scores.max()


def test_the_loss_is_that_of_least_squares():
    random = torch.Generator().manual_seed(1)
    layer = nn.Conv1d(5, 4, 3)
    inputs = torch.randn(3000, 15, generator=random) @ (
        torch.eye(15) + 0.2 * torch.randn(15, 15, generator=random)
    )
    before = inputs @ layer.weight.detach().reshape(4, -1).T
    one, paid = reader(layer, inputs), 0.0
    for gone in ([2], [0, 2]):
        stay = [column for column in range(15) if column // 3 not in gone]
        left = torch.cat([inputs[:, stay], torch.ones(3000, 1)], dim=1).double()
        by_hand = (
            (before.double() - left @ torch.linalg.lstsq(left, before.double()).solution)
            .square()
            .mean(0)
            .sum()
        )
        energy = float(before.square().mean(0).sum())
        paid += one.losses()[gone[0]]
        assert paid == pytest.approx(float(by_hand) / energy, rel=0.1)
        one.remove(np.array([gone[0]]))


def test_activation_is_the_energy_that_is_missing(families):
    """Held against the outputs themselves, where the channel is zero."""
    voice = families["plain"]
    group = next(group for group in groups(voice) if group.lever == "ffn_width")
    found = measure_importance(voice, spec_of("activation"), [group])[group.name]
    module = voice.model.get_submodule(group.readers[0])
    assert found.argmax() != 0 or len(found) == 1
    quieter = voice.with_weights(
        {
            f"{group.readers[0]}.weight": module.weight.detach()
            .clone()
            .index_fill_(1, torch.tensor([3]), 0.0)
        }
    )
    again = measure_importance(quieter, spec_of("activation"), [group])[group.name]
    assert again[3] == 0
    np.testing.assert_allclose(np.delete(again, 3), np.delete(found, 3), rtol=1e-5)


def test_weight_norm_by_hand(families):
    voice = families["plain"]
    group = next(group for group in groups(voice) if group.lever == "ffn_width")
    feed = voice.model.text_encoder.encoder.layers[0].feed_forward
    by_hand = (
        feed.conv_1.weight[5].square().sum()
        + feed.conv_1.bias[5] ** 2
        + feed.conv_2.weight[:, 5].square().sum()
    ).sqrt()
    assert weight_norm(voice, group)[5] == pytest.approx(float(by_hand), rel=1e-5)


def test_layers_that_are_read_are_prunable(families):
    for voice in families.values():
        names = {layer.name for layer in prunable_layers(voice)}
        assert {name for group in groups(voice) for name in group.readers} <= names
