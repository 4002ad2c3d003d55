"""Files of every age, places and shells, each as REPORTS.md has it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.voices.hf_factory import edit_json, make_checkpoint
from tests.voices.piper_factory import TINIEST, make_voice, settings
from vits_prune import InputError, load_voice, save_voice, speak
from vits_prune.cli.main import main
from vits_prune.ship.formats import export_voice


@pytest.fixture(scope="module")
def piper(tmp_path_factory):
    """A tiny Piper voice with one speaker."""
    return make_voice(tmp_path_factory.mktemp("piper"), TINIEST)


# Places and shells


@pytest.mark.parametrize("quote", ['"{}"', "'{}'", " {} "])
def test_a_path_may_be_pasted_with_its_quotes(tiny_folder, quote):
    assert load_voice(quote.format(tiny_folder)).name == load_voice(tiny_folder).name
    with pytest.raises(InputError, match="There is no file or folder '/no/such'"):
        load_voice(quote.format("/no/such"))


@pytest.mark.parametrize("name", ["模型", "Zoë Müller", "пример", "it's a folder"])
def test_folders_have_names_in_every_script(tmp_path, name, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    voice = load_voice(make_voice(folder, TINIEST))
    again = load_voice(export_voice(voice, folder / "out", "piper").model)
    assert len(speak(again, "a tea").waveform)
    monkeypatch.chdir(tmp_path)
    assert load_voice(save_voice(voice, f"{name}/saved")).recipe == voice.recipe


def test_a_text_that_begins_with_a_hyphen(tiny_folder, tmp_path, capsys):
    line = ["compare", "--voice", str(tiny_folder), "--runs", "1"]
    assert main([*line, "--text", "-5 degrees", "--out", str(tmp_path / "a")]) == 0
    assert main([*line, "--text=-hello", "--out", str(tmp_path / "b")]) == 0
    with pytest.raises(SystemExit) as error:
        main([*line, "--text", "-hello", "--out", str(tmp_path / "c")])
    assert error.value.code == 2
    assert "is written so: --text=-hello" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["layers --voice {}", "--help", "prune --help"])
def test_a_reader_that_goes_away_is_no_traceback(tiny_folder, typed):
    words = "import sys; from vits_prune.cli.main import main; sys.exit(main(sys.argv[1:]))"
    program = [sys.executable, "-c", words, *typed.format(tiny_folder).split()]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait(timeout=120) in (0, 1)
    assert "Traceback" not in error
    assert "BrokenPipe" not in error


# Files of every age


@pytest.mark.parametrize("speaker", [0, "0", None])
def test_the_first_speaker_of_a_voice_with_one_is_the_voice(piper, speaker):
    assert load_voice(piper, speaker).speaker is None
    with pytest.raises(InputError, match="one speaker only: leave the speaker out"):
        load_voice(piper, 163)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_precision_are_read(tmp_path, dtype):
    folder, _ = rewritten(tmp_path, lambda name, one: (name, one.to(dtype)))
    edit_json(folder / "config.json", torch_dtype=str(dtype).removeprefix("torch."))
    assert load_voice(folder).model.dtype == torch.float32
    assert np.isfinite(speak(load_voice(folder), "hi there").waveform).all()


def test_weight_norm_has_old_and_new_names(tmp_path):
    def old(name, one):
        for kind, number in (("weight_g", "original0"), ("weight_v", "original1")):
            name = name.replace(f"parametrizations.weight.{number}", kind)
        return name, one

    folder, tensors = rewritten(tmp_path, old)
    assert any(name.endswith("weight_g") for name in tensors)
    new = load_voice(make_checkpoint(tmp_path / "new"))
    assert np.array_equal(speak(load_voice(folder), "hi").waveform, speak(new, "hi").waveform)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, one: (f"module.{name}", one), "lacks the weights text_encoder"),
        (lambda name, one: (name.replace("decoder", "dec"), one), "lacks the weights decoder"),
    ],
)
def test_weights_under_other_names_are_never_made_up(tmp_path, change, words):
    folder, _ = rewritten(tmp_path, change)
    with pytest.raises(InputError, match=words):
        load_voice(folder)


def rewritten(tmp_path, change):
    """A checkpoint with other names or values of tensors, and these."""
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "rewritten")
    path = folder / "model.safetensors"
    tensors = dict(change(name, one) for name, one in load_file(path).items())
    save_file(tensors, path, metadata={"format": "pt"})
    return folder, tensors


def test_checkpoints_of_a_training_say_what_is_missing(tmp_path):
    folder = make_checkpoint(tmp_path / "training")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_voice(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="save it with save_pretrained"):
        load_voice(folder)


@pytest.mark.parametrize("kind", ["japanese", "hebrew", "openjtalk", "raw", "hindi"])
def test_phonemes_that_no_program_here_makes_are_refused(tmp_path, kind):
    path = make_voice(tmp_path, TINIEST)
    edit_json(path.with_name(path.name + ".json"), phoneme_type=kind)
    with pytest.raises(InputError, match=f"phonemes of type '{kind}'"):
        load_voice(path)


@pytest.mark.parametrize("key", ["inference", "num_symbols", "num_speakers", "speaker_id_map"])
def test_settings_that_old_voices_lack_are_not_needed(tmp_path, key):
    path = make_voice(tmp_path, TINIEST)
    facts = settings(TINIEST)
    del facts[key]
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    assert load_voice(path).speakers == ()


def test_a_quiet_voice_stays_quiet(tiny):
    # Gradio makes floats as loud as they can be; integers stay what they are.
    speech = speak(tiny, "hi there")
    quiet = dataclasses.replace(speech, waveform=speech.waveform / 1_000).pcm16()
    assert quiet.dtype == np.int16
    assert 0 < abs(quiet).max() <= 33
