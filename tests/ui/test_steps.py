"""What the page's buttons do, without a browser."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.voices import piper_factory
from vits_prune import PruneSpec, load_voice, prune, speak
from vits_prune.errors import InputError
from vits_prune.ui import flip, page, steps
from vits_prune.voices.voice import PARTS
from vits_prune.workbench import Request, Spoken, Workbench

GOOD = {"voice": "joe", "speaker": None, "text": "hi", "scope": "global", "amount": 0.3, "parts": list(PARTS), "seed": 0, "timing": "own"}


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    """A workbench with an uploaded tiny voice, behind the steps; its reference."""
    path = piper_factory.make_voice(tmp_path_factory.mktemp("piper"), piper_factory.TINIEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "bench", Workbench())
        yield steps.bench.keep_upload(path, path.with_name(path.name + ".json"))[0]


def test_the_inputs_become_a_request():
    request = steps.request_of(**{**GOOD, "voice": " joe ", "speaker": "", "seed": None, "speaking_rate": 1.5})
    assert request == Request("joe", "hi", PruneSpec(), delivery=request.delivery)
    assert request.delivery.speaking_rate == 1.5
    assert list(page.SPEAKING) == list(steps.request_of.__annotations__)[: len(page.SPEAKING)]


@pytest.mark.parametrize(
    "changes",
    [
        {"text": None},
        {"text": "a" * (steps.MAX_PAGE_CHARACTERS + 1)},
        {"amount": float("nan")},
        {"amount": 1.0},
        {"amount": None},
        {"parts": []},
        {"parts": None},
        {"parts": 5},
        {"scope": None},
        {"seed": 2**32},
        {"timing": None},
        {"speaking_rate": 9},
        {"noise_scale": float("nan")},
        {"noise_scale_duration": -1},
    ],
    ids=str,
)
def test_inputs_that_cannot_be_used(changes):
    with pytest.raises(InputError, match=r"^[^\n]+\.$"):
        steps.request_of(**{**GOOD, **changes})


def test_only_sentences_reach_the_page(caplog):
    @steps.plainly
    def refuses():
        raise InputError("Choose another.")

    @steps.plainly
    def breaks():
        raise RuntimeError("/home/owner/secret is broken")

    @steps.plainly
    def breaks_later():
        yield 1
        raise RuntimeError("/home/owner/secret is broken")

    with pytest.raises(gr.Error) as caught:
        refuses()
    assert caught.value.message == "Choose another."
    for broken in (breaks, lambda: list(breaks_later())):
        caplog.clear()
        with pytest.raises(gr.Error) as caught:
            broken()
        assert "secret" not in caught.value.message
        assert "secret" in caplog.text, "the owner finds it in the log"
    assert next(iter(breaks_later())) == 1


def test_no_visitor_is_given_the_servers_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_serverownersecret")
    assert steps.visitor_token(None) is None
    assert steps.visitor_token(gr.OAuthToken(token="mine", scope="", expires_at=0)) == "mine"


def test_wav_keeps_the_level(tiny):
    speech = speak(tiny, "hi there")
    path = steps.wav(speech, "original")
    heard, rate = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(heard, speech.pcm16())
    assert (rate, Path(path).name) == (16_000, "original.wav")
    assert soundfile.info(path).subtype == "PCM_16"


def test_csv_holds_the_table():
    table = pd.DataFrame({"what": ["a, b", "c"], "n": [1, 2]})
    path = Path(steps.csv(table, "sizes"))
    assert path.name == "sizes.csv"
    pd.testing.assert_frame_equal(pd.read_csv(path), table)


def test_two_that_are_not_aligned_cannot_be_flipped(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.9))
    first = speak(tiny, "hi there")
    own, locked = speak(pruned, "hi there"), speak(pruned, "hi there", timing=first)
    assert steps.flip_value(Spoken(first, locked, ())) is flip.LOCKED
    assert not np.array_equal(own.durations, first.durations)
    assert steps.flip_value(Spoken(first, own, ())) is flip.OWN


def test_the_readout(upload):
    parts = list(PARTS)
    assert "at least one part" in steps.readout(upload, "global", 0.3, [], None)
    assert "once the voice is loaded" in steps.readout("someone/else", "global", 0.3, parts, None)
    assert "once the voice is loaded" in steps.readout(upload, "global", 0.3, parts, "a visitor's token")
    shown = steps.readout(upload, "local", 0.5, ["flow"], None)
    expected = steps.bench.preview(upload, PruneSpec(scope="local", amount=0.5, parts=("flow",)))
    assert f"**{100 * expected['overall']:.1f}%** of the whole voice" in shown
    assert f"flow {100 * expected['flow']:.1f}%" in shown


def test_the_saved_folder_is_the_pruned_voice(upload, tmp_path):
    request = Request(upload, "hi", PruneSpec(amount=0.4))
    archive = Path(steps.saved_folder(request, None))
    assert archive.suffix == ".zip"
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    zipfile.ZipFile(archive).extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    expected = speak(steps.bench.pruned(request), "hi").waveform
    np.testing.assert_array_equal(speak(load_voice(folder), "hi").waveform, expected)


def test_what_was_forgotten_is_spoken_again(upload):
    request = Request(upload, "hi", PruneSpec(amount=0.4), seed=9)
    assert steps.bench.recall(request) is None
    spoken = steps.spoken_before(request, None)
    steps.bench.remember(request, spoken)
    assert steps.spoken_before(request, None) is spoken


@pytest.mark.parametrize("names", [[], ["a.onnx"], ["a.json"], ["a.onnx", "b.onnx"], ["a.onnx", "b.json", "c.json"], ["a.onnx", "b.txt"]])
def test_an_upload_is_one_onnx_and_one_json(names):
    with pytest.raises(InputError, match=r"choose its \.onnx and its \.onnx\.json together"):
        page._upload(names)


def test_facts_name_the_licence_and_the_free_cut(tiny, joe):
    assert "Licence of the weights: cc0-1.0." in steps.free_cut_words(joe)
    words = steps.free_cut_words(tiny)
    assert f"Free cut: {tiny.free_cut.parameters / 1e6:.1f} M parameters" in words
    assert "not stated" in words


def test_what_comes_from_outside_is_only_text_in_markdown():
    assert steps.plain("![x](https://evil.example/t.png)") == r"\!\[x\]\(https://evil.example/t.png\)"
    assert "\n" not in steps.plain("a\nb")
    assert len(steps.plain("a" * 1000)) == 120


def test_latency_is_measured_on_the_beginning_of_a_long_text():
    long = "The birch canoe slid on the smooth planks. " * 40
    assert 0 < len(steps.timed_text(long)) <= steps.MAX_TIMED_CHARACTERS + 40
    assert long.startswith(steps.timed_text(long))
    assert steps.timed_text(" One sentence. And two. ") == "One sentence. And two."
