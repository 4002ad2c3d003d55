"""Every weight tensor of a voice is listed once; which layers a PruneSpec leaves alone, and why."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from tests.pruning.conftest import SENTENCES, in_turn
from tests.voices.hf_factory import make_checkpoint
from vits_prune import PARTS, InputError, PruneSpec, layers, load_voice, prune
from vits_prune.pruning.layers import PRUNABLE_KINDS, chosen_layers, prunable_layers
from vits_prune.pruning.scores import zeros_wanted


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


SPEC = PruneSpec(method="second_order", amount=0.3, texts=SENTENCES)


def names(layers):
    return {layer.name for layer in layers}


def test_the_defaults_leave_durations_speakers_and_the_last_convolution_alone(families):
    left = names(prunable_layers(families["speakers"])) - names(
        chosen_layers(families["speakers"], SPEC)
    )
    assert {"decoder.cond", "decoder.conv_post", "flow.flows.0.wavenet.cond_layer"} <= left
    assert all(
        name.startswith("duration_predictor.") or name.endswith(("cond", "cond_layer", "conv_post"))
        for name in left
    )
    assert "flow.flows.0.conv_post" not in left


def test_patterns_of_names(families):
    voice = families["plain"]
    everything = names(prunable_layers(voice))

    def left(*patterns):
        return everything - names(chosen_layers(voice, dataclasses.replace(SPEC, protect=patterns)))

    assert left() == set()
    assert left("flow.flows.*.conv_pre") == {"flow.flows.0.conv_pre", "flow.flows.1.conv_pre"}
    assert left("*.conv_pre") == {name for name in everything if name.split(".")[1] == "conv_pre"}
    assert left("decoder", "flow") == {
        name for name in everything if name.startswith(("decoder.", "flow."))
    }
    assert left("decoder.upsampler.1") == {"decoder.upsampler.1"}
    assert names(chosen_layers(voice, dataclasses.replace(SPEC, parts=("flow",), protect=()))) == {
        name for name in everything if name.startswith("flow.")
    }


def test_something_to_protect_that_is_not_there(families):
    bad = "decoder.con", "vocoder", "flow.flows.9", "*.*.*.*.*.*.*.*.*", "decoder..conv_pre", "DEC"
    for method, pattern in in_turn(("magnitude", "second_order"), bad):
        with pytest.raises(InputError, match=r"has no layer .* to protect") as error:
            prune(families["plain"], PruneSpec(method=method, protect=(pattern,), texts=SENTENCES))
        assert str(error.value).endswith(".")


def test_everything_is_protected(families):
    for method in ("magnitude", "activation", "second_order"):
        spec = PruneSpec(method, parts=("decoder",), protect=("decoder",), texts=SENTENCES)
        with pytest.raises(InputError, match="nothing is left to prune"):
            prune(families["plain"], spec)


def test_what_is_protected_counts(families):
    voice = families["plain"]
    spec = dataclasses.replace(SPEC, protect=("decoder",))
    everything = sum(layer.weights for layer in prunable_layers(voice))
    assert zeros_wanted(voice, spec, chosen_layers(voice, spec)) == round(0.3 * everything)


@pytest.mark.parametrize(
    ("method", "change"),
    in_turn(
        ("magnitude", "random", "activation", "second_order"),
        ({"protect": ("decoder", "flow")}, {"floor": 0.2, "protect": ()}),
    ),
)
def test_more_than_there_is_says_how_much_there_is(families, method, change):
    voice, spec = families["plain"], PruneSpec(method, amount=0.95, texts=SENTENCES, **change)
    with pytest.raises(InputError, match=r"0\.\d{3} is the most here") as error:
        prune(voice, spec)
    most = float(str(error.value).split(" is the most")[0].split()[-1])
    chosen = chosen_layers(voice, spec)
    assert zeros_wanted(voice, dataclasses.replace(spec, amount=most - 0.001), chosen) > 0
    with pytest.raises(InputError):
        zeros_wanted(voice, dataclasses.replace(spec, amount=most + 0.001), chosen)
