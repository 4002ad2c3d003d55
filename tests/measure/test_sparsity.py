"""Zeros are counted from the tensors."""

from __future__ import annotations

import torch

from vits_prune import PARTS, PruneSpec, layers, measure_sparsity, prune
from vits_prune.pruning.layers import prunable_layers


def test_counts_are_those_of_the_tensors(joe):
    pruned = prune(joe, PruneSpec(amount=0.5))
    sparsity, parameters = measure_sparsity(pruned), dict(pruned.model.named_parameters())
    assert [row.layer for row in sparsity.layers] == list(layers(joe))
    for row in sparsity.layers:
        assert row.zeros == int((parameters[row.layer.parameter] == 0).sum())
        assert row.sparsity == row.zeros / row.layer.weights
    weights = sum(layer.weights for layer in prunable_layers(joe))
    assert sparsity.weights() == weights == sum(sparsity.weights(part) for part in PARTS)
    assert sparsity.zeros() == round(0.5 * weights) == sum(sparsity.zeros(part) for part in PARTS)
    assert sparsity.overall == sparsity.zeros() / weights
    assert tuple(sparsity.parts) == PARTS
    for part, share in sparsity.parts.items():
        assert share == sparsity.zeros(part) / sum(
            layer.weights for layer in prunable_layers(joe, (part,))
        )


def test_zeros_outside_the_prunable_layers_do_not_count(tiny):
    name = "text_encoder.embed_tokens.weight"
    emptied = tiny.with_weights({name: torch.zeros_like(dict(tiny.model.named_parameters())[name])})
    assert measure_sparsity(emptied).zeros() == measure_sparsity(tiny).zeros()
    [row] = [row for row in measure_sparsity(emptied).layers if row.layer.parameter == name]
    assert row.sparsity == 1
    assert "look-up table" in row.note


def test_notes_tell_which_layers_were_left_alone(tiny):
    assert {row.note for row in measure_sparsity(tiny).layers if row.layer.prunable} == {""}
    rows = measure_sparsity(prune(tiny, PruneSpec(parts=("flow",)))).layers
    for row in rows:
        if row.layer.prunable:
            assert row.note == ("" if row.layer.part == "flow" else "its part was not chosen")
        else:
            assert row.note == row.layer.reason != ""


def test_protected_layers_say_why(tiny):
    found = {
        row.layer.name: row.note
        for row in measure_sparsity(
            prune(tiny, PruneSpec("activation", texts=("hi there",)))
        ).layers
    }
    assert (
        found["decoder.conv_post"] == "protected: it writes the waveform itself, with few weights"
    )
    assert found["duration_predictor.conv_pre"].startswith("protected: it sets the rhythm")
    assert found["decoder.conv_pre"] == ""
    own = prune(tiny, PruneSpec(protect=("decoder.conv_pre",)))
    notes = {row.layer.name: row.note for row in measure_sparsity(own).layers}
    assert notes["decoder.conv_pre"] == "protected: as asked for"
    assert notes["decoder.conv_post"] == ""
    twice = prune(own, PruneSpec(amount=0.2))
    assert {row.layer.name: row.note for row in measure_sparsity(twice).layers}[
        "decoder.conv_pre"
    ] == ""
