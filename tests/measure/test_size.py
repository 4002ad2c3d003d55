"""Sizes are those of real files."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from vits_prune import PruneSpec, measure_size, prune
from vits_prune.voices.sparse_file import encode


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
