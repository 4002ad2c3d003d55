"""What people bring, a test for each kind that once went wrong; REPORTS.md says who brought it."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import unicodedata

import numpy as np
import onnx
import pytest
import torch
from torch.nn.utils import prune as torch_prune

from tests.voices.hf_factory import LETTERS, edit_json, make_checkpoint
from tests.voices.piper_factory import SPEAKERS, TINIEST, make_voice, settings
from vits_prune import (
    InputError,
    PruneSpec,
    load_voice,
    measure_sparsity,
    prune,
    save_voice,
    speak,
)
from vits_prune.cli.main import main
from vits_prune.measure.recognition import Recogniser
from vits_prune.studio.request import request_of, spec_of
from vits_prune.synthesis.texts import read_text_file

LINE = "the morning was grey and the boats lay still in the harbour"


@pytest.fixture(scope="module")
def piper(tmp_path_factory):
    """A tiny Piper voice with one speaker."""
    return make_voice(tmp_path_factory.mktemp("piper"), TINIEST)


@pytest.fixture(scope="module")
def french(tmp_path_factory):
    """A tiny character voice with composed letters and a few syllables of Korean."""
    folder = tmp_path_factory.mktemp("french") / "fr"
    return make_checkpoint(folder, symbols=f"{LETTERS}éèêàçùïô한국어", language="fra")


def ids(voice, text):
    return [sentence.ids for sentence in voice.tokenizer.sentences(text)]


def character_piper(folder, symbols):
    """A Piper voice that reads characters."""
    path = make_voice(folder, TINIEST)
    given = {"_": [0], "^": [1], "$": [2]} | {c: [3 + i] for i, c in enumerate(symbols)}
    facts = settings(TINIEST, phoneme_type="text", phoneme_id_map=given)
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    return load_voice(path)


# Wrong without a word


@pytest.mark.parametrize("text", ["\n".join([LINE] * 25), ", ".join([LINE] * 25), f"{LINE} " * 25])
def test_a_long_text_without_full_stops_is_said_whole(piper, text):
    voice = load_voice(piper)
    sentences = list(voice.tokenizer.sentences(text))
    assert max(len(sentence.text) for sentence in sentences) <= 400
    assert " ".join(sentence.text for sentence in sentences).split() == text.split()
    assert not speak(voice, text[:4_000]).cut_short


def test_a_long_text_of_characters_is_said_whole(tmp_path):
    voice = character_piper(tmp_path, "abcdefghijklmnoprstuvwy ,.")
    text = f"{LINE} " * 25
    sentences = list(voice.tokenizer.sentences(text))
    assert max(len(sentence.text) for sentence in sentences) <= 400
    assert " ".join(sentence.text for sentence in sentences).split() == text.split()


def test_syllabic_scripts_are_cut_sooner(tmp_path):
    voice = load_voice(make_checkpoint(tmp_path / "zh", symbols="_ 字词。", language="zho"))
    sentences = list(voice.tokenizer.sentences("字词" * 300))
    assert max(len(sentence.text) for sentence in sentences) <= 133
    assert "".join(sentence.text for sentence in sentences) == "字词" * 300


def test_an_input_that_no_piper_voice_has_is_refused(tmp_path):
    path = make_voice(tmp_path, SPEAKERS)
    model = onnx.load(path)
    language = onnx.helper.make_tensor_value_info("lid", onnx.TensorProto.INT64, [1])
    model.graph.input.append(language)
    onnx.save(model, path)
    with pytest.raises(InputError, match="asks for 'lid'"):
        load_voice(path)


def test_layers_that_vits_has_not_are_refused(tmp_path):
    path = make_voice(tmp_path, TINIEST)
    model = onnx.load(path)
    weight = onnx.numpy_helper.from_array(np.ones((4, 4, 1), np.float32), "enc_p.extra.weight")
    model.graph.initializer.append(weight)
    node = onnx.helper.make_node("Conv", ["input", "enc_p.extra.weight"], ["extra"])
    model.graph.node.append(node)
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"layer \['enc_p.extra'\]"):
        load_voice(path)


def test_weights_that_a_checkpoint_has_beyond_vits_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_checkpoint(tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "embed_language.weight": torch.zeros(3, 8)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"embed_language\.weight"):
        load_voice(folder)
    extra = {"discriminator.convs.0.weight": torch.zeros(3)}  # of training
    save_file({**tensors, **extra}, folder / "model.safetensors")
    load_voice(folder)


def test_masks_of_torch_prune_are_taken_over(tiny, tmp_path):
    voice = tiny.with_weights(
        {name: one.detach().clone() for name, one in tiny.model.named_parameters()}
    )
    layer = voice.model.decoder.conv_pre
    torch_prune.l1_unstructured(layer, "weight", 0.5)
    masked = layer.weight.detach().clone()
    pruned = prune(voice, PruneSpec(scope="local", amount=0.9))
    found = {one.layer.name: one for one in measure_sparsity(pruned).layers}["decoder.conv_pre"]
    assert found.zeros == round(0.9 * masked.numel())
    assert not pruned.model.decoder.conv_pre.weight[masked == 0].any()
    again = load_voice(save_voice(voice, tmp_path / "saved"))
    assert again.model.decoder.conv_pre.weight.equal(masked)
    assert torch_prune.is_pruned(voice.model)  # the voice stays as it was
    assert layer.weight.equal(masked)


@pytest.mark.parametrize("space", ["\t", "\u00a0", "\u2009", "\u3000", "\u202f"])
def test_every_space_is_a_space(tiny, tmp_path, space):
    apart, together = "un deux", f"un{space}deux"
    characters = character_piper(tmp_path, "abcdefghijklmnoprstuvwxy ")
    for voice in (tiny, characters):
        assert ids(voice, together) == ids(voice, apart)


def test_line_breaks_do_not_join_words_of_characters(tmp_path):
    voice = character_piper(tmp_path, "abcdefghijklmnoprstuvwxy ")
    assert ids(voice, "un\ndeux") == ids(voice, "un deux")


@pytest.mark.parametrize("text", ["élève", "Élève à ça", "한국어"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_are_read_in_the_form_that_the_voice_knows(french, tmp_path, text, form):
    voice, given = load_voice(french), unicodedata.normalize(form, text)
    [sentence] = voice.tokenizer.sentences(given)
    assert not sentence.dropped
    assert [c for c in sentence.tokens if c] == [*text.lower()]
    composed = character_piper(tmp_path, sorted({*text}))  # Piper itself takes them apart
    [sentence] = composed.tokenizer.sentences(given)
    assert not sentence.dropped


def test_a_voice_of_decomposed_letters_reads_composed_ones(tmp_path):
    symbols = LETTERS + "\u0301\u0300"
    voice = load_voice(make_checkpoint(tmp_path / "nfd", symbols=symbols))
    assert ids(voice, "élève") == ids(voice, unicodedata.normalize("NFD", "élève"))
    [sentence] = voice.tokenizer.sentences("élève")
    assert not sentence.dropped


def test_a_tilde_is_the_home_folder_everywhere(tiny, tiny_folder, tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    line = ["--voice", str(tiny_folder), "--amount", "0.3", "--out=~/x"]
    assert main(["prune", *line]) == 0
    assert main(["export", "--voice", "~/x", "--format", "sparse", "--out=~/y"]) == 0
    save_voice(tiny, "~/z")
    texts = home / "texts.txt"
    texts.write_text("hi there you\n")
    assert read_text_file("~/texts.txt").texts == ("hi there you",)
    evaluate = ["evaluate", "--voice", str(tiny_folder), "--against", "~/x", "--json=~/e.json"]
    assert main([*evaluate, "--text-file=~/texts.txt"]) == 0
    assert {path.name for path in home.iterdir()} == {"x", "y", "z", "texts.txt", "e.json"}
    assert not list(here.iterdir())


def test_joe_is_joe_whatever_lies_in_the_folder(joe, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_voice(tiny, "joe")
    assert load_voice("joe").sampling_rate == joe.sampling_rate
    assert load_voice("./joe").sampling_rate == tiny.sampling_rate


@pytest.mark.parametrize("given", ["en", "EN", "English", "english", "en-us", "en_GB", "eng"])
def test_languages_are_understood_however_they_are_written(given):
    assert Recogniser(language=given).language == "en"


@pytest.mark.parametrize("given", ["", "klingon", "xx-yy", "e n", "12"])
def test_unknown_languages_are_refused_before_any_work(given, tiny_folder, capsys):
    with pytest.raises(InputError, match="knows no language"):
        Recogniser(language=given)
    if given:
        voices = ["--voice", "/no/such", "--against", "/no/such"]
        assert main(["evaluate", *voices, f"--language={given}"]) == 2
        assert "knows no language" in capsys.readouterr().err


def test_a_windows_1252_file_keeps_its_quotes(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("“Well…” she said – it’s a café.\n".encode("cp1252"))
    found = read_text_file(path)
    assert found.texts == ("“Well…” she said – it’s a café.",)
    assert "Windows-1252" in found.notes[0]


# Crashes


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.8, 1.5])
def test_ctrl_c_while_modules_load_says_one_word(seconds):
    # Before Python itself has started, Ctrl-C is its own affair.
    program = (
        "import runpy, sys; sys.argv = ['vits_prune', 'layers', '--voice', 'joe'];"
        "print('ready', flush=True); runpy.run_module('vits_prune', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    assert process.returncode in (0, 130)
    assert process.returncode == 0 or error == "vits_prune: stopped.\n"


def test_a_voice_can_be_copied_and_pickled(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.3))
    for again in (copy.deepcopy(pruned), copy.copy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert again.recipe == pruned.recipe
        with pytest.raises(TypeError):
            again.recipe["pruned"] = []
        assert np.array_equal(speak(again, "hi there").waveform, speak(pruned, "hi there").waveform)


# Refused though usable


@pytest.mark.parametrize("kind", ["PhonemeType.ESPEAK", "ESPEAK", "PhonemeType.TEXT", "Text"])
def test_phoneme_types_are_read_as_trainers_write_them(tmp_path, kind):
    path = make_voice(tmp_path, TINIEST)
    edit_json(path.with_name(path.name + ".json"), phoneme_type=kind)
    assert load_voice(path).tokenizer.phoneme_type == kind.rpartition(".")[2].lower()


@pytest.mark.parametrize("shape", [TINIEST, SPEAKERS])
def test_graphs_that_onnxruntime_optimised_are_read(tmp_path, shape):
    import onnxruntime

    path = make_voice(tmp_path, shape)
    before = load_voice(path)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "small.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shutil.copy(path.with_name(path.name + ".json"), tmp_path / "small.onnx.json")
    after = load_voice(tmp_path / "small.onnx")
    for name, one in before.model.named_parameters():
        torch.testing.assert_close(after.model.get_parameter(name), one, msg=name)


def test_a_folder_with_several_voices_names_them(tmp_path):
    first = make_voice(tmp_path, TINIEST, "first")
    make_voice(tmp_path, TINIEST, "second")
    with pytest.raises(InputError, match=r"several voices: give one of first\.onnx, second\.onnx"):
        load_voice(tmp_path)
    (tmp_path / "second.onnx").unlink()
    (tmp_path / "._first.onnx").write_bytes(b"\0\5\26\7")  # macOS keeps its own facts so
    assert load_voice(tmp_path).name == "first"
    shutil.move(first.with_name("first.onnx.json"), tmp_path / "config.json")  # the trainer's name
    assert load_voice(tmp_path).name == "first"


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_no_letter(tmp_path, name):
    folder = make_checkpoint(tmp_path / "mark")
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    load_voice(folder)


def test_a_lever_alone_is_structured_pruning(tiny_folder, tmp_path, capsys):
    line = ["prune", "--voice", str(tiny_folder), "--decoder-width", "0.5"]
    assert main([*line, "--importance", "weight_norm", "--out", str(tmp_path / "half")]) == 0
    assert load_voice(tmp_path / "half").recipe["pruned"][-1]["method"] == "structured"
    assert main([*line, "--method", "magnitude", "--out", str(tmp_path / "other")]) == 2
    assert "--decoder-width goes with --method structured" in capsys.readouterr().err


# Further reports


@pytest.mark.parametrize(
    ("symbols", "typed", "read"),
    [
        ("abcdefgilnoprstuâăîţ ", "București ț", "bucureti ţ"),  # there is no s with a mark
        ("авездгбртмчҗылкнѳ ", "дөнья", "дѳн"),  # nor the last two letters
        ("abcdefghijklmnopqrstuvwxyz' ", "don’t", "don't"),
        ("abcdefghijklmnopqrstuvwxyz’ ", "don't", "don’t"),
        ("abcdefghijklmnopqrstuvwxyz- ", "well—so", "well-so"),
        ("abcdefghijklmnopqrstuvwxyz ", "ﬁnd ｏｕｔ", "find out"),
    ],
)
def test_characters_that_look_alike_are_read(tmp_path, symbols, typed, read):
    voice = load_voice(make_checkpoint(tmp_path / "alike", symbols=f"_{symbols}"))
    [sentence] = voice.tokenizer.sentences(typed)
    assert "".join(token for token in sentence.tokens if token) == read


def test_phonemes_that_the_voice_lacks_are_named(piper):
    [sentence] = load_voice(piper).tokenizer.sentences("[[stoʊnhɛnʤ]]")
    assert sentence.ids
    assert "ʤ" in sentence.dropped


def test_espeak_phonemes_are_taken_apart_as_in_training(tmp_path):
    path = make_voice(tmp_path, TINIEST)
    facts = settings(TINIEST, espeak={"voice": "de"})
    facts["phoneme_id_map"] = {**facts["phoneme_id_map"], "c": [36], "\u0327": [37]}
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    [sentence] = load_voice(path).tokenizer.sentences("ich")
    assert {36, 37} <= set(sentence.ids)
    assert not sentence.dropped


def test_a_blank_follows_the_beginning(piper):
    [sentence] = load_voice(piper).tokenizer.sentences("a tea")
    assert sentence.ids[:2] == (1, 0)
    assert sentence.ids[-2:] == (0, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phoneme_type": "pinyin"}, "phonemes of type 'pinyin'"),
        ({"phoneme_id_map": {"_": [0], "^": [1], "$": [2], "a": [144]}}, "gives ids up to 144"),
        ({"espeak": {"voice": "xx-klingon"}}, "xx-klingon"),
        ({"audio": {"sample_rate": "22050"}}, "no audio.sample_rate"),
    ],
)
def test_voices_that_cannot_be_read_say_why(tmp_path, change, words):
    path = make_voice(tmp_path, TINIEST)
    edit_json(path.with_name(path.name + ".json"), **change)
    with pytest.raises(InputError, match=words):
        load_voice(path)


def test_an_old_voice_without_a_phoneme_type_is_espeaks(tmp_path):
    path = make_voice(tmp_path, TINIEST)
    facts = settings(TINIEST)
    del facts["phoneme_type"]
    path.with_name(path.name + ".json").write_text(json.dumps(facts), encoding="utf-8")
    assert load_voice(path).tokenizer.phoneme_type == "espeak"


def test_a_web_page_in_the_place_of_a_file_is_told(tmp_path):
    path = make_voice(tmp_path, TINIEST)
    page = "<!DOCTYPE html><html><body>Not Found</body></html>"
    path.with_name(path.name + ".json").write_text(page)
    with pytest.raises(InputError, match="is not JSON: download or save it again"):
        load_voice(path)
    shutil.copy(path, tmp_path / "whole.onnx")
    path.write_text(page)
    (tmp_path / "voice.onnx.json").write_text(json.dumps(settings(TINIEST)))
    with pytest.raises(InputError, match="fetch it again"):
        load_voice(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"\x80\x02}q\x00." * 400,  # a pickle with another name
        lambda data: data[: len(data) // 2],
        lambda data: (2**62).to_bytes(8, "little") + data[8:],
        lambda data: data.replace(b'"format":"pt"', b'"format":123 '),
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda data: data + b"trailing",
        lambda data: b"",
    ],
)
def test_weights_that_are_no_safetensors_are_one_sentence(tmp_path, damage):
    folder = make_checkpoint(tmp_path / "damaged")
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="damaged weights") as error:
        load_voice(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("speaker", [True, 1.5, "nobody", -1, 99, [0]])
def test_speakers_that_are_none_are_refused(tmp_path, speaker):
    path = make_voice(tmp_path, SPEAKERS)
    with pytest.raises(InputError, match="has no speaker"):
        load_voice(path, speaker)


@pytest.mark.parametrize(
    "text", ["Well!' he said", "really?!?!", "('!') no", "a... b... c", "¡ay!"]
)
def test_runs_of_punctuation_do_not_break_phonemes(tmp_path, text):
    voice = load_voice(make_checkpoint(tmp_path / "phonemes", phonemize=True))
    assert any(sentence.ids for sentence in voice.tokenizer.sentences(text))


def test_the_same_sentence_twice_is_said_twice(piper):
    voice = load_voice(piper)
    speech = speak(voice, "This is a test. This is a Test.")
    assert [one.text for one in speech.sentences] == ["This is a test.", "This is a Test."]


@pytest.mark.parametrize(
    "text", ["😀😀", "...", "؟", "\u200b", "—", "\u202eabc\u202c", "123", "¯\\_(ツ)_/¯"]
)
def test_odd_texts_are_said_or_refused_in_one_sentence(tiny, piper, text):
    for voice in (tiny, load_voice(piper)):
        with contextlib.suppress(InputError):
            assert np.isfinite(speak(voice, text).waveform).all()


@pytest.mark.parametrize(
    "locale", [{"PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_consoles_and_locales_without_unicode(tmp_path, tiny_folder, locale):
    texts = tmp_path / "texts.txt"
    texts.write_text("ünï čöde → 字\n", encoding="utf-8")
    spoken = ["--voice", str(tiny_folder), "--text", "ünï čöde → 字", "--runs", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "vits_prune", "compare", *spoken, "--out", str(tmp_path / "out")],
        env={**os.environ, **locale},
        capture_output=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert b"Traceback" not in run.stderr
    assert read_text_file(texts).texts == ("ünï čöde → 字",)


@pytest.mark.parametrize(
    "values",
    [{"amount": None}, {"amount": "0.3"}, {"steps": 2.5}, {"amount": float("nan")}, {"bits": "x"}],
)
def test_values_that_clients_send_by_mistake_are_told(values):
    with pytest.raises(InputError) as error:
        spec_of(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["voice", "text", "speaker"])
@pytest.mark.parametrize("value", [[None], {"a": 1}, 3, True])
def test_words_that_are_something_else_are_told(name, value):
    with pytest.raises(InputError, match=f"The {name} is given as text, not as"):
        request_of({"voice": "joe", "text": "hi", name: value})
