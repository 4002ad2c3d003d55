"""Sparse and half-precision folders, and the checksums that reveal damage."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from transformers import VitsModel

from tests.voices import piper_factory
from tests.voices.hf_factory import edit_json, make_checkpoint
from tests.voices.test_saved import LOCAL, TEXT, refused, same_voice
from vits_prune import InputError, PruneSpec, load_voice, prune, save_voice, speak
from vits_prune.pruning import Shape
from vits_prune.pruning.structured.cut import choose, cut
from vits_prune.voices.manifest import SAVE_VERSION, SAVED_FILE, facts_of

SPARSE = "model.sparse.safetensors"
NARROW = Shape(decoder_width=0.5, resblock_width=0.5, multiple=2)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """One voice of each kind of folder."""
    place = tmp_path_factory.mktemp("forms")
    plain = load_voice(make_checkpoint(place / "plain"))
    piper = load_voice(piper_factory.make_voice(place, piper_factory.Shape(), "piper"))
    found = {
        "plain": plain,
        "speakers": load_voice(
            make_checkpoint(place / "speakers", speakers=3, stochastic=False), 2
        ),
        "narrow": cut(plain, choose(plain, NARROW)),
        "piper": piper,
    }
    return {name: prune(voice, LOCAL) for name, voice in found.items()}


KINDS = pytest.mark.parametrize("kind", ["plain", "speakers", "narrow", "piper"])


@KINDS
def test_a_sparse_folder_speaks_the_same_samples(voices, kind, tmp_path):
    voice = voices[kind]
    folder = save_voice(voice, tmp_path / "sparse", "sparse")
    assert same_voice(voice, load_voice(folder))
    assert json.loads((folder / SAVED_FILE).read_text())["format_version"] == 3
    assert not (folder / "model.safetensors").exists()
    dense = save_voice(voice, tmp_path / "dense")
    assert (folder / SPARSE).stat().st_size < 0.6 * (dense / "model.safetensors").stat().st_size
    assert json.loads((dense / SAVED_FILE).read_text())["format_version"] == (
        2 if kind == "narrow" else 1
    )


@pytest.mark.parametrize(
    ("kind", "form"),
    [("plain", "dense"), ("speakers", "sparse"), ("narrow", "dense"), ("piper", "sparse")],
)
def test_half_precision_rounds_once(voices, kind, form, tmp_path):
    voice = voices[kind]
    folder = save_voice(voice, tmp_path / "half", form, "fp16")
    again = load_voice(folder)
    old, new = dict(voice.model.named_parameters()), dict(again.model.named_parameters())
    assert all(torch.equal(old[name].half().float(), new[name]) for name in old)
    assert all(tensor.dtype == torch.float32 for tensor in new.values())
    assert same_voice(again, load_voice(save_voice(again, tmp_path / "again", form, "fp16")))
    whole = save_voice(voice, tmp_path / "whole", form)
    sizes = [max(path.stat().st_size for path in place.glob("model*")) for place in (folder, whole)]
    assert sizes[0] < 0.8 * sizes[1]


@pytest.mark.parametrize("kind", ["plain", "speakers"])
def test_a_dense_half_opens_in_plain_transformers(voices, kind, tmp_path):
    voice = voices[kind]
    folder = save_voice(voice, tmp_path / "half", precision="fp16")
    plain, told = VitsModel.from_pretrained(folder, output_loading_info=True)
    assert not any(
        told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    )
    ids = torch.tensor([next(iter(voice.tokenizer.sentences(TEXT))).ids])
    condition = {} if voice.speaker is None else {"speaker_id": voice.speaker}
    waves = []
    for model in (plain.eval(), load_voice(folder).model):
        torch.manual_seed(4)
        with torch.no_grad():
            waves.append(model(ids, **condition).waveform)
    assert waves[0].dtype == torch.float32
    assert torch.allclose(*waves, atol=1e-5)


def test_the_real_voice_sparse(joe, tmp_path):
    voice = prune(joe, PruneSpec(scope="local", amount=0.8))
    folder = save_voice(voice, tmp_path / "sparse", "sparse")
    assert same_voice(voice, load_voice(folder), "Glue the sheet.")
    dense = 4 * sum(parameter.numel() for parameter in voice.model.parameters())
    assert (folder / SPARSE).stat().st_size <= 0.19 * dense
    half = save_voice(voice, tmp_path / "half", "sparse", "fp16")
    assert (half / SPARSE).stat().st_size <= 0.10 * dense
    assert speak(load_voice(half), "Glue the sheet.").waveform.any()


def test_the_healing_recipe_is_kept(tiny, tmp_path):
    healed = dataclasses.replace(
        tiny, recipe=MappingProxyType({"healed": {"steps": 3, "texts": ["one"]}})
    )
    folder = save_voice(healed, tmp_path / "healed")
    assert json.loads((folder / "healing.json").read_text()) == {"steps": 3, "texts": ["one"]}
    assert dict(load_voice(folder).recipe) == dict(healed.recipe)


def test_forms_and_weights_that_cannot_be_saved(tiny, tmp_path):
    refused(lambda: save_voice(tiny, tmp_path / "x", "zip"), "form dense or sparse")
    refused(lambda: save_voice(tiny, tmp_path / "x", precision="int8"), "precision fp32 or fp16")
    name = "decoder.conv_pre.weight"
    large = tiny.with_weights({name: 1e6 * torch.ones_like(tiny.model.get_parameter(name))})
    refused(lambda: save_voice(large, tmp_path / "x", precision="fp16"), "fp16")
    assert list(tmp_path.iterdir()) == []
    save_voice(large, tmp_path / "x", "sparse")


@pytest.fixture(scope="module")
def folders(voices, tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    return {
        f"{kind}-{form}": save_voice(voices[kind], place / f"{kind}-{form}", form)
        for kind, form in (
            ("plain", "dense"),
            ("plain", "sparse"),
            ("piper", "dense"),
            ("piper", "sparse"),
        )
    }


@pytest.fixture(params=["plain-dense", "piper-sparse"])
def folder(request, folders, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(folders[request.param], tmp_path / "voice"))


def flip(path, place, bit):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_no_flipped_bit_gives_another_voice(folder, voices):
    """In every file, at places spread over it: either one sentence, or the voice as it was."""
    voice = voices["plain" if (folder / "vocab.json").exists() else "piper"]
    wanted = {name: parameter.clone() for name, parameter in voice.model.named_parameters()}
    judged = 0
    for path in sorted(folder.iterdir()):
        if path.name == "prune_spec.json":  # for readers; the manifest has it again
            continue
        whole = path.read_bytes()
        count = 12 if path.suffix == ".safetensors" else 6
        for number in range(count):
            flip(path, (len(whole) - 1) * number // (count - 1), number % 8)
            try:
                again = load_voice(folder)
            except InputError as error:
                judged += "\n" not in str(error)
            else:
                now = dict(again.model.named_parameters())
                assert all(torch.equal(now[name], wanted[name]) for name in wanted), (
                    f"{path.name} at {number}"
                )
                assert again.speaker == voice.speaker
            path.write_bytes(whole)
    assert judged > 25


def test_missing_and_truncated_weights(folder):
    [weights] = folder.glob("model*")
    whole = weights.read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        refused(lambda: load_voice(folder), "damaged|cannot be read")
    weights.unlink()
    refused(lambda: load_voice(folder), "damaged")


def test_files_of_another_voice(folder, voices, tmp_path):
    """Each file is sound, but they do not belong together."""
    kind = "plain" if (folder / "vocab.json").exists() else "piper"
    form = json.loads((folder / SAVED_FILE).read_text())["form"]
    other = save_voice(prune(voices[kind], PruneSpec(amount=0.97)), tmp_path / "other", form)
    [weights], [others] = folder.glob("model*"), other.glob("model*")
    shutil.copy(others, weights)
    refused(lambda: load_voice(folder), "not the file that was saved")


def test_an_edited_manifest_and_a_newer_one(folder):
    manifest = json.loads((folder / SAVED_FILE).read_text())
    edit_json(folder / SAVED_FILE, name="another")
    refused(lambda: load_voice(folder), "damaged")
    (folder / SAVED_FILE).write_text(json.dumps({**manifest, "format_version": SAVE_VERSION + 1}))
    refused(lambda: load_voice(folder), "newer")
    edit_json(folder / SAVED_FILE, format_version=1, form="zip", crc32=...)
    refused(lambda: load_voice(folder), "damaged")


def test_a_manifest_names_no_file_elsewhere(folder, tmp_path):
    (tmp_path / "secret").write_text("")
    manifest = json.loads((folder / SAVED_FILE).read_text())
    edit_json(folder / SAVED_FILE, files={**manifest["files"], "../secret": "00000000"}, crc32=...)
    refused(lambda: load_voice(folder), "its secret is not the file")


def test_folders_of_before_checksums_open(folder):
    edit_json(folder / SAVED_FILE, files=..., crc32=..., precision=...)
    assert speak(load_voice(folder), "a b").waveform.size


def test_a_folder_that_another_program_saved_over_is_read_as_it_is(tiny, tmp_path):
    folder = save_voice(tiny, tmp_path / "saved")
    plain = VitsModel.from_pretrained(folder)
    with torch.no_grad():
        plain.decoder.conv_pre.weight.mul_(2)
    plain.config.noise_scale = 0.1
    plain.save_pretrained(folder)
    again = load_voice(folder)
    assert torch.equal(again.model.decoder.conv_pre.weight, 2 * tiny.model.decoder.conv_pre.weight)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_saved_several_times_is_the_same_file(tiny, form, tmp_path):
    made = {
        next(save_voice(tiny, tmp_path / str(i), form).glob("model*")).read_bytes()
        for i in range(4)
    }
    assert len(made) == 1


def test_a_recipe_of_the_longest_texts_is_read_again(voices, tmp_path):
    spec = PruneSpec(texts=("\u0001" * 1000,) * 1000).to_dict()
    voice = dataclasses.replace(voices["plain"], recipe=MappingProxyType({"pruned": [spec]}))
    assert (
        load_voice(save_voice(voice, tmp_path / "one")).recipe["pruned"][0]["texts"]
        == spec["texts"]
    )
    assert len(facts_of(voice, "onnx", "fp32")["vits_prune"]) > 1 << 20
    endless = dataclasses.replace(voice, recipe=MappingProxyType({"pruned": [spec] * 4}))
    with pytest.raises(InputError, match="fewer or shorter calibration texts"):
        save_voice(endless, tmp_path / "four")
    with pytest.raises(InputError, match="fewer or shorter calibration texts"):
        facts_of(endless, "onnx", "fp32")
    assert not (tmp_path / "four").exists()
