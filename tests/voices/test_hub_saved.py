"""Folders that save_voice and an export wrote, loaded from the hub: the same samples."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.nearly import nearly
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Repository, connect, serving
from tests.voices.piper_factory import X_LOW, make_voice
from vits_prune import InputError, PruneSpec, load_voice, prune, save_voice, speak
from vits_prune.progress import Progress
from vits_prune.pruning import Shape
from vits_prune.ship.formats import export_voice
from vits_prune.voices.load import load_hub

REPO = "someone/pruned"
SPEC = PruneSpec(scope="local", amount=0.8)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as server:
        connect(monkeypatch, server, tmp_path)
        yield server


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """A pruned voice of each kind that is saved in a way of its own."""
    base = tmp_path_factory.mktemp("voices")
    mms = load_voice(make_checkpoint(base / "mms"))
    return {
        "hugging-face": prune(mms, SPEC),
        "speakers": prune(load_voice(make_checkpoint(base / "crowd", speakers=3), 2), SPEC),
        "narrow": prune(
            mms, PruneSpec(method="structured", shape=Shape(resblock_width=0.5, multiple=2))
        ),
        "piper": prune(load_voice(make_voice(base, X_LOW, "small")), SPEC),
        "original": mms,
    }


def same(first, second):
    assert (first.name, first.origin, first.speaker, first.speakers) == (
        second.name,
        second.origin,
        second.speaker,
        second.speakers,
    )
    assert dict(first.recipe) == dict(second.recipe)
    one, two = (
        speak(first, "a bird said hello", 3).waveform,
        speak(second, "a bird said hello", 3).waveform,
    )
    assert one.any()
    assert nearly(one, two)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("hugging-face", "sparse"),
        pytest.param("speakers", "dense", marks=pytest.mark.slow),
        pytest.param("narrow", "sparse", marks=pytest.mark.slow),
        ("piper", "dense"),
    ],
)
def test_a_saved_voice_speaks_the_same_samples_from_the_hub(hub, voices, tmp_path, kind, form):
    folder = save_voice(voices[kind], tmp_path / "saved", form)
    (folder / "README.md").write_text(
        "---\nlicense: cc-by-4.0\n---\nNot what the voice says of itself.", encoding="utf-8"
    )
    (folder / "samples").mkdir()
    (folder / "samples" / "one.wav").write_bytes(b"RIFF")
    hub.repositories[REPO] = [Repository(folder, licence="cc-by-4.0")]
    seen = []
    same(
        voices[kind],
        load_voice(REPO, token=False, progress=Progress(lambda *told: seen.append(told))),
    )
    fetched = {
        path.partition("/main/")[2] or path.rpartition("/")[2]
        for path in hub.paths("GET")
        if "/resolve/" in path
    }
    assert "one.wav" not in {path.rpartition("/")[2] for path in fetched}
    assert seen[-1][1] == 1.0
    assert set(json.loads((folder / "vits_prune.json").read_text())["files"]) <= {
        path.rpartition("/")[2] for path in fetched
    }
    if form == "sparse":
        assert not [path for path in hub.paths("GET") if path.endswith("/model.safetensors")]
    hub.status = 503
    same(voices[kind], load_voice(REPO, token=False))  # from the cache


@pytest.mark.parametrize("kind", ["hugging-face", "piper"])
def test_an_export_speaks_the_same_samples_from_the_hub(hub, voices, tmp_path, kind):
    folder = tmp_path / "export"
    export_voice(voices[kind], folder, "onnx" if kind == "hugging-face" else "piper")
    hub.repositories[REPO] = [Repository(folder)]
    local, fetched = load_voice(folder), load_voice(REPO, token=False)
    assert nearly(speak(local, "hello", 3).waveform, speak(fetched, "hello", 3).waveform)
    assert (local.name, local.origin) == (fetched.name, fetched.origin)
    hub.status = 503
    assert load_voice(REPO, token=False).origin == local.origin


def test_a_stray_dense_file_is_not_taken_for_the_weights_of_a_sparse_voice(hub, voices, tmp_path):
    folder = save_voice(voices["hugging-face"], tmp_path / "saved", "sparse")
    shutil.copyfile(
        save_voice(voices["original"], tmp_path / "other") / "model.safetensors",
        folder / "model.safetensors",
    )
    hub.repositories[REPO] = [Repository(folder)]
    same(voices["hugging-face"], load_hub(REPO))


def _without_weights(folder):
    (folder / "model.sparse.safetensors").unlink()


def _without_a_listed_file(folder):
    (folder / "vocab.json").unlink()


def _other_weights(folder):
    content = bytearray((folder / "model.sparse.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.sparse.safetensors").write_bytes(content)


def _of_a_newer_version(folder):
    manifest = json.loads((folder / "vits_prune.json").read_text())
    (folder / "vits_prune.json").write_text(json.dumps({**manifest, "format_version": 99}))


def _no_json(folder):
    (folder / "vits_prune.json").write_text("{")


def _lists_everything(folder):
    manifest = json.loads((folder / "vits_prune.json").read_text())
    (folder / "vits_prune.json").write_text(
        json.dumps({**manifest, "files": dict.fromkeys(map(str, range(200)), "")})
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_weights, "it has no model.sparse.safetensors"),
        (_without_a_listed_file, "its vocab.json is not the file that was saved"),
        (_other_weights, "its model.sparse.safetensors is not the file that was saved"),
        (_of_a_newer_version, "saved by a newer vits_prune"),
        (_no_json, "vits_prune.json"),
        (_lists_everything, "damaged|lists more than"),
    ],
)
def test_a_damaged_one_is_refused_by_its_name_on_the_hub(hub, voices, tmp_path, spoil, message):
    folder = save_voice(voices["hugging-face"], tmp_path / "saved", "sparse")
    spoil(folder)
    hub.repositories[REPO] = [Repository(folder)]
    with pytest.raises(InputError, match=message) as caught:
        load_hub(REPO)
    assert REPO in str(caught.value)
    assert hub.repositories[REPO][0].commit not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_saved_voice_in_the_cache_is_none(hub, voices, tmp_path):
    folder = save_voice(voices["piper"], tmp_path / "saved", "sparse")
    hub.repositories[REPO] = [Repository(folder)]
    hub.cut_after = 5000
    with pytest.raises(InputError, match="try again"):
        load_hub(REPO)
    hub.status = 503
    with pytest.raises(InputError, match="cannot be reached"):
        load_hub(REPO)
