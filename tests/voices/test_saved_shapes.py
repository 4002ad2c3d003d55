"""Voices of other shapes come back to the bit; plain transformers opens what it can."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VitsModel

from tests.voices import piper_factory
from tests.voices.hf_factory import edit_json, make_checkpoint
from tests.voices.test_saved import TEXT, refused, same_voice
from vits_prune import PruneSpec, load_voice, prune, save_voice, speak
from vits_prune.pruning import Shape
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.voices.architecture import (
    NarrowVitsConfig,
    NarrowVitsModel,
    PiperVitsModel,
    empty_model,
)
from vits_prune.voices.manifest import SAVED_FILE

PLAIN = Shape(
    decoder_width=0.5,
    branches=1,
    ffn_width=0.25,
    encoder_layers=1,
    flows=3,
    wavenet_layers=1,
    multiple=2,
)
NARROW = dataclasses.replace(PLAIN, resblock_width=0.5)


def smaller(voice, shape):
    return cut(voice, choose(voice, shape))


@pytest.mark.parametrize(
    ("options", "zeros"),
    [({}, True), ({"stochastic": False}, False), ({"speakers": 3}, True)],
    ids=str,
)
def test_a_uniform_cut_is_a_plain_vits_model(tmp_path, options, zeros):
    speaker = 2 if "speakers" in options else None
    voice = smaller(
        load_voice(
            make_checkpoint(tmp_path / "tiny", prior_encoder_num_flows=4, **options), speaker
        ),
        PLAIN,
    )
    voice = prune(voice, PruneSpec(scope="local", amount=0.6)) if zeros else voice
    assert type(voice.model) is VitsModel
    folder = save_voice(voice, tmp_path / "saved")
    again = load_voice(folder)
    assert same_voice(voice, again)
    assert type(again.model) is VitsModel
    assert json.loads((folder / SAVED_FILE).read_text())["format_version"] == 1

    plain, told = VitsModel.from_pretrained(folder, output_loading_info=True)
    assert not any(
        told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    )
    facts = json.loads((folder / "config.json").read_text())
    assert facts["model_type"] == "vits"
    assert (
        facts["upsample_initial_channel"],
        facts["ffn_dim"],
        facts["resblock_kernel_sizes"],
    ) == (16, 8, plain.config.resblock_kernel_sizes)
    assert (
        len(plain.text_encoder.encoder.layers),
        len(plain.flow.flows),
        len(plain.decoder.resblocks),
    ) == (1, 3, 2)
    ids = torch.tensor([next(iter(voice.tokenizer.sentences(TEXT))).ids])
    waves = []
    for model in (plain.eval(), voice.model):
        torch.manual_seed(4)
        with torch.no_grad():
            waves.append(
                model(ids, **({} if speaker is None else {"speaker_id": speaker})).waveform
            )
    assert waves[1].std() > 0
    assert torch.allclose(waves[0], waves[1], atol=1e-5)


@pytest.fixture(scope="module")
def piper_voices(tmp_path_factory):
    place = tmp_path_factory.mktemp("piper")
    options = {"initial": 32, "filter": 32}
    two = piper_factory.Shape(**options)
    one = piper_factory.Shape(
        **options, stochastic=False, speakers=2, resblock="1", resblock_dilations=((1, 3, 5),) * 2
    )
    return {
        kind: load_voice(piper_factory.make_voice(place, shape, kind))
        for kind, shape in (("two", two), ("one", one))
    }


@pytest.mark.parametrize(("kind", "shape"), [("two", PLAIN), ("one", PLAIN), ("one", NARROW)])
def test_piper_voices_come_back(piper_voices, tmp_path, kind, shape):
    voice = smaller(piper_voices[kind], shape)
    assert type(voice.model) is PiperVitsModel
    folder = save_voice(voice, tmp_path / "saved")
    again = load_voice(folder)
    assert same_voice(voice, again)
    assert type(again.model) is PiperVitsModel
    assert again.model.config.resblock_inner_channels == ([4, 2] if shape is NARROW else None)
    assert json.loads((folder / SAVED_FILE).read_text())["format_version"] == (
        2 if shape is NARROW else 1
    )


def test_what_older_code_wrote_still_loads(piper_voices, tmp_path):
    folder = save_voice(piper_voices["two"], tmp_path / "saved")
    edit_json(folder / "config.json", resblock_inner_channels=...)
    edit_json(folder / SAVED_FILE, format_version=1, files=..., crc32=...)
    assert same_voice(piper_voices["two"], load_voice(folder))


@pytest.fixture(scope="module")
def narrow_voice(tmp_path_factory):
    place = tmp_path_factory.mktemp("narrow")
    return smaller(
        load_voice(make_checkpoint(place / "tiny", speakers=2, prior_encoder_num_flows=4), 1),
        NARROW,
    )


@pytest.fixture(scope="module")
def kept_narrow(narrow_voice, tmp_path_factory):
    return save_voice(narrow_voice, tmp_path_factory.mktemp("narrow-saved") / "narrow")


@pytest.fixture
def narrow(kept_narrow, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(kept_narrow, tmp_path / "narrow"))


def test_narrow_blocks_come_back_in_our_own_layout(narrow_voice, narrow):
    again = load_voice(narrow)
    assert same_voice(narrow_voice, again)
    assert type(again.model) is NarrowVitsModel
    assert load_voice(narrow, 0).speaker == 0
    assert json.loads((narrow / "config.json").read_text())["model_type"] == "vits_narrow"
    copy = save_voice(again, narrow.parent / "again")
    assert (copy / "model.safetensors").read_bytes() == (narrow / "model.safetensors").read_bytes()
    zeros = prune(again, PruneSpec(amount=0.5))
    assert same_voice(zeros, load_voice(save_voice(zeros, narrow.parent / "zeros")))


def test_plain_transformers_refuses_what_its_config_cannot_say(narrow):
    with pytest.raises(RuntimeError, match="mismatched"):
        VitsModel.from_pretrained(narrow)


@pytest.mark.parametrize(
    "channels",
    [
        [4],
        [4, 2, 1],
        [9, 2],
        [4, 5],
        [0, 2],
        [-4, 2],
        [True, 2],
        ["4", 2],
        "42",
        4,
        {},
        [],
        [4.0, 2],
        [1 << 40, 2],
        [2, 2],
        [4, 1],
    ],
    ids=str,
)
def test_inner_channels_that_do_not_fit(narrow, channels):
    edit_json(narrow / "config.json", resblock_inner_channels=channels)
    edit_json(narrow / SAVED_FILE, files=..., crc32=...)  # a stranger's folder need not have them
    refused(lambda: load_voice(narrow))


@pytest.mark.parametrize(
    "change",
    [
        {"resblock_inner_channels": ...},
        {"resblock_inner_channels": None},
        {"model_type": "vits"},
        {"model_type": "vits_piper"},
        {"model_type": 3},
        {"upsample_initial_channel": 32},
        {"prior_encoder_num_flows": 4},
        {"ffn_dim": 16},
        {"num_hidden_layers": 2},
        {"resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 3]]},
    ],
    ids=str,
)
def test_configurations_of_another_shape(narrow, change):
    edit_json(narrow / "config.json", **change)
    edit_json(narrow / SAVED_FILE, files=..., crc32=...)
    refused(lambda: load_voice(narrow))


@pytest.mark.parametrize(
    "change",
    [{"family": "piper"}, {"format_version": 4}, {"speakers": []}, {"recipe": []}],
    ids=str,
)
def test_manifests_of_another_voice(narrow, change):
    edit_json(narrow / SAVED_FILE, **{"crc32": ..., **change})
    refused(lambda: load_voice(narrow))


def test_without_its_manifest_it_is_no_voice(narrow):
    (narrow / SAVED_FILE).unlink()
    refused(lambda: load_voice(narrow), "lacks its vits_prune.json")


@pytest.mark.parametrize("kind", ["wider", "missing", "more", "nan"])
def test_weights_of_another_shape(narrow, kind):
    path, name = narrow / "model.safetensors", "decoder.resblocks.0.convs1.0.weight"
    tensors = load_file(path)
    weight = tensors.pop(name)
    changed = {
        "wider": {name: torch.cat([weight, weight])},
        "missing": {},
        "more": {name: weight, "decoder.extra": torch.zeros(1)},
        "nan": {name: torch.full_like(weight, torch.nan)},
    }[kind]
    save_file({**tensors, **changed}, path, metadata={"format": "pt"})
    refused(lambda: load_voice(narrow), "damaged")


def test_blocks_as_wide_as_their_stage_are_transformers_own():
    config = {
        "upsample_initial_channel": 32,
        "upsample_rates": [4, 4],
        "upsample_kernel_sizes": [8, 8],
    }
    wide, same = (
        empty_model(NarrowVitsConfig(**config, resblock_inner_channels=inner))
        for inner in (None, [16, 8])
    )
    assert {name: p.shape for name, p in wide.named_parameters()} == {
        name: p.shape for name, p in same.named_parameters()
    }
    narrower = empty_model(NarrowVitsConfig(**config, resblock_inner_channels=[4, 2]))
    convs = zip(wide.decoder.resblocks[1].convs1, narrower.decoder.resblocks[1].convs1, strict=True)
    assert all(
        (a.padding, a.dilation, a.kernel_size) == (b.padding, b.dilation, b.kernel_size)
        for a, b in convs
    )


def test_a_cut_voice_speaks_as_long_as_it_says(narrow_voice):
    speech = speak(narrow_voice, TEXT, 3)
    assert len(speech.waveform) == int(speech.durations.sum()) * narrow_voice.hop_length
