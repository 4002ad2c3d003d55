"""A saved voice speaks the same samples, opens in transformers, and is whole or not there."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import VitsModel

from tests.nearly import nearly
from tests.voices.hf_factory import SMALL, edit_json, make_checkpoint
from vits_prune import InputError, PruneSpec, files, load_voice, prune, save_voice, speak
from vits_prune.voices import saved
from vits_prune.voices.architecture import PiperVitsConfig, PiperVitsModel, fold_and_cut
from vits_prune.voices.manifest import MARK, SAVE_VERSION, SAVED_FILE

TEXT = "the birch canoe slid"
LOCAL = PruneSpec(scope="local", amount=0.9)


def same_voice(first, second, text=TEXT):
    for name in ("name", "origin", "sampling_rate", "speaker", "speakers", "free_cut"):
        assert getattr(first, name) == getattr(second, name), name
    assert dict(first.recipe) == dict(second.recipe)
    old, new = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    one, two = speak(first, text, 3), speak(second, text, 3)
    return nearly(one.waveform, two.waveform) and one.waveform.any()


def contents(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def refused(make, match=None):
    with pytest.raises(InputError, match=match) as error:
        make()
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_the_real_voice_comes_back(joe, tmp_path):
    voice = prune(joe, PruneSpec(amount=0.3))
    assert save_voice(voice, tmp_path / "deep" / "joe-30") == tmp_path / "deep" / "joe-30"
    again = load_voice(tmp_path / "deep" / "joe-30")
    assert same_voice(voice, again, "Glue the sheet.")
    assert PruneSpec.from_dict(again.recipe["pruned"][0]) == PruneSpec(amount=0.3)
    assert PruneSpec.from_json(
        (tmp_path / "deep" / "joe-30" / "prune_spec.json").read_text()
    ) == PruneSpec(amount=0.3)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["joe-30"]
    assert not any(
        "parametrizations" in name
        for name in load_file(tmp_path / "deep" / "joe-30" / "model.safetensors")
    )


FAMILIES = pytest.mark.parametrize(
    ("options", "speaker"),
    [({}, None), ({"speakers": 3}, 2), ({"speakers": 3, "stochastic": False}, 1)],
    ids=["stochastic", "speakers", "speakers-plain-durations"],
)


@FAMILIES
def test_a_hugging_face_voice_comes_back_and_opens_in_plain_transformers(
    tmp_path, options, speaker
):
    voice = prune(load_voice(make_checkpoint(tmp_path / "tiny", **options), speaker), LOCAL)
    rows = [
        weight.flatten(1).abs().sum(1)
        for name, weight in voice.model.named_parameters()
        if "flow" in name and weight.ndim == 3
    ]
    assert any(
        bool((row == 0).any()) for row in rows
    )  # rows without a direction, the hard case of weight norm
    folder = save_voice(voice, tmp_path / "saved")
    assert same_voice(voice, load_voice(folder))

    plain, told = VitsModel.from_pretrained(folder, output_loading_info=True)
    assert not any(
        told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    )
    ids = torch.tensor([next(iter(voice.tokenizer.sentences(TEXT))).ids])
    condition = {} if speaker is None else {"speaker_id": speaker}
    waves = []
    for model in (plain.eval(), voice.model):
        torch.manual_seed(4)
        with torch.no_grad():
            waves.append(model(ids, **condition).waveform)
    assert waves[0].shape == waves[1].shape
    assert torch.isfinite(waves[0]).all()
    assert waves[1].std() > 0
    assert torch.allclose(waves[0], waves[1], atol=1e-5)


def test_another_speaker_may_be_chosen_on_loading(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "tiny", speakers=3), 2)
    folder = save_voice(voice, tmp_path / "saved")
    assert load_voice(folder).speaker == 2
    assert load_voice(folder, 1).speaker == 1
    assert load_voice(folder, 0).speaker == 0
    refused(lambda: load_voice(folder, 3), "no speaker")


def test_an_original_has_no_recipe_and_no_spec(tiny, tmp_path):
    folder = save_voice(tiny, tmp_path / "saved")
    assert not (folder / "prune_spec.json").exists()
    assert same_voice(tiny, load_voice(folder))


def test_saved_twice_is_the_same(tiny, tmp_path):
    voice = prune(tiny, LOCAL)
    first = save_voice(voice, tmp_path / "first")
    second = save_voice(load_voice(first), tmp_path / "second")
    assert contents(first) == contents(second)


def test_a_saved_voice_is_replaced(tiny, tmp_path):
    folder = save_voice(prune(tiny, LOCAL), tmp_path / "saved", "sparse")
    again = prune(tiny, PruneSpec(amount=0.1))
    save_voice(again, folder)
    assert same_voice(again, load_voice(folder))
    assert not (folder / "model.sparse.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_an_empty_folder_is_filled(tiny, tmp_path):
    (tmp_path / "saved").mkdir()
    assert same_voice(tiny, load_voice(save_voice(tiny, tmp_path / "saved")))


def test_what_is_not_a_saved_voice_is_left_alone(tiny, tiny_folder, tmp_path):
    for name in ("photos", "file"):
        path = tmp_path / name
        if name == "photos":
            path.mkdir()
            (path / "cat").write_text("meow")
        else:
            path.write_text("meow")
        refused(lambda path=path: save_voice(tiny, path), "not a saved voice")
    before = contents(tiny_folder)
    refused(lambda: save_voice(tiny, tiny_folder), "not a saved voice")
    assert contents(tiny_folder) == before
    assert (tmp_path / "photos" / "cat").read_text() == (tmp_path / "file").read_text() == "meow"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


def test_places_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    refused(lambda: save_voice(tiny, tmp_path / "file" / "below"))
    refused(lambda: save_voice(tiny, tmp_path / ("x" * 300)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_full_disk_leaves_nothing_behind(tiny, tmp_path, monkeypatch, there_before):
    target = tmp_path / "saved"
    if there_before:
        save_voice(prune(tiny, LOCAL), target)
    before, calls = contents(tmp_path), []

    def full(tensors, path, **options):
        Path(path).write_bytes(b"half of it")
        calls.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saved, "save_file", full)
    refused(lambda: save_voice(tiny, target), "No space left on device")
    assert len(calls) == 1
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["saved"] if there_before else [])


def test_a_disk_that_is_full_for_safetensors(joe, tmp_path):
    """safetensors reports what the system refuses as an error of its own kind."""
    handler, limits = (
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        refused(lambda: save_voice(joe, tmp_path / "saved"), "could not be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_keeps_the_voice_that_was_there(tiny, tmp_path, monkeypatch, failing):
    target = save_voice(prune(tiny, LOCAL), tmp_path / "saved")
    before, replace, calls = contents(tmp_path), Path.replace, []

    def fails(source, destination):
        calls.append(source)
        if len(calls) == failing:
            raise OSError(errno.EACCES, "Permission denied")
        return replace(source, destination)

    monkeypatch.setattr(Path, "replace", fails)
    monkeypatch.setattr(files, "_swapped", lambda *_: False)
    refused(lambda: save_voice(tiny, target), "Permission denied")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_an_interrupt_leaves_nothing_behind(tiny, tmp_path):
    class Interrupted:
        def save(self, folder):
            assert list(Path(folder).iterdir())  # in the middle of it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_voice(dataclasses.replace(tiny, tokenizer=Interrupted()), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny, joe):
    """Tiny saved voices: the Piper one is joe's tokenizer with a random network."""
    place = tmp_path_factory.mktemp("whole")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PiperVitsModel(
            PiperVitsConfig(**SMALL, vocab_size=joe.model.config.vocab_size, resblock="2")
        )
    fold_and_cut(model)
    small = dataclasses.replace(
        joe, model=model, sampling_rate=model.config.sampling_rate, name="small"
    )
    folders = {
        "hugging-face": save_voice(prune(tiny, LOCAL), place / "tiny"),
        "piper": save_voice(prune(small, LOCAL), place / "small"),
    }
    assert same_voice(prune(small, LOCAL), load_voice(folders["piper"]))
    return folders


@pytest.fixture(params=["hugging-face", "piper"])
def folder(request, whole, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole[request.param], tmp_path / "voice"))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        lambda path: path.write_bytes(b"not a voice"),
        lambda path: path.write_bytes(b""),
        Path.unlink,
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", SAVED_FILE])
def test_damaged_files(folder, name, spoil):
    spoil(folder / name)
    refused(lambda: load_voice(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: {"decoder.conv_pre.weight": weight[..., :-1].contiguous()},
        lambda weight: {"decoder.conv_pre.weight": torch.full_like(weight, torch.nan)},
        lambda weight: {},
        lambda weight: {"decoder.conv_pre.weight": weight.long()},
    ],
    ids=["shape", "nan", "missing", "integers"],
)
def test_weights_that_do_not_fit(folder, change, request):
    path, name = folder / "model.safetensors", "decoder.conv_pre.weight"
    tensors = load_file(path)
    wrong = change(tensors.pop(name))
    save_file({**tensors, **wrong}, path, metadata={"format": "pt"})
    if (
        "integers" in request.node.name
        and json.loads((folder / SAVED_FILE).read_text())["family"] == "piper"
    ):
        assert all(
            parameter.dtype == torch.float32 for parameter in load_voice(folder).model.parameters()
        )
    else:
        refused(lambda: load_voice(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": "1"},
        {"format_version": 0},
        {"format_version": ...},
        {"family": "tacotron"},
        {"family": ["piper"]},
        {"recipe": 3},
        {"recipe": {"pruned": 3}},
        {"recipe": {"pruned": [3]}},
        {"recipe": {"pruned": [{"parts": 3}]}},
        {"origin": None},
        {"origin": "joe"},
        {"name": ...},
        {"speakers": 3},
        {"speakers": ["a", "b"]},
        {"speaker": 1},
        {"free_cut": {"parameters": float("inf"), "bytes": 0}},
        {"free_cut": {}},
    ],
    ids=str,
)
def test_damaged_manifests(folder, change):
    edit_json(folder / SAVED_FILE, crc32=..., **change)  # a stranger's folder need not have it
    refused(lambda: load_voice(folder))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "[" * 100_000, "\ufeff", '{"format_version": 1}', " " * (2 << 20)],
    ids=lambda text: ascii(text)[:12],
)
def test_manifests_that_are_no_object(folder, text):
    (folder / SAVED_FILE).write_text(text)
    refused(lambda: load_voice(folder), "damaged")


def test_a_newer_format(folder):
    edit_json(folder / SAVED_FILE, format_version=SAVE_VERSION + 1)
    refused(lambda: load_voice(folder), "newer")


def test_weights_that_were_trained_on_are_not_mistaken_for_the_saved_ones(tiny, tmp_path):
    folder = save_voice(tiny, tmp_path / "saved")
    plain = VitsModel.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name.endswith("original0"):
                parameter.mul_(1.5)
    plain.save_pretrained(folder)
    name = "flow.flows.0.wavenet.in_layers.0.weight"
    old, new = (dict(voice.model.named_parameters())[name] for voice in (tiny, load_voice(folder)))
    assert torch.allclose(new, 1.5 * old, rtol=1e-4)


def test_the_weights_file_is_plain_safetensors(whole):
    for folder in whole.values():
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", **MARK}
        assert not list(folder.glob("*.bin"))
        assert {"config.json", "model.safetensors", SAVED_FILE, "prune_spec.json"} <= {
            path.name for path in folder.iterdir()
        }


def test_what_a_user_put_beside_a_saved_voice_is_not_removed(tiny, tmp_path):
    folder = save_voice(tiny, tmp_path / "voice")
    assert save_voice(tiny, folder, "sparse") == folder  # what a save wrote is replaced
    (folder / "notes.txt").write_text("mine")
    for damage in (False, True):
        if damage:
            (folder / SAVED_FILE).write_text("{")
        with pytest.raises(InputError, match=r"notes\.txt.*would be removed"):
            save_voice(tiny, folder)
        assert (folder / "notes.txt").read_text() == "mine"
        assert (folder / "model.sparse.safetensors").is_file()
    (folder / "notes.txt").unlink()
    assert load_voice(save_voice(tiny, folder)).name == tiny.name


def test_a_folder_of_a_first_version_is_replaced_and_one_of_a_newer_is_not(tiny, tmp_path):
    folder = save_voice(tiny, tmp_path / "voice")
    manifest = json.loads((folder / SAVED_FILE).read_text())
    first = {name: value for name, value in manifest.items() if name not in ("files", "crc32")}
    (folder / SAVED_FILE).write_text(json.dumps(first))
    save_voice(tiny, folder)
    (folder / SAVED_FILE).write_text(json.dumps({**first, "format_version": SAVE_VERSION + 1}))
    with pytest.raises(InputError, match="saved by a newer vits_prune"):
        save_voice(tiny, folder)
    assert (folder / "model.safetensors").is_file()
