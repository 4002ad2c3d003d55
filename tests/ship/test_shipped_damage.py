"""What an export refuses to write, to remove, or to read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.voices.hf_factory import edit_json, make_checkpoint
from vits_prune import InputError, load_voice, save_voice
from vits_prune.cli import main as cli
from vits_prune.ship.formats import export_voice
from vits_prune.ship.onnx_writer import GraphWriter
from vits_prune.ship.torch_reference import check_onnx, difference
from vits_prune.voices.onnx_load import is_export

WEIGHT = "text_encoder.encoder.layers.0.attention.k_proj.weight"


def with_one(voice, value):
    weight = voice.model.get_parameter(WEIGHT).detach().clone()
    weight.view(-1)[0] = value
    return voice.with_weights({WEIGHT: weight})


@pytest.fixture
def copies(exported, tmp_path):
    """Copies of an export in each format."""
    kinds = {"onnx": "plain", "piper": "piper-medium"}
    return {
        name: Path(shutil.copytree(exported(kind).folder, tmp_path / name))
        for name, kind in kinds.items()
    }


def test_weights_that_are_not_numbers_are_not_written(tiny, tmp_path):
    for format in ("dense", "sparse", "onnx"):
        with pytest.raises(InputError, match="NaN or infinity"):
            export_voice(with_one(tiny, float("nan")), tmp_path / "out", format)
    with pytest.raises(InputError, match="NaN or infinity"):
        save_voice(with_one(tiny, float("nan")), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_voice_that_speaks_no_numbers_is_not_taken_for_its_file(tiny, copies):
    [model] = copies["onnx"].glob("*.onnx")
    with pytest.raises(InputError, match="does not speak"):
        check_onnx(model, with_one(tiny, float("nan")))


@pytest.mark.parametrize("said", [np.nan, np.inf])
def test_a_file_that_speaks_no_numbers_does_not_pass(said):
    with pytest.raises(InputError, match="not numbers"):
        difference("voice", np.zeros(9, np.float32), np.full(9, said, np.float32))
    with pytest.raises(InputError, match="in length"):
        difference("voice", np.zeros(9, np.float32), np.zeros(8, np.float32))
    assert difference(
        "voice", np.zeros(9, np.float32), np.full(9, 1e-5, np.float32)
    ) == pytest.approx(1e-5)


def test_weights_too_large_for_fp16_are_not_written():
    with pytest.raises(InputError, match="65,504"):
        GraphWriter("fp16").weight("w", torch.full((40, 40), 70_000.0))


def test_a_folder_of_somebody_else_stays(tiny, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / ".git").mkdir(parents=True)
    (theirs / "export.json").write_text('{"format": "csv"}')
    for format in ("onnx", "dense", "sparse"):
        with pytest.raises(InputError, match="is not a saved voice"):
            export_voice(tiny, theirs, format)
    assert {path.name for path in theirs.iterdir()} == {".git", "export.json"}


@pytest.mark.parametrize("first", ["onnx", "piper"])
def test_what_lies_next_to_an_export_stays(shipped, copies, first):
    folder, voice = copies[first], shipped["piper-medium"]
    (folder / "notes.txt").write_text("mine")
    for format in ("onnx", "sparse"):
        with pytest.raises(InputError, match=r"notes\.txt"):
            export_voice(voice, folder, format)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()
    with pytest.raises(
        InputError, match="holds an export of another format"
    ):  # a saved voice does not take the place of an ONNX export
        export_voice(voice, folder, "sparse")
    if first == "piper":
        export_voice(voice, folder, first)
    assert is_export(folder)


def test_a_voice_is_not_exported_over_itself(tiny, tmp_path, capsys):
    folder = save_voice(tiny, tmp_path / "voice")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert (
        cli.main(["export", "--voice", str(folder), "--format", "sparse", "--out", str(folder)])
        != 0
    )
    assert "is the folder of the voice itself" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_neither_the_current_folder_nor_a_link_is_written_over(tiny, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    with pytest.raises(InputError, match="is a link"):
        export_voice(tiny, tmp_path / "link")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="in which this runs"):
        export_voice(tiny, ".")
    assert {path.name for path in tmp_path.iterdir()} == {"here", "link"}


def test_an_export_json_of_another_program_does_not_hide_a_checkpoint(tmp_path):
    folder = make_checkpoint(tmp_path / "voice")
    (folder / "export.json").write_text('{"format": "csv"}')
    assert load_voice(folder).origin.family == "hugging-face"


def test_another_table_of_symbols_is_refused(copies):
    [settings] = copies["piper"].glob("*.onnx.json")
    values = json.loads(settings.read_text())
    inference = {**values["inference"], "length_scale": 1.5}
    edit_json(settings, inference=inference)  # pace and names may be edited
    assert load_voice(copies["piper"]).model.speaking_rate == pytest.approx(1 / 1.5)
    symbols = dict(values["phoneme_id_map"])
    one, other = [symbol for symbol in symbols if symbol not in "_^$"][:2]
    symbols[one], symbols[other] = symbols[other], symbols[one]
    edit_json(settings, phoneme_id_map=symbols)
    with pytest.raises(InputError, match="does not read text as it did"):
        load_voice(copies["piper"])


def test_another_vocabulary_is_refused_without_export_json_too(copies):
    folder = copies["onnx"]
    [model] = folder.glob("*.onnx")
    (folder / "export.json").unlink()
    assert load_voice(model).name
    vocab = json.loads((folder / "vocab.json").read_text())
    one, other = [symbol for symbol in vocab if len(symbol) == 1][:2]
    edit_json(folder / "vocab.json", **{one: vocab[other], other: vocab[one]})
    with pytest.raises(InputError, match="does not read text as it did"):
        load_voice(model)


def test_saved_weights_without_their_manifest_are_refused(tiny, tmp_path):
    folder = save_voice(tiny, tmp_path / "voice")
    (folder / "vits_prune.json").unlink()
    with pytest.raises(InputError, match=r"lacks its vits_prune\.json"):
        load_voice(folder)


def test_the_model_of_an_export_is_not_its_largest_file(tiny, tmp_path, monkeypatch):
    voice = tiny
    monkeypatch.setattr(type(voice.tokenizer), "save", fat_save(type(voice.tokenizer).save))
    assert export_voice(voice, tmp_path / "out", "onnx").model.suffix == ".onnx"


def fat_save(save):
    def saved(tokenizer, folder):
        save(tokenizer, folder)
        with open(f"{folder}/tokenizer_config.json", "a", encoding="utf-8") as file:
            file.write(" " * 3_000_000)

    return saved
