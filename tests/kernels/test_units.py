"""Sparse programs against torch, over drawn shapes, masks, lengths and threads."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import nn
from transformers.models.vits import modeling_vits

from vits_prune.kernels import engine, tiles
from vits_prune.kernels.engine import run_sparse
from vits_prune.kernels.units import coupling_unit, decoder_units, stage_unit
from vits_prune.voices.architecture import ResidualBlock2

FULL_SCALE = 1e-5
sparsities = strategies.sampled_from([0.0, 0.3, 0.8, 0.97, 1.0])
lengths = strategies.one_of(strategies.integers(1, 70), strategies.integers(100, 900))
drawn = hypothesis.settings(max_examples=40, deadline=None)


def mask(layers, sparsity, seed=0):
    """Set this share of the weights to zero, and, unless it is none, one of several rows whole."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        weight = layer.weight.data
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
        weight *= torch.rand(weight.shape, generator=generator) >= sparsity
        if sparsity and len(weight) > 1:
            weight[0] = 0
        if layer.bias is not None:
            layer.bias.data.copy_(torch.randn(layer.bias.shape, generator=generator) / 10)


@torch.no_grad()
def check(unit, frames, threads, conditioning=None):
    x = torch.randn(1, unit.inputs, frames, generator=torch.Generator().manual_seed(1))
    expected = unit.dense(x, conditioning)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = run_sparse(unit, unit.make(False), x.clone(), conditioning)
    finally:
        torch.set_num_threads(before)
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= FULL_SCALE * scale


@drawn
@hypothesis.given(
    plain=strategies.booleans(),
    channels=strategies.integers(1, 20),
    stride=strategies.integers(1, 9),
    longer=strategies.integers(0, 12),
    kernels=strategies.lists(strategies.sampled_from([1, 3, 5, 11]), min_size=1, max_size=3),
    dilations=strategies.lists(strategies.integers(1, 12), min_size=1, max_size=3),
    last=strategies.booleans(),
    sparsity=sparsities,
    frames=lengths,
    threads=strategies.integers(1, 3),
)
def test_a_decoder_stage(
    plain, channels, stride, longer, kernels, dilations, last, sparsity, frames, threads
):
    upsample = nn.ConvTranspose1d(
        channels + 3, channels, stride + longer, stride, padding=longer // 2
    )
    block = ResidualBlock2 if plain else modeling_vits.HifiGanResidualBlock
    blocks = [block(channels, kernel, dilations, 0.1) for kernel in kernels]
    post = nn.Conv1d(channels, 1, 7, padding=3, bias=False) if last else None
    unit = stage_unit("decoder stage 1", upsample, blocks, post, 0.1)
    mask(unit.layers, sparsity)
    check(unit, max(1, frames // stride), threads)


def wavenet(hidden, flow, layers, kernel, dilation, speaker):
    config = modeling_vits.VitsConfig(
        hidden_size=hidden,
        flow_size=flow,
        prior_encoder_num_wavenet_layers=layers,
        wavenet_kernel_size=kernel,
        wavenet_dilation_rate=dilation,
        speaker_embedding_size=speaker,
    )
    layer = modeling_vits.VitsResidualCouplingLayer(config).eval()
    for one in layer.modules():
        if nn.utils.parametrize.is_parametrized(one, "weight"):
            nn.utils.parametrize.remove_parametrizations(one, "weight")
    return layer


@drawn
@hypothesis.given(
    hidden=strategies.sampled_from([2, 6, 32]),
    half=strategies.integers(1, 9),
    layers=strategies.integers(1, 4),
    kernel=strategies.sampled_from([1, 3, 5]),
    dilation=strategies.integers(1, 3),
    speaker=strategies.sampled_from([0, 4]),
    turned=strategies.booleans(),
    sparsity=sparsities,
    frames=lengths,
    threads=strategies.integers(1, 3),
)
def test_a_coupling_layer(
    hidden, half, layers, kernel, dilation, speaker, turned, sparsity, frames, threads
):
    layer = wavenet(hidden, 2 * half, layers, kernel, dilation, speaker)
    unit = coupling_unit("flow 1", layer, turned)
    mask(unit.layers, sparsity)
    check(unit, frames, threads, torch.randn(1, speaker, 1) if speaker else None)


@pytest.mark.parametrize("frames", [1, 2, 63, 64, 65, 257, 5168])
def test_lengths_from_one_frame_to_sixty_seconds(frames):
    layer = wavenet(8, 4, 2, 5, 1, 0)
    mask([one for one in layer.modules() if isinstance(one, nn.Conv1d)], 0.8)
    check(coupling_unit("flow 1", layer, True), frames, 2)


def small_units():
    """A coupling layer and a last decoder stage, half of whose weights are zero."""
    blocks = [ResidualBlock2(6, kernel, [1, 3], 0.1) for kernel in (3, 5)]
    upsample, post = nn.ConvTranspose1d(9, 6, 8, 4, padding=2), nn.Conv1d(6, 1, 7, padding=3)
    units = (
        coupling_unit("flow 1", wavenet(8, 4, 2, 3, 1, 0), False),
        stage_unit("decoder stage 1", upsample, blocks, post, 0.1),
    )
    for unit in units:
        mask(unit.layers, 0.5)
    return units


@pytest.mark.parametrize("place", range(6))
@torch.no_grad()
def test_a_weight_that_is_no_number_is_not_hidden(place):
    for unit in small_units():
        unit.layers[place].weight.data.view(-1)[-1] = torch.nan
        x = torch.ones(1, unit.inputs, 5)
        assert unit.dense(x, None).isnan().any()
        assert run_sparse(unit, unit.make(False), x, None).isnan().any()


@torch.no_grad()
def test_of_no_frames_come_none():
    for unit in small_units():
        found = run_sparse(unit, unit.make(False), torch.ones(1, unit.inputs, 0), None)
        assert found.shape == (1, unit.rows, 0)


def test_a_machine_with_one_core(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    monkeypatch.setattr(engine, "_threads", engine._Threads())
    for unit in small_units():
        check(unit, 700, 3)


def test_vectors_are_as_wide_as_the_processor_tells(monkeypatch):
    for features, lanes in (({"avx512f": True}, 16), ({"avx2": True}, 8), ({"avx2": False}, 4)):
        monkeypatch.setattr(tiles.binding, "get_host_cpu_features", lambda one=features: one)
        assert tiles._lanes() == lanes

    def unknown():
        raise RuntimeError("failed to get host cpu features")

    monkeypatch.setattr(tiles.binding, "get_host_cpu_features", unknown)
    assert tiles._lanes() == 4


_WITHOUT = """
import sys
import pytest
from llvmlite import binding
binding.get_host_cpu_features = lambda: {}
from vits_prune.kernels import tiles
assert tiles.LANES == 4
sys.exit(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_processor_without_wide_vectors(tmp_path):
    """All of this file again, compiled for the least processor of this kind."""
    own = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _WITHOUT, "-m", "not slow", "-k", "not wide", __file__]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_bits_do_not_depend_on_threads_or_neighbours(joe):
    unit = list(decoder_units(joe.model.decoder, 0.1))[2]
    program = unit.make(False).thinned(0.1)
    x = torch.randn(1, unit.inputs, 700, generator=torch.Generator().manual_seed(0))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(run_sparse(unit, program, x, None))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_density_counts_weights_that_are_not_zero():
    layer = nn.Conv1d(2, 2, 1)
    layer.weight.data = torch.tensor([[[1.0], [0.0]], [[0.0], [0.0]]])
    decoder = SimpleNamespace(conv_pre=layer, upsampler=[], resblocks=[], num_kernels=1)
    (unit,) = decoder_units(decoder, 0.1)
    assert unit.density == 0.25
