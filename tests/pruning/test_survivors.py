"""What became of each layer after structured pruning, held against the smaller voice itself."""

from __future__ import annotations

import pytest
import torch

from vits_prune import InputError, PruneSpec
from vits_prune.pruning import Shape
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.structured.cut import choice_for, cut, survivor

SHAPES = (
    Shape(decoder_width=0.5, ffn_width=0.5),
    Shape(encoder_layers=1),
    Shape(flows=1),
    Shape(branches=1),
    Shape(resblock_width=0.5, multiple=1),
    Shape(flows=1, wavenet_layers=1, encoder_layers=1, decoder_width=0.5),
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_layer_is_found_again_with_its_weights(tiny, shape):
    choice = choice_for(tiny, PruneSpec("structured", shape=shape, texts=("hi there",)))
    smaller, met = cut(tiny, choice), set()
    for layer in prunable_layers(tiny):
        found = survivor(tiny, smaller, choice, layer.name)
        if found is None:
            continue
        met.add(found.name)
        kept = tiny.model.get_parameter(layer.parameter)
        for dimension, indices in found.kept.items():
            kept = kept.index_select(dimension, torch.tensor(indices))
        now = smaller.model.get_parameter(f"{found.name}.weight")
        assert now.shape == kept.shape
        torch.testing.assert_close(
            now / now.norm(), kept / kept.norm()
        )  # where branches went, what reads their mean is scaled
    assert met == {layer.name for layer in prunable_layers(smaller)}


@pytest.mark.parametrize("how", [{"steps": 2}, {"amounts": (0.25, 0.5)}], ids=str)
def test_gradual_cuts_are_refused(tiny, how):
    with pytest.raises(InputError, match="one cut only"):
        choice_for(tiny, PruneSpec("structured", amount=0.5, texts=("hi there",), **how))


def test_by_the_importance_that_is_asked_for(tiny):
    kept = [
        choice_for(tiny, PruneSpec("structured", amount=0.5, importance=name))
        for name in ("sensitivity", "weight_norm")
    ]
    assert kept[0] != kept[1]
