"""What errors do to the speech: the estimate against errors that are really made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.pruning.conftest import KINDS, SENTENCES
from vits_prune import InputError
from vits_prune.pruning import blocks, calibration
from vits_prune.pruning.blocks import sentence_ids, spoken_states
from vits_prune.pruning.calibration import channel_sensitivity, speech_of
from vits_prune.pruning.layers import prunable_layers

SEED = 4
LAYERS = {
    "plain": [
        "decoder.upsampler.0",
    ],
    "speakers": [
        "text_encoder.encoder.layers.0.attention.out_proj",
        "duration_predictor.conv_1",
    ],
    "piper-medium": [
        "flow.flows.2.conv_post",
    ],
}


@torch.no_grad()
def measured(voice, name, share, draws):
    """Mean squared change of the speech by errors of a share of each output channel's deviation."""
    module, random = voice.model.get_submodule(name), torch.Generator().manual_seed(11)
    channels_last = isinstance(module, nn.Linear)
    place = int(np.random.default_rng(SEED).integers(1 << 30))
    [spoken] = spoken_states(voice, voice, sentence_ids(voice, SENTENCES[:1]), SEED, 1)

    def heard():
        return [output / scale for output, scale in speech_of(voice, spoken, place)]

    def disturb(_module, _given, output):
        over = tuple(
            i for i in range(output.dim()) if i != (output.dim() - 1 if channels_last else 1)
        )
        deviation = output.var(dim=over, unbiased=False, keepdim=True).sqrt()
        return output + share * deviation * torch.randn(output.shape, generator=random)

    before, total = heard(), 0.0
    hook = module.register_forward_hook(disturb)
    try:
        for _ in range(draws):
            total += sum(
                float((after - one).square().mean())
                for after, one in zip(heard(), before, strict=True)
            )
    finally:
        hook.remove()
    return total / draws / share**2


@pytest.mark.parametrize(
    ("kind", "layer"), [(kind, layer) for kind, layers in LAYERS.items() for layer in layers]
)
def test_the_estimate_is_what_small_errors_do(families, kind, layer, monkeypatch):
    monkeypatch.setattr(calibration, "DIRECTIONS", 30)
    voice = families[kind].with_weights({})  # nothing is kept of another number of directions
    found = channel_sensitivity(voice, SENTENCES[:1], SEED)[f"{layer}.weight"].sum()
    assert found == pytest.approx(
        measured(voice, layer, 2e-4 if kind == "plain" else 1e-2, 40), rel=0.35
    )


@pytest.mark.parametrize("kind", KINDS[1:3])
def test_every_layer_has_one_and_the_same_twice(families, kind):
    voice = families[kind]
    found = channel_sensitivity(voice, SENTENCES, SEED)
    again = channel_sensitivity(voice.with_weights({}), SENTENCES, SEED)
    assert list(found) == [layer.parameter for layer in prunable_layers(voice)]
    for layer in prunable_layers(voice):
        module = voice.model.get_submodule(layer.name)
        assert found[layer.parameter].shape == (
            getattr(module, "out_channels", None) or module.out_features,
        )
        assert np.isfinite(found[layer.parameter]).all()
        assert (found[layer.parameter] >= 0).all()
        assert np.array_equal(found[layer.parameter], again[layer.parameter])
    other = channel_sensitivity(voice, SENTENCES, SEED + 1)
    assert any(not np.array_equal(found[name], other[name]) for name in found)
    heard = [name for name, one in found.items() if one.sum() > 0]
    assert {name.split(".")[0] for name in heard} == {
        "text_encoder",
        "duration_predictor",
        "flow",
        "decoder",
    }


def test_a_layer_that_is_not_heard_has_none(families):
    voice = families["plain"]
    silent = {
        "decoder.upsampler.1.weight": torch.zeros_like(voice.model.decoder.upsampler[1].weight)
    }
    changes = channel_sensitivity(voice.with_weights(silent), SENTENCES, SEED)
    found = {name: one.sum() for name, one in changes.items()}
    assert (
        found["decoder.upsampler.0.weight"]
        == found["decoder.conv_pre.weight"]
        == found["flow.flows.0.conv_pre.weight"]
        == 0
    )
    assert found["decoder.conv_post.weight"] > 0


def test_it_is_measured_once_and_leaves_nothing_behind(families, monkeypatch):
    voice = families["plain"].with_weights({})
    channel_sensitivity(voice, SENTENCES, SEED)
    monkeypatch.setattr(blocks, "spoken_states", None)
    channel_sensitivity(voice, SENTENCES, SEED)
    assert not any(module._forward_hooks for module in voice.model.modules())
    assert all(
        parameter.grad is None and not parameter.requires_grad
        for parameter in voice.model.parameters()
    )
    with pytest.raises(TypeError):
        channel_sensitivity(voice, SENTENCES, SEED + 1)


def test_a_voice_that_is_broken(families):
    voice = families["plain"]
    broken = voice.with_weights(
        {"decoder.conv_pre.bias": torch.full_like(voice.model.decoder.conv_pre.bias, float("nan"))}
    )
    with pytest.raises(InputError, match="not finite"):
        channel_sensitivity(broken, SENTENCES, SEED)
