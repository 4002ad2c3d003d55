"""An export becomes the voice that it was made of again, or one sentence says why not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import MappingProxyType

import numpy as np
import onnx
import pytest
import torch

from tests.ship.conftest import KINDS
from vits_prune import InputError, load_voice, save_voice, speak
from vits_prune.ship.bench import BenchError, bench
from vits_prune.ship.formats import export_voice
from vits_prune.voices.manifest import read_facts
from vits_prune.voices.voice import Origin

HEALED = {"steps": 12, "teacher": "joe"}


def parameters(voice):
    return dict(voice.model.named_parameters())


def same_weights(voice, other):
    ours, theirs = parameters(voice), parameters(other)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in ours
    )


def with_history(voice, licence="cc-by-nc-4.0", revision="0123abc"):
    """The voice as if published under a licence, pruned and healed."""
    recipe = MappingProxyType(
        {
            **voice.recipe,
            "pruned": [{"method": "magnitude", "amount": 0.5, "parts": ["flow"]}],
            "healed": HEALED,
        }
    )
    origin = Origin(voice.origin.family, f"owner/{voice.name}", revision, licence)
    return dataclasses.replace(voice, recipe=recipe, origin=origin)


@pytest.mark.parametrize("format", ["onnx", "piper"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_structure_reads_back(shipped, kind, format, tmp_path):
    voice = with_history(shipped[kind])
    export = export_voice(voice, tmp_path / "out", format, "int8")
    again = load_voice(export.folder)
    assert same_weights(again, export.shipped)
    assert (again.name, again.sampling_rate, again.speakers, again.speaker) == (
        voice.name, voice.sampling_rate, voice.speakers, voice.speaker,
    )  # fmt: skip
    family = "piper" if format == "piper" else voice.origin.family
    assert again.origin == dataclasses.replace(voice.origin, family=family)
    assert dict(again.recipe) == dict(voice.recipe)
    assert again.free_cut == voice.free_cut
    text = "the birch canoe"
    assert np.array_equal(
        speak(again, text, seed=3).waveform, speak(export.shipped, text, seed=3).waveform
    )


@pytest.mark.parametrize("kind", ["plain", "narrow", "piper-high"])
@pytest.mark.parametrize("format", ["onnx", "piper"])
def test_what_was_read_back_is_saved_and_exported_again(shipped, kind, format, tmp_path):
    export = export_voice(with_history(shipped[kind]), tmp_path / "first", format, "int8")
    again = load_voice(export.model)
    saved = load_voice(save_voice(again, tmp_path / "saved"))
    assert same_weights(saved, export.shipped)
    assert (saved.origin, saved.recipe["healed"]) == (again.origin, HEALED)
    second = export_voice(again, tmp_path / "second", format, "fp32")
    assert same_weights(load_voice(second.folder), export.shipped)


def test_one_speaker_of_several(shipped, tmp_path):
    export = export_voice(shipped["speakers"], tmp_path / "out", "onnx")
    assert load_voice(export.folder).speaker == shipped["speakers"].speaker == 2
    assert load_voice(export.folder, speaker=1).speaker == 1
    with pytest.raises(InputError, match="no speaker"):
        load_voice(export.model, speaker=9)


def test_a_folder_with_the_one_voice_of_a_piper_trainer(shipped, tmp_path):
    """No export of ours: nothing but the .onnx and its .json."""
    export = export_voice(shipped["piper-medium"], tmp_path / "out", "piper")
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


def test_the_scales_in_the_json_of_a_piper_export_may_be_edited(shipped, tmp_path):
    export = export_voice(shipped["piper-medium"], tmp_path / "out", "piper", "int8")
    settings = export.model.with_name(export.model.name + ".json")
    values = json.loads(settings.read_text(encoding="utf-8"))
    values["inference"]["length_scale"] = 2.0
    settings.write_text(json.dumps(values), encoding="utf-8")
    assert load_voice(export.folder).model.speaking_rate == 0.5


def test_an_export_called_export(tiny, tmp_path):
    """Its manifest has the name that a Piper voice's .json could have."""
    export = export_voice(dataclasses.replace(tiny, name="export"), tmp_path / "out", "onnx")
    assert export.model.name == "export.onnx"
    assert same_weights(load_voice(export.model), tiny)


@pytest.mark.parametrize("format", ["onnx", "piper"])
def test_a_damaged_file_is_never_another_voice(shipped, format, tmp_path):
    voice = with_history(shipped["plain"])
    export = export_voice(voice, tmp_path / "out", format, "int8")
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


@pytest.mark.parametrize("format", ["onnx", "piper"])
def test_damage_in_the_folder_of_an_export(tiny, format, tmp_path):
    export = export_voice(tiny, tmp_path / "out", format)
    whole = export.model.read_bytes()
    for broken in (whole[:-7], whole[: len(whole) // 3], whole[:5000] + b"?" + whole[5001:]):
        export.model.write_bytes(broken)
        with pytest.raises(InputError, match="not the file that was saved"):
            load_voice(export.folder)
        with pytest.raises(BenchError, match="damaged"):
            bench(export.model, [1], 1)
    export.model.unlink()
    with pytest.raises(InputError, match="not a whole export"):
        load_voice(export.folder)
    (export.folder / "export.json").write_text("{")
    with pytest.raises(InputError, match=r"export.json of .* is not JSON"):
        load_voice(export.folder)


def test_a_tokenizer_that_is_not_the_exported_one(tiny, tmp_path):
    export = export_voice(tiny, tmp_path / "out", "onnx")
    vocabulary = export.folder / "vocab.json"
    vocabulary.write_text(
        vocabulary.read_text(encoding="utf-8").replace('"b"', '"B"'), encoding="utf-8"
    )
    with pytest.raises(InputError, match=r"its vocab.json is not the file that was saved"):
        load_voice(export.model)
    shutil.copy(export.model, tmp_path / "alone.onnx")
    with pytest.raises(InputError, match=r"no vocab.json next to it"):
        load_voice(tmp_path / "alone.onnx")


def test_files_of_a_newer_version_and_hostile_facts(tiny, tmp_path):
    export = export_voice(tiny, tmp_path / "out", "onnx")
    (export.folder / "export.json").unlink()
    model = onnx.load(export.model)
    [facts] = [entry for entry in model.metadata_props if entry.key == "vits_prune"]
    sound = json.loads(facts.value)
    assert read_facts(model, "x").name == "tiny"
    for values, match in (
        ({**sound, "format_version": 99}, "newer vits_prune"),
        ({**sound, "recipe": 3}, "damaged"),
        ({**sound, "config": {**sound["config"], "leaky_relu_slope": 0.3}}, "damaged"),
        ([], "damaged"),
    ):
        facts.value = json.dumps(values)
        onnx.save(model, export.model)
        with pytest.raises(InputError, match=match):
            load_voice(export.folder)
    facts.value = "[" * 100_000
    onnx.save(model, export.model)
    with pytest.raises(InputError, match="damaged"):
        load_voice(export.model)


def test_the_real_voice_in_int8(joe, tmp_path):
    """Its licence and its reference come back, and the Piper runtime's file is read as onnxruntime computes it."""
    export = export_voice(joe, tmp_path / "joe", "piper", "int8")
    again = load_voice(export.folder)
    assert same_weights(again, export.shipped)
    assert (again.name, again.origin) == ("joe", joe.origin)
    assert export.bytes < 0.3 * sum(parameter.numel() * 4 for parameter in joe.model.parameters())
