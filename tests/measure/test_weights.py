"""Zeros, sizes and histograms, counted from tensors and read off real files."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vits_prune import PARTS, PruneSpec, layers, measure_size, measure_sparsity, prune
from vits_prune.measure import measure_weights
from vits_prune.pruning import Shape
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.voices.sparse_file import encode


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


@pytest.mark.parametrize("amount", [0, 0.5])
def test_the_sizes_of_real_files(tiny, tmp_path, amount):
    voice = prune(tiny, PruneSpec(amount=amount))
    size, tensors = measure_size(voice), dict(voice.model.named_parameters())
    save_file({name: tensor.data for name, tensor in tensors.items()}, tmp_path / "fp32")
    save_file({name: tensor.data.half() for name, tensor in tensors.items()}, tmp_path / "fp16")
    assert size.dense_fp32_bytes == (tmp_path / "fp32").stat().st_size
    assert size.dense_fp16_bytes == (tmp_path / "fp16").stat().st_size
    assert size.sparse_fp32_bytes == len(encode(tensors))
    assert size.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert size.nonzero_parameters == sum(int((tensor != 0).sum()) for tensor in tensors.values())
    assert size.memory_bytes == 4 * size.parameters


def test_what_pruning_does_to_the_real_voice(joe):
    before, after = measure_size(joe), measure_size(prune(joe, PruneSpec(amount=0.5)))
    for name in ("parameters", "dense_fp32_bytes", "dense_fp16_bytes", "memory_bytes"):
        assert getattr(before, name) == getattr(after, name)
    assert after.sparse_fp32_bytes < 0.55 * after.dense_fp32_bytes
    assert after.sparse_fp32_bytes < 0.6 * before.sparse_fp32_bytes
    assert before.sparse_fp32_bytes <= before.dense_fp32_bytes
    assert 0.495 < after.nonzero_parameters / before.nonzero_parameters < 0.51
    assert before.dense_fp16_bytes < 0.51 * before.dense_fp32_bytes


def test_a_voice_in_half_precision_is_measured_in_each_format(tiny):
    halves = {name: tensor.half() for name, tensor in tiny.model.named_parameters()}
    size = measure_size(tiny.with_weights(halves))
    whole = measure_size(tiny)
    assert size.memory_bytes == whole.memory_bytes // 2
    assert size.dense_fp32_bytes == whole.dense_fp32_bytes
    assert size.dense_fp16_bytes == whole.dense_fp16_bytes


def test_nothing_is_left_on_disk(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = {name: tensor.clone() for name, tensor in tiny.model.named_parameters()}
    assert all(value > 0 for value in dataclasses.asdict(measure_size(tiny)).values())
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.model.named_parameters())


def test_every_weight_is_counted_once(joe):
    pruned = prune(joe, PruneSpec(amount=0.3))
    histogram, sparsity = measure_weights(joe, pruned, bins=50), measure_sparsity(pruned)
    assert histogram.zeroed.sum() == sparsity.zeros()
    assert histogram.kept.sum() + histogram.zeroed.sum() == sparsity.weights()
    assert histogram.edges.shape == (51,)
    assert histogram.kept.shape == histogram.zeroed.shape == (50,)
    assert (np.diff(histogram.edges) > 0).all()
    assert histogram.edges[0] == 0


def test_global_pruning_has_one_threshold(joe):
    histogram = measure_weights(joe, prune(joe, PruneSpec(amount=0.3)))
    assert 0 < histogram.largest_zeroed <= histogram.smallest_kept
    centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    width = histogram.edges[1]
    assert not histogram.zeroed[centres > histogram.largest_zeroed + width].any()
    assert not histogram.kept[centres < histogram.smallest_kept - width].any()


def test_local_pruning_has_none(joe):
    histogram = measure_weights(joe, prune(joe, PruneSpec(scope="local", amount=0.3)))
    assert histogram.smallest_kept < 0.5 * histogram.largest_zeroed


def test_only_the_layers_that_changed(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.5, parts=("flow",)))
    histogram = measure_weights(tiny, pruned)
    assert histogram.kept.sum() + histogram.zeroed.sum() == sum(
        layer.weights for layer in prunable_layers(tiny, ("flow",))
    )


def test_nothing_pruned(tiny):
    histogram = measure_weights(tiny, tiny)
    zeros = measure_sparsity(tiny).zeros()
    assert histogram.zeroed.sum() == zeros
    assert histogram.kept.sum() == measure_sparsity(tiny).weights() - zeros
    assert histogram.largest_zeroed == 0


def test_weights_that_went_with_their_channels_count_as_zeroed(tiny):
    narrow = cut(tiny, choose(tiny, Shape(decoder_width=0.5, multiple=2)))
    histogram = measure_weights(tiny, narrow)
    assert histogram.kept.sum() + histogram.zeroed.sum() == measure_sparsity(tiny).weights(
        "decoder"
    )
    assert histogram.kept.sum() == measure_sparsity(narrow).weights(
        "decoder"
    )  # the very weights that stayed
    assert histogram.largest_zeroed == 0
    both = measure_weights(
        tiny, prune(narrow, PruneSpec(scope="local", amount=0.5, parts=("decoder", "flow")))
    )
    parts = {part: measure_sparsity(tiny).weights(part) for part in ("decoder", "flow")}
    assert both.kept.sum() + both.zeroed.sum() == sum(parts.values())
    assert (
        abs(
            both.zeroed.sum()
            - (
                parts["decoder"]
                - 0.5 * measure_sparsity(narrow).weights("decoder")
                + 0.5 * parts["flow"]
            )
        )
        < 50
    )
    assert both.largest_zeroed > 0


def test_layers_that_went_count_as_zeroed(tiny):
    short = cut(tiny, choose(tiny, Shape(encoder_layers=1)))
    histogram = measure_weights(tiny, short)
    before, after = (measure_sparsity(voice).weights("text_encoder") for voice in (tiny, short))
    assert (histogram.kept.sum(), histogram.zeroed.sum()) == (after, before - after)
