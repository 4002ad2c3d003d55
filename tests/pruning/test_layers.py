"""Every weight tensor of a voice is listed once, with its part, and a reason where it is left alone."""

from __future__ import annotations

from torch import nn

from tests.voices.hf_factory import make_checkpoint
from vits_prune import PARTS, layers, load_voice
from vits_prune.pruning.layers import PRUNABLE_KINDS, prunable_layers


def test_nothing_is_left_out_and_nothing_is_listed_twice(joe, tiny):
    for voice in (joe, tiny):
        listed = [layer.parameter for layer in layers(voice)]
        assert listed == [
            name for name, _ in voice.model.named_parameters() if not name.endswith(".bias")
        ]
        assert len(set(listed)) == len(listed)


def test_what_is_said_of_a_layer_is_true(joe):
    parameters = dict(joe.model.named_parameters())
    for layer in layers(joe):
        assert layer.shape == tuple(parameters[layer.parameter].shape)
        assert layer.weights == parameters[layer.parameter].numel()
        assert layer.part == layer.parameter.split(".")[0]
        assert layer.part in PARTS
        if layer.prunable:
            module = joe.model.get_submodule(layer.name)
            assert module.weight is parameters[layer.parameter]
            assert layer.kind == type(module).__name__


def test_all_convolutions_and_linear_layers_can_be_pruned_and_nothing_else(joe, tiny):
    for voice in (joe, tiny):
        expected = {
            name
            for name, module in voice.model.named_modules()
            if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d, nn.Linear))
        }
        assert {layer.name for layer in layers(voice) if layer.prunable} == expected
        assert {layer.kind for layer in prunable_layers(voice)} == {
            kind.__name__ for kind in PRUNABLE_KINDS
        }
        for layer in layers(voice):
            assert layer.prunable == (layer.reason == "")


def test_reasons_fit_the_kind(joe):
    reasons = {layer.kind: layer.reason for layer in layers(joe) if not layer.prunable}
    assert "look-up table" in reasons["Embedding"]
    assert "normalisation" in reasons["LayerNorm"]
    assert "architecture" in reasons["Parameter"]
    assert set(reasons) == {"Embedding", "LayerNorm", "Parameter"}


def test_parts_can_be_chosen(joe):
    chosen = [prunable_layers(joe, (part,)) for part in PARTS]
    assert all(chosen)
    assert {layer.part for layer in prunable_layers(joe, ("flow", "decoder"))} == {
        "flow",
        "decoder",
    }
    assert sum(chosen, ()) != ()
    assert {layer.name for layer in sum(chosen, ())} == {
        layer.name for layer in prunable_layers(joe)
    }


def test_the_table_of_speakers_belongs_to_no_part_and_is_left_alone(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "tiny", speakers=3))
    [table] = [layer for layer in layers(voice) if layer.part == "speaker"]
    assert (table.name, table.kind, table.shape, table.prunable) == (
        "embed_speaker",
        "Embedding",
        (3, 8),
        False,
    )
    conditioning = {layer.name for layer in prunable_layers(voice) if "cond" in layer.name}
    assert {"decoder.cond", "duration_predictor.cond"} <= conditioning
