"""Voice: copies that share tensors, and speakers by index or name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import VitsConfig, VitsModel

from tests.nearly import nearly
from tests.voices.hf_factory import make_checkpoint
from vits_prune import PARTS, InputError, load_voice, speak
from vits_prune.voices.architecture import empty_model, fold_and_cut
from vits_prune.voices.voice import resolve_speaker

TEXT = "the birch canoe"


def test_the_parts_are_what_runs(joe):
    parts = joe.parts()
    assert tuple(parts) == PARTS
    inside = sum(parameter.numel() for part in parts.values() for parameter in part.parameters())
    assert inside == sum(parameter.numel() for parameter in joe.model.parameters()) > 15_000_000
    assert not joe.model.training
    assert not any(parameter.requires_grad for parameter in joe.model.parameters())
    assert list(joe.model.buffers()) == []  # to() and the saved files carry parameters only
    assert joe.hop_length == 256
    assert joe.device.type == "cpu"


def test_what_joe_is(joe):
    assert (joe.name, joe.sampling_rate, joe.speaker, joe.speakers) == ("joe", 22_050, None, ())
    assert (joe.origin.family, joe.origin.reference, joe.origin.licence) == (
        "piper",
        "joe",
        "cc0-1.0",
    )
    assert (joe.free_cut.parameters, joe.free_cut.bytes) == (0, 0)
    assert dict(joe.recipe) == {}


def test_the_free_cut_is_the_difference_to_plain_transformers(tmp_path):
    folder = make_checkpoint(tmp_path / "tiny")
    plain, voice = VitsModel.from_pretrained(folder), load_voice(folder)
    difference = sum(p.numel() for p in plain.parameters()) - sum(
        p.numel() for p in voice.model.parameters()
    )
    assert voice.free_cut.parameters == difference > 0
    assert voice.free_cut.bytes == 4 * difference


def test_the_free_cut_of_the_default_configuration():
    with torch.device("meta"):
        plain = VitsModel(VitsConfig())
        total = sum(parameter.numel() for parameter in plain.parameters())
        cut = fold_and_cut(plain)
    left = sum(parameter.numel() for parameter in empty_model(VitsConfig()).parameters())
    assert total - cut.parameters == left
    assert 0.19 < cut.parameters / total < 0.25


def test_a_copy_shares_what_is_not_replaced(tiny):
    old = dict(tiny.model.named_parameters())
    replaced = torch.zeros_like(old["decoder.conv_pre.bias"])
    copy = tiny.with_weights({"decoder.conv_pre.bias": replaced}, name="other")
    new = dict(copy.model.named_parameters())
    assert [name for name in old if old[name] is not new[name]] == ["decoder.conv_pre.bias"]
    assert new["decoder.conv_pre.bias"].data_ptr() == replaced.data_ptr()
    assert isinstance(new["decoder.conv_pre.bias"], nn.Parameter)
    assert not new["decoder.conv_pre.bias"].requires_grad
    assert (copy.name, tiny.name) == ("other", "tiny")
    modules = {id(module) for module in tiny.model.modules()}
    assert not any(id(module) in modules for module in copy.model.modules())


def test_a_copy_of_all_speaks_alike(tiny):
    assert nearly(speak(tiny.with_weights({}), TEXT).waveform, speak(tiny, TEXT).waveform)
    assert tiny.to("cpu") is tiny


def test_weights_that_do_not_fit(tiny):
    with pytest.raises(KeyError):
        tiny.with_weights({"decoder.nothing": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"decoder\.conv_pre\.bias"):
        tiny.with_weights({"decoder.conv_pre.bias": torch.zeros(1)})


def test_speakers_share_the_model_and_sound_different(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "tiny", speakers=3))
    other = voice.with_speaker("2")
    assert (voice.speaker, other.speaker, voice.speakers) == (0, 2, ("0", "1", "2"))
    assert other.model is voice.model
    assert voice.with_speaker(None).speaker == 0
    assert not nearly(speak(voice, TEXT).waveform, speak(other, TEXT).waveform)
    with pytest.raises(InputError, match="no speaker '3'"):
        voice.with_speaker(3)


NAMES = ("ann", "bob", "0")
ABSENT = (3, -1, "3", "carl", 1.5, math.nan, math.inf, True, [1], "1" * 5_000, "a\nb")


def test_a_name_wins_over_an_index():
    found = {None: 0, "": 0, 1: 1, "1": 1, "bob": 1, "0": 2, 2.0: 2}
    for speaker, index in found.items():
        assert resolve_speaker(speaker, NAMES, "voice") == index


def test_speakers_that_are_not_there():
    for speaker in ABSENT:
        with pytest.raises(InputError) as error:
            resolve_speaker(speaker, NAMES, "voice")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200


def test_one_speaker():
    for speaker in (None, 0, "0", ""):
        assert resolve_speaker(speaker, (), "voice") is None
    for speaker in (1, "ann", [], math.nan):
        with pytest.raises(InputError, match="one speaker only"):
            resolve_speaker(speaker, (), "voice")
