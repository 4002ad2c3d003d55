"""What the page's buttons do, without a browser."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import pytest
import soundfile
from vits_prune.studio.forecast import forecast_words

from tests.voices import piper_factory
from vits_prune import PruneSpec, prune, speak
from vits_prune.errors import InputError
from vits_prune.measure import measure_sparsity
from vits_prune.pruning.prune import prune_steps
from vits_prune.studio.jobs import Doing
from vits_prune.studio.workbench import Request, Spoken, Workbench
from vits_prune.ui import controls, events, flip, hearing, page, steps

GOOD = {
    "voice": "joe",
    "speaker": None,
    "text": "hi",
    "spec": PruneSpec(),
    "seed": 0,
    "timing": "own",
}


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    """A workbench with an uploaded tiny voice, behind the steps; its reference."""
    path = piper_factory.make_voice(tmp_path_factory.mktemp("piper"), piper_factory.TINIEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "bench", Workbench())
        yield steps.bench.keep_upload(path, path.with_name(path.name + ".json"))[0]


def test_the_inputs_become_a_request():
    request = steps.request_of(
        **{**GOOD, "voice": " joe ", "speaker": "", "seed": None, "speaking_rate": 1.5}
    )
    assert request == Request("joe", "hi", PruneSpec(), delivery=request.delivery)
    assert request.delivery.speaking_rate == 1.5
    values = [
        "joe",
        None,
        "hi",
        0,
        "locked",
        None,
        0.5,
        None,
        "random",
        "local",
        0.4,
        ["flow"],
        ["flow.flows.0"],
        0.1,
    ]
    assert events.request_from(values).spec == PruneSpec(
        "random", "local", 0.4, ("flow",), ("flow.flows.0",), 0.1
    )
    assert events.request_from(values).delivery.noise_scale == 0.5
    assert events.SPEAKING[len(events.DELIVERED) :] == controls.NAMES


@pytest.mark.parametrize(
    "changes",
    [
        {"text": None},
        {"text": "a" * (steps.MAX_PAGE_CHARACTERS + 1)},
        {"spec": PruneSpec(steps=9)},
        {"spec": PruneSpec("activation", texts=("hi",) * 61)},
        {"spec": PruneSpec("activation", texts=("a" * 301,))},
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
    assert "once the voice is loaded" in steps.readout("someone/else", PruneSpec(), None)
    assert "once the voice is loaded" in steps.readout(upload, PruneSpec(), "a visitor's token")
    spec = PruneSpec(scope="local", amount=0.5, parts=("flow",))
    shown = steps.readout(upload, spec, None)
    expected = steps.bench.preview(upload, spec)
    assert f"**{100 * expected['overall']:.1f}%** of the whole voice" in shown
    assert f"flow {100 * expected['flow']:.1f}%" in shown
    assert "at least one part" in page._readout(upload, ["magnitude", "global", 0.3, []], None)


def test_the_readout_of_a_calibrated_method_does_not_calibrate(upload, monkeypatch):
    from vits_prune.pruning import listening, sensitivity

    for module, name in ((listening, "collect"), (sensitivity, "_measure")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("it listened"))
    shown = steps.readout(upload, PruneSpec("second_order", amount=0.4), None)
    assert "**40.0%** of the whole voice" in shown
    assert "`duration_predictor`, `decoder.conv_post`; the rest loses" in shown
    assert "when you press Speak" in shown
    assert "is the most here" in steps.readout(upload, PruneSpec("second_order", amount=0.99), None)
    patterned = PruneSpec(amount=0.5, pattern="2:4")
    assert "input channels, which the pattern 2:4 cannot group" in steps.readout(
        upload, patterned, None
    )
    assert "→" in steps.readout(upload, PruneSpec("structured", amount=0.5), None)
    assert "nothing to shrink" in steps.readout(
        upload, PruneSpec("structured", parts=("duration_predictor",)), None
    )


@pytest.mark.parametrize("method", ["magnitude", "random", "activation", "second_order"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"floor": 0.2},
        {"protect": ("flow",)},
        {"amount": 0.5, "pattern": "1:2", "protect": ("duration_predictor",)},
    ],
    ids=str,
)
def test_the_readout_says_what_pruning_then_does(tiny, method, how):
    spec = PruneSpec(method, **how)
    pruned = prune(tiny, spec)
    assert f"**{100 * measure_sparsity(pruned).overall:.1f}%**" in forecast_words(tiny, spec)


def test_progress_then_the_voice_and_stopping_in_between(upload):
    request = Request(
        upload,
        "hi there",
        PruneSpec("second_order", amount=0.4, parts=("flow",), texts=("hi there",)),
    )
    walk = steps.bench.pruning(request)
    assert isinstance(next(walk), Doing)
    walk.close()
    assert steps.bench._calibrating.acquire(timeout=20), (
        "a stopped calibration would keep all others waiting"
    )
    steps.bench._calibrating.release()
    assert steps.bench._known(request, None) is None
    *told, found = steps.bench.pruning(request)
    assert all(isinstance(step, Doing) for step in told)
    assert found[-1][1] is steps.bench.pruned(request)
    assert list(steps.bench.pruning(request)) == [found], "made once"


def test_every_step_of_gradual_pruning_can_be_heard(upload):
    request = Request(
        upload,
        "hi there",
        PruneSpec("random", amount=0.6, steps=3, schedule="linear"),
        timing="locked",
    )
    shown = [step for step in hearing.heard(request, None) if "rendition" in step][-1]["rendition"]
    assert (shown.visible, [label for label, _ in shown.choices]) == (
        True,
        ["step 1: 20.0% zeros", "step 2: 40.0% zeros", "step 3: 60.0% zeros"],
    )
    original = steps.bench.recall(request).original
    voices = [voice for _, voice in prune_steps(steps.bench.voice(upload), request.spec)]
    for index, voice in enumerate(voices):
        *_, found = hearing.rendition(request, None, index)
        heard, _ = soundfile.read(found["rendition_audio"].value["path"], dtype="int16")
        np.testing.assert_array_equal(heard, speak(voice, "hi there", timing=original).pcm16())
    for wrong in (3, -1, None, "0", True):
        with pytest.raises(InputError, match=r"hoose one of"):
            list(hearing.rendition(request, None, wrong))


def test_a_structured_voice_goes_through_every_step(upload):
    request = Request(
        upload,
        "hi there",
        PruneSpec("structured", amount=0.5, texts=("hi there",)),
        timing="locked",
    )
    found = [step for step in hearing.heard(request, None) if "summary" in step][-1]
    assert "are gone with their channels and layers" in found["summary"]
    assert found["flip"] is flip.LOCKED
    assert found["sparsity"]["removed"][0] > 0
    reasons = found["layers"].set_index("layer")["left alone because"]
    assert set(reasons[reasons.index.str.startswith("duration_predictor")]) >= {
        "structured pruning has no lever in it"
    }
    *_, size = hearing.weighed(request, None)
    assert (
        size["size"]["in words"].str.contains("structured: channels or layers are gone").sum() == 4
    )
    *_, drawn = hearing.drawn(request, None)
    assert "### structured" in drawn["lesson"]
    *_, timed = hearing.timed(request, None)
    assert timed["latency"]["in words"].str.contains("on any hardware").any()


def test_the_matrix_shows_zeros_and_what_is_gone(upload):
    for spec in (PruneSpec(amount=0.5), PruneSpec("structured", amount=0.5, texts=("hi there",))):
        request = Request(upload, "hi", spec)
        for name in steps.matrix_choices(request, None):
            *_, pair = steps.matrix_steps(request, None, name)
            gone, structured = np.isnan(pair.after), spec.method == "structured"
            assert gone.any() == (structured and pair.shape_after != pair.layer.shape)
            if not structured:
                np.testing.assert_array_equal(
                    pair.after[pair.after != 0], pair.before[pair.after != 0]
                )
        with pytest.raises(InputError, match="no layer"):
            list(steps.matrix_steps(request, None, "/etc/passwd"))


def test_what_was_forgotten_is_spoken_again(upload):
    request = Request(upload, "hi", PruneSpec(amount=0.4), seed=9)
    assert steps.bench.recall(request) is None
    spoken = steps.spoken_before(request, None)
    steps.bench.remember(request, spoken)
    assert steps.spoken_before(request, None) is spoken


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a.onnx"],
        ["a.json"],
        ["a.onnx", "b.onnx"],
        ["a.onnx", "b.json", "c.json"],
        ["a.onnx", "b.txt"],
    ],
)
def test_an_upload_is_one_onnx_and_one_json(names):
    with pytest.raises(InputError, match=r"choose its \.onnx and its \.onnx\.json together"):
        page._upload(names)


def test_facts_name_the_licence_and_the_free_cut(tiny, joe):
    assert "Licence of the weights: cc0-1.0." in steps.free_cut_words(joe)
    words = steps.free_cut_words(tiny)
    assert f"Free cut: {tiny.free_cut.parameters / 1e6:.1f} M parameters" in words
    assert "not stated" in words


def test_what_comes_from_outside_is_only_text_in_markdown():
    assert (
        steps.plain("![x](https://evil.example/t.png)") == r"\!\[x\]\(https://evil.example/t.png\)"
    )
    assert "\n" not in steps.plain("a\nb")
    assert len(steps.plain("a" * 1000)) == 120


def test_latency_is_measured_on_the_beginning_of_a_long_text():
    long = "The birch canoe slid on the smooth planks. " * 40
    assert 0 < len(steps.timed_text(long)) <= steps.MAX_TIMED_CHARACTERS + 40
    assert long.startswith(steps.timed_text(long))
    assert steps.timed_text(" One sentence. And two. ") == "One sentence. And two."
