"""Files, folders and names as people bring them; REPORTS.md says who brought which kind."""

from __future__ import annotations

import codecs
import copy
import json
import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrizations import weight_norm

from tests.voices.hf_factory import make_checkpoint
from tests.voices.piper_factory import TINIEST, make_voice, settings
from vits_prune import (
    InputError,
    PruneSpec,
    layers,
    load_voice,
    measure_sparsity,
    prune,
    save_voice,
    speak,
)
from vits_prune.cli.main import main
from vits_prune.cli.terminal import ProgressLine
from vits_prune.files import expanded
from vits_prune.healing.recording_files import read_rows
from vits_prune.healing.storage import Curve
from vits_prune.measure import recognition
from vits_prune.measure.cost import Spread, count_macs
from vits_prune.measure.quality import Interval
from vits_prune.measure.recognition import Recogniser
from vits_prune.ship import bench
from vits_prune.study.budget import Candidate
from vits_prune.synthesis.speak import write_wav
from vits_prune.voices.voice import language_of

PLAN = {"sampling_rate": 16_000, "scales": [0.6, 1, 0], "sentences": [{"ids": [1, 2]}]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder; the commands run in another, which stays empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


# Paths


def test_bench_knows_the_home_folder(home, monkeypatch):
    row = {"threads": 1, "joules_per_audio_second": None}
    result = {"vits_prune_bench": 1, "machine": {}, "rows": [row]}
    monkeypatch.setattr(bench, "is_onnx", lambda model: True)
    monkeypatch.setattr(bench, "bench", lambda *how: result)
    assert main(["bench", "~/x.onnx", "--json=~/a.json"]) == 0
    assert main(["bench", "--merge=~/a.json", "--json=~/b.json"]) == 0
    assert {path.name for path in home.iterdir()} == {"a.json", "b.json"}


def test_the_library_knows_the_home_folder(home, tiny, tmp_path):
    write_wav(speak(tiny, "hi there"), "~/a.wav")
    (home / "tokens").mkdir()
    tiny.tokenizer.save("~/tokens")
    assert type(tiny.tokenizer).load("~/tokens").symbols == tiny.tokenizer.symbols
    piper = load_voice(make_voice(home, TINIEST))
    piper.tokenizer.save("~/tokens")
    assert type(piper.tokenizer).load("~/tokens").symbols == piper.tokenizer.symbols
    with pytest.raises(InputError, match="no home folder '~nobody-here'"):
        expanded("~nobody-here/x")
    assert expanded(expanded("./~nobody-here/x")) == Path.cwd() / "~nobody-here" / "x"
    with pytest.raises(SystemExit):
        main(["prune", "--voice", "joe", "--out=~nobody-here/x"])


def test_endings_of_files_may_be_capitals(tmp_path):
    path = make_voice(tmp_path, TINIEST)
    shutil.move(f"{path}.json", tmp_path / "VOICE.ONNX.json")
    assert load_voice(shutil.move(path, tmp_path / "VOICE.ONNX")).name == "VOICE"


def test_a_folder_of_folders_names_the_voices_in_them(tmp_path):
    (tmp_path / "medium").mkdir()
    make_voice(tmp_path / "medium", TINIEST)
    with pytest.raises(InputError, match=r"folders with voices: give one of medium/voice\.onnx"):
        load_voice(tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--amount", "30%", "give a number such as 0.3, not '30%'"),
        ("--decoder-width", "0,5", "give a number such as 0.3, not '0,5'"),
        ("--flows", "two", "give a whole number, not 'two'"),
    ],
)
def test_numbers_are_asked_for_in_plain_words(option, value, words, capsys):
    with pytest.raises(SystemExit) as error:
        main(["prune", "--voice", "joe", option, value, "--out", "x"])
    assert error.value.code == 2
    assert words in capsys.readouterr().err


# Names


def test_joe_is_joe_for_a_bench_too(tiny, joe, tmp_path, monkeypatch, caplog):
    make_voice(tmp_path, TINIEST).parent.rename(tmp_path.with_name("joe-folder"))
    monkeypatch.chdir(tmp_path.with_name("joe-folder"))
    Path("joe").mkdir()
    shutil.move("voice.onnx", "joe/voice.onnx")
    assert not bench.is_onnx("joe")
    assert bench.is_onnx("./joe")
    with caplog.at_level(logging.WARNING):
        assert load_voice(" joe ").sampling_rate == joe.sampling_rate
    assert "./joe is the folder here" in caplog.text


def test_a_size_of_whisper_is_a_size_whatever_lies_in_the_folder(tmp_path, monkeypatch):
    import faster_whisper

    asked = []
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()  # as README's `--out small` makes it
    monkeypatch.setattr(faster_whisper, "download_model", lambda size: f"models/{size}")
    monkeypatch.setattr(faster_whisper, "WhisperModel", lambda where, **_: asked.append(where))
    monkeypatch.setattr(recognition, "_transcribe", lambda *_: "one")  # loading tries it
    recognition._load("small", "cpu", "int8", 1)
    assert asked == ["models/small"]


@pytest.mark.parametrize(
    ("given", "language"),
    [
        ("en_US.UTF-8", "en"),
        ("British English", "en"),
        ("Portuguese (Brazil)", "pt"),
        ("Mandarin Chinese", "zh"),
        ("'de'", "de"),
        ("jv", "jw"),
        ("fil", "tl"),
        ("tgl", "tl"),
    ],
)
def test_languages_have_many_spellings(given, language):
    assert Recogniser(language=given).language == language


def test_voices_of_every_language_of_whisper_are_transcribed():
    assert (language_of("tgl"), language_of("jav")) == ("tl", "jw")
    with pytest.raises(InputError):
        Recogniser(language="English and German")


# JSON and CSV


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_json_is_read_in_the_encodings_of_windows(tmp_path, encoding):
    path = make_voice(tmp_path, TINIEST)
    facts = path.with_name(path.name + ".json")
    facts.write_bytes(facts.read_text(encoding="utf-8").encode(encoding))
    assert load_voice(path).name == "voice"
    assert bench.read_plan(path)["sampling_rate"] == 16_000
    spec = codecs.BOM_UTF8.decode() + PruneSpec(amount=0.7).to_json()
    assert PruneSpec.from_json(spec).amount == 0.7


@pytest.mark.parametrize("name", ["voice.json", "config.json"])
def test_a_bench_finds_the_json_that_the_loader_finds(tmp_path, name):
    path = make_voice(tmp_path, TINIEST)
    facts = settings(TINIEST)
    del facts["inference"]
    path.with_name(path.name + ".json").unlink()
    path.with_name(name).write_text(json.dumps(facts), encoding="utf-8")
    (tmp_path / "._voice.onnx").write_bytes(b"\0\5\26\7")
    assert load_voice(tmp_path).name == "voice"
    assert bench.find_model(tmp_path) == path
    assert bench.read_plan(path)["scales"] == [0.667, 1.0, 0.0]


@pytest.mark.parametrize("changes", [{"inference": None}, {"phoneme_type": " espeak-ng "}])
@pytest.mark.parametrize("espeak", ["en_us", " en-us"])
def test_facts_of_piper_have_many_spellings(tmp_path, changes, espeak):
    path = make_voice(tmp_path, TINIEST)
    facts = settings(TINIEST, espeak={"voice": espeak}, **changes)
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    assert load_voice(path).tokenizer.espeak_voice == "en-us"


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_transcripts_are_read_as_spreadsheets_write_them(tmp_path, mark, end, encoding):
    lines = f"file_name{mark}text", f'a.wav{mark}"Déjà vu, {mark}he said"', ""
    (tmp_path / "metadata.csv").write_bytes(end.join(lines).encode(encoding))
    [row], skipped = read_rows(tmp_path)
    assert (row.name, row.text, skipped) == ("a.wav", f"Déjà vu, {mark}he said", [])


def test_a_curve_that_a_spreadsheet_saved_is_read(tmp_path):
    (tmp_path / "curve.csv").write_bytes(codecs.BOM_UTF8 + b"step,total\r\n10,0.5\r\n")
    assert Curve.read(tmp_path / "curve.csv").rows == [{"step": 10, "total": 0.5}]


# Weights


def changed(path, change):
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return path


def test_weights_of_a_graph_that_vits_has_not_are_refused(tmp_path):
    def speaks_one_language(graph):
        table = onnx.numpy_helper.from_array(np.ones((3, 4), np.float32), "emb_l.weight")
        index = onnx.numpy_helper.from_array(np.array([1]), "language")
        graph.initializer.extend([table, index])
        node = onnx.helper.make_node("Gather", ["emb_l.weight", "language"], ["which"])
        graph.node.append(node)

    with pytest.raises(InputError, match=r"the weights \['emb_l\.weight'\], which VITS does not"):
        load_voice(changed(make_voice(tmp_path, TINIEST), speaks_one_language))


def test_a_quantised_graph_is_called_that(tmp_path):
    node = onnx.helper.make_node("DequantizeLinear", ["a", "b"], ["c"])
    path = changed(make_voice(tmp_path, TINIEST), lambda graph: graph.node.append(node))
    with pytest.raises(InputError, match="it is quantised"):
        load_voice(path)


def test_graphs_with_layers_that_onnxruntime_joined_are_read(tmp_path):
    import onnxruntime

    path = make_voice(tmp_path, TINIEST)
    before = load_voice(path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "all.onnx"), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shutil.copy(path.with_name(path.name + ".json"), tmp_path / "all.onnx.json")
    after = load_voice(tmp_path / "all.onnx")
    for name, one in before.model.named_parameters():
        torch.testing.assert_close(after.model.get_parameter(name), one, msg=name)


def test_a_checkpoint_with_masks_says_how_to_make_them_permanent(tmp_path):
    folder = make_checkpoint(tmp_path / "masked")
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop("decoder.conv_pre.weight")
    masked = {"_orig": weight, "_mask": torch.ones_like(weight)}
    tensors |= {f"decoder.conv_pre.weight{end}": one for end, one in masked.items()}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"a mask beside decoder\.conv_pre\.weight"):
        load_voice(folder)


def own(voice):
    """A copy whose tensors are its own, to be changed."""
    return copy.deepcopy(voice)


def test_what_is_measured_knows_masks(tiny):
    voice = own(tiny)
    torch_prune.l1_unstructured(voice.model.decoder.conv_pre, "weight", 0.3)
    torch_prune.random_unstructured(voice.model.decoder.conv_pre, "weight", 0.3)
    zeros = int((voice.model.decoder.conv_pre.weight == 0).sum())
    assert zeros
    found = {one.layer.name: one for one in measure_sparsity(voice).layers}
    assert found["decoder.conv_pre"].zeros == zeros
    assert layers(voice) == layers(tiny)
    _, (dense, left) = count_macs(voice, "hi there")
    assert left < dense


def test_layers_that_torch_makes_of_others_are_refused(tiny, tmp_path):
    voice = own(tiny)
    weight_norm(voice.model.decoder.conv_pre)
    for work in (lambda: prune(voice, PruneSpec()), lambda: save_voice(voice, tmp_path / "x")):
        with pytest.raises(InputError, match=r"layer decoder\.conv_pre is parametrised"):
            work()


def test_a_voice_with_another_layer_is_not_saved_with_zeros(tiny, tmp_path):
    voice = own(tiny)
    voice.model.decoder.conv_pre = torch.nn.Sequential(voice.model.decoder.conv_pre)
    with pytest.raises(InputError, match="Layers were added to tiny or taken out"):
        save_voice(voice, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_voice_in_half_precision_is_saved_whole(tiny, tmp_path, form):
    voice = own(tiny)
    voice.model.bfloat16()
    again = load_voice(save_voice(voice, tmp_path / "half", form))
    for name, one in voice.model.named_parameters():
        assert again.model.get_parameter(name).equal(one.float()), name


def test_what_a_budget_found_can_be_copied():
    latency, quality = Spread(0.5, 0.4, 0.6), {"cer": Interval(0.01, 0.0, 0.02, 20)}
    one = Candidate((PruneSpec(),), "cut", 10, "dense", 1.0, latency, 0.5, quality)
    for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert again.to_dict() == one.to_dict()


# Streams


def test_streams_may_be_closed(tiny_folder, monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["layers", "--voice", str(tiny_folder)]) == 0
    with ProgressLine() as progress:
        progress.report("at work", 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"), [("| true", 1), ("2>&-", 0), (">&- 2>&- <&-", 0), ("> /dev/full", 1)]
)
def test_streams_may_go_away(tiny_folder, how, code):
    line = f"{sys.executable} -m vits_prune layers --voice {tiny_folder} {how}"
    line = f"{line}; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", line], capture_output=True, timeout=120)
    assert run.returncode == code
    assert b"Traceback" not in run.stderr
    assert b"ignored" not in run.stderr
