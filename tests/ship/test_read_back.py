"""An export becomes the voice that it was made of again, or one sentence says why not."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
import torch

from tests.nearly import nearly
from tests.ship.conftest import HEALED, KINDS
from vits_prune import InputError, load_voice, save_voice, speak
from vits_prune.ship.bench import BenchError, bench
from vits_prune.ship.formats import export_voice
from vits_prune.voices.manifest import read_facts
from vits_prune.voices.voice import Origin


def parameters(voice):
    return dict(voice.model.named_parameters())


def same_weights(voice, other):
    ours, theirs = parameters(voice), parameters(other)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def check_read_back(voice, export):
    """Check that an export is loaded as the voice that was exported."""
    again = load_voice(export.folder)
    assert same_weights(again, export.shipped)
    for name in ("name", "sampling_rate", "speakers", "speaker", "free_cut"):
        assert getattr(again, name) == getattr(voice, name)
    family = "piper" if export.format == "piper" else voice.origin.family
    assert again.origin == dataclasses.replace(voice.origin, family=family)
    assert dict(again.recipe) == dict(voice.recipe)
    waves = [speak(one, "the birch canoe", seed=3).waveform for one in (again, export.shipped)]
    assert nearly(*waves)


@pytest.mark.parametrize("kind", KINDS)
def test_every_structure_reads_back(shipped, exported, kind):
    check_read_back(shipped[kind], exported(kind))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "piper"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_structure_reads_back_in_both_formats(shipped, kind, format, tmp_path):
    check_read_back(shipped[kind], export_voice(shipped[kind], tmp_path / "out", format, "int8"))


@pytest.mark.parametrize(("kind", "second"), [("plain", "piper"), ("narrow", "onnx")])
def test_what_was_read_back_is_saved_and_exported_again(exported, kind, second, tmp_path):
    export = exported(kind)
    again = load_voice(export.model)
    saved = load_voice(save_voice(again, tmp_path / "saved"))
    assert same_weights(saved, export.shipped)
    assert (saved.origin, saved.recipe["healed"]) == (again.origin, HEALED)
    other = export_voice(again, tmp_path / "second", second, "fp32")
    assert same_weights(load_voice(other.folder), export.shipped)


def test_one_speaker_of_several(shipped, exported):
    export = exported("speakers")
    assert load_voice(export.folder).speaker == shipped["speakers"].speaker == 2
    assert load_voice(export.folder, speaker=1).speaker == 1
    with pytest.raises(InputError, match="no speaker"):
        load_voice(export.model, speaker=9)


def test_a_folder_with_the_one_voice_of_a_piper_trainer(shipped, exported, tmp_path):
    """No export of ours: nothing but the .onnx and its .json."""
    export = exported("piper-medium")
    place = tmp_path / "plain"
    place.mkdir()
    model = onnx.load(export.model)
    del model.metadata_props[:]
    model.producer_name = "pytorch"
    onnx.save(model, place / "en.onnx")
    shutil.copy(f"{export.model}.json", place / "en.onnx.json")
    voice = load_voice(place)
    assert same_weights(voice, shipped["piper-medium"])
    assert (voice.name, voice.origin) == ("en", Origin("piper", "en.onnx"))


def test_the_scales_in_the_json_of_a_piper_export_may_be_edited(exported, tmp_path):
    folder = shutil.copytree(exported("piper-medium").folder, tmp_path / "out")
    [settings] = folder.glob("*.onnx.json")
    values = json.loads(settings.read_text(encoding="utf-8"))
    values["inference"]["length_scale"] = 2.0
    settings.write_text(json.dumps(values), encoding="utf-8")
    assert load_voice(folder).model.speaking_rate == 0.5


def test_an_export_called_export(tiny, tmp_path):
    """Its manifest has the name that a Piper voice's .json could have."""
    export = export_voice(dataclasses.replace(tiny, name="export"), tmp_path / "out", "onnx")
    assert export.model.name == "export.onnx"
    assert same_weights(load_voice(export.model), tiny)


@pytest.mark.parametrize("kind", ["sparse", pytest.param("narrow", marks=pytest.mark.slow)])
def test_a_damaged_file_is_never_another_voice(shipped, exported, kind, tmp_path):
    voice, export = shipped[kind], exported(kind)
    place = tmp_path / "alone"
    shutil.copytree(export.folder, place)
    (place / "export.json").unlink()  # the file must tell by itself
    model = place / export.model.name
    whole = model.read_bytes()
    random = np.random.default_rng(0)
    refused, reasons = 0, set()
    for at in (
        *random.integers(len(whole), size=40),
        5,
        len(whole) - 5,
        len(whole) - 300,
        len(whole) // 2,
    ):
        broken = bytearray(whole)
        broken[at] ^= 0x10
        model.write_bytes(broken)
        try:
            again = load_voice(model)
        except InputError as error:
            refused += 1
            reasons.add(str(error))
        else:  # a number that nothing is read by, such as the version of the file's own format
            assert same_weights(again, export.shipped)
            assert (dict(again.recipe), again.origin.licence) == (
                dict(voice.recipe),
                "cc-by-nc-4.0",
            )
    assert refused > 35
    assert not any("\n" in reason for reason in reasons)
    for length in (
        0,
        1,
        100,
        len(whole) // 2,
        *random.integers(len(whole), size=10),
        len(whole) - 200,
        len(whole) - 1,
    ):
        model.write_bytes(whole[:length])
        with pytest.raises(InputError):
            load_voice(model)


@pytest.mark.parametrize("kind", ["plain", "piper-medium"])
def test_damage_in_the_folder_of_an_export(exported, kind, tmp_path):
    folder = shutil.copytree(exported(kind).folder, tmp_path / "out")
    [model] = folder.glob("*.onnx")
    whole = model.read_bytes()
    for broken in (whole[:-7], whole[: len(whole) // 3], whole[:5000] + b"?" + whole[5001:]):
        model.write_bytes(broken)
        with pytest.raises(InputError, match="not the file that was saved"):
            load_voice(folder)
        with pytest.raises(BenchError, match="damaged"):
            bench(model, [1], 1)
    model.unlink()
    with pytest.raises(InputError, match="not a whole export"):
        load_voice(folder)
    (folder / "export.json").write_text("{")
    with pytest.raises(InputError, match=r"export.json of .* is not JSON"):
        load_voice(folder)


def test_a_tokenizer_that_is_not_the_exported_one(exported, tmp_path):
    folder = shutil.copytree(exported("plain").folder, tmp_path / "out")
    [model] = folder.glob("*.onnx")
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(
        vocabulary.read_text(encoding="utf-8").replace('"b"', '"B"'), encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"its vocab.json is not the file that was saved"):
        load_voice(model)
    shutil.copy(model, tmp_path / "alone.onnx")
    with pytest.raises(InputError, match=r"no vocab.json next to it"):
        load_voice(tmp_path / "alone.onnx")


def test_files_of_a_newer_version_and_hostile_facts(exported, tmp_path):
    folder = shutil.copytree(exported("plain").folder, tmp_path / "out")
    (folder / "export.json").unlink()
    [path] = folder.glob("*.onnx")
    model = onnx.load(path)
    [facts] = [entry for entry in model.metadata_props if entry.key == "vits_prune"]
    sound = json.loads(facts.value)
    assert read_facts(model, "x").name == "plain"
    for values, match in (
        ({**sound, "format_version": 99}, "newer vits_prune"),
        ({**sound, "recipe": 3}, "damaged"),
        ({**sound, "config": {**sound["config"], "leaky_relu_slope": 0.3}}, "damaged"),
        ([], "damaged"),
    ):
        facts.value = json.dumps(values)
        onnx.save(model, path)
        with pytest.raises(InputError, match=match):
            load_voice(folder)
    facts.value = "[" * 100_000
    onnx.save(model, path)
    with pytest.raises(InputError, match="damaged"):
        load_voice(path)


@pytest.mark.slow
def test_the_real_voice_in_int8(joe, tmp_path):
    """Its licence and reference come back, and the weights are those onnxruntime computes with."""
    export = export_voice(joe, tmp_path / "joe", "piper", "int8")
    again = load_voice(export.folder)
    assert same_weights(again, export.shipped)
    assert (again.name, again.origin) == ("joe", joe.origin)
    assert export.bytes < 0.3 * sum(parameter.numel() * 4 for parameter in joe.model.parameters())
