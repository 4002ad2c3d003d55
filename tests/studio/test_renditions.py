"""What a press of Speak sets off, and the sentences about it, on an uploaded tiny voice."""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.nearly import nearly
from tests.voices import piper_factory
from vits_prune import PruneSpec, prune, speak
from vits_prune.errors import InputError
from vits_prune.measure import measure_sparsity
from vits_prune.measure.cost import count_macs
from vits_prune.progress import Cancelled, Progress
from vits_prune.pruning import prune_steps
from vits_prune.pruning.calibration import texts_for
from vits_prune.pruning.layers import prunable_layers
from vits_prune.pruning.scores import sparsity_preview
from vits_prune.pruning.spec import Shape
from vits_prune.studio import descriptions, renditions, workbench
from vits_prune.studio.descriptions import forecast_words, readout
from vits_prune.studio.jobs import Update, in_background
from vits_prune.studio.request import FIRST, Request
from vits_prune.studio.workbench import Spoken, Workbench
from vits_prune.ui import stage

SHORT = ("hi there",)


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    """A workbench with an uploaded tiny voice in place of the page's own; its reference."""
    path = piper_factory.make_voice(tmp_path_factory.mktemp("piper"), piper_factory.TINIEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workbench, "bench", Workbench())
        yield workbench.bench.keep_upload(path, path.with_name(path.name + ".json"))[0]


def shown(work, **values):
    """Return what a piece of the page's work shows in the end."""
    found = {}
    for update in work(values, None, Progress()):
        found |= update
    return found


def pressed(upload, **changes):
    """Return the values of the controls when a visitor presses Speak."""
    values = {**FIRST, "voice": upload, "text": "hi there", "timing": "locked", **changes}
    return {**values, "ticket": "p1", "heal_key": None}


# Files


def test_wav_keeps_the_level(tiny):
    speech = speak(tiny, "hi there")
    path = renditions.wav(speech, "original")
    heard, rate = soundfile.read(path, dtype="int16")
    assert nearly(heard, speech.pcm16())
    assert (rate, Path(path).name) == (16_000, "original.wav")
    assert soundfile.info(path).subtype == "PCM_16"


def test_csv_holds_the_table():
    table = pd.DataFrame({"what": ["a, b", "c"], "n": [1, 2]})
    path = Path(renditions.csv(table, "sizes"))
    assert path.name == "sizes.csv"
    pd.testing.assert_frame_equal(pd.read_csv(path), table)


# Sentences


def test_the_readout(upload):
    assert "once the voice is loaded" in readout("someone/else", PruneSpec(), None)
    assert "once the voice is loaded" in readout(upload, PruneSpec(), "a visitor's token")
    spec = PruneSpec(scope="local", amount=0.5, parts=("flow",))
    words = readout(upload, spec, None)
    expected = sparsity_preview(workbench.bench.voice(upload), spec)
    assert f"**{100 * expected['overall']:.1f}%** of the whole voice" in words
    assert f"flow {100 * expected['flow']:.1f}%" in words


def test_the_readout_of_a_calibrated_method_does_not_calibrate(upload, monkeypatch):
    monkeypatch.setattr(workbench, "prune_steps", lambda *_, **__: pytest.fail("it pruned"))
    words = readout(upload, PruneSpec("second_order", amount=0.4), None)
    assert "**40.0%** of the whole voice" in words
    assert "`duration_predictor`, `decoder.conv_post`; the rest loses" in words
    assert "when you press Speak" in words
    assert "is the most here" in readout(upload, PruneSpec("second_order", amount=0.99), None)
    patterned = readout(upload, PruneSpec(amount=0.5, pattern="2:4"), None)
    assert "input channels, which the pattern 2:4 cannot group" in patterned
    assert "→" in readout(upload, PruneSpec("structured", amount=0.5), None)
    nothing = PruneSpec("structured", parts=("duration_predictor",))
    assert "nothing to shrink" in readout(upload, nothing, None)


def test_the_readout_says_what_pruning_then_does(tiny):
    patterned = {"amount": 0.5, "pattern": "1:2", "protect": ("duration_predictor",)}
    for method, how in (
        ("magnitude", {"floor": 0.2}),
        ("magnitude", patterned),
        ("random", {}),
        ("random", {"protect": ("flow",)}),
        ("activation", {"protect": ("flow",)}),
        ("activation", patterned),
        ("second_order", {}),
        ("second_order", {"floor": 0.2}),
    ):
        spec = PruneSpec(method, texts=SHORT, **how)
        zeros = measure_sparsity(prune(tiny, spec)).overall
        assert f"**{100 * zeros:.1f}%**" in forecast_words(tiny, spec), spec


@pytest.mark.parametrize(
    "spec",
    [
        PruneSpec(amount=0.5),
        PruneSpec(amount=0.5, scope="local", parts=("flow", "decoder")),
        PruneSpec("activation", "local", 0.6, protect=("flow.flows.0",)),
        PruneSpec("activation", "global", 0.6, parts=("flow", "decoder"), cost="macs"),
        PruneSpec("structured", amount=0.5),
        PruneSpec("structured", shape=Shape(branches=1, flows=1, multiple=1)),
    ],
)
def test_the_readout_says_how_much_arithmetic_pruning_leaves(upload, spec):
    words, voice = readout(upload, spec, None), workbench.bench.voice(upload)
    text = texts_for(voice, PruneSpec())[0]
    pruned = prune(voice, dataclasses.replace(spec, texts=SHORT))
    said, (whole, _) = count_macs(voice, text)
    _, (_, left) = count_macs(pruned, text, timing=said)
    found = float(re.search(r"\*\*([\d.]+)%\*\* of the multiply-accumulates", words)[1])
    assert found == pytest.approx(100 * left / whole, abs=0.3)
    if spec.method == "structured":
        weights = [sum(one.weights for one in prunable_layers(v)) for v in (pruned, voice)]
        assert f"Leaves **{100 * weights[0] / weights[1]:.1f}%** of the weights" in words


@pytest.mark.parametrize("how", [{}, {"method": "activation", "cost": "macs"}])
def test_the_readout_says_that_rounding_makes_zeros_too(upload, tiny, how):
    spec = PruneSpec(amount=0.1, bits=3, texts=SHORT, **how)
    assert "Rounding to 3 bits may make more zeros." in readout(upload, spec, None)
    assert "Rounding" not in readout(upload, dataclasses.replace(spec, bits=0), None)
    plain, rounded = (
        measure_sparsity(prune(tiny, dataclasses.replace(spec, bits=bits))).overall
        for bits in (0, 3)
    )
    assert rounded > plain + 0.02


def test_the_readout_says_what_only_pruning_tells(upload, monkeypatch):
    ranked = readout(upload, PruneSpec("second_order", amount=0.4), None)
    assert "the share of the multiply-accumulates shows once pruned" in ranked
    nothing = readout(upload, PruneSpec("second_order", amount=0), None)
    assert "leaves **100.0%** of the multiply-accumulates" in nothing
    spec = PruneSpec("second_order", amount=0.4, cost="macs")
    assert "the share of the weights shows once pruned" in readout(upload, spec, None)
    monkeypatch.setattr(descriptions, "macs_per_weight", mute)
    for asked in (PruneSpec(), PruneSpec("structured", amount=0.5), spec):
        assert "of the multiply-accumulates" not in readout(upload, asked, None)


def mute(voice):
    """Be a voice that can speak no sentence."""
    raise InputError("It can speak none of the calibration sentences.")


def test_facts_name_the_licence_and_the_free_cut(tiny, joe):
    assert "Licence of the weights: cc0-1.0." in descriptions.voice_words(joe)
    words = descriptions.voice_words(tiny)
    assert f"Free cut: {tiny.free_cut.parameters / 1e6:.1f} M parameters" in words
    assert "not stated" in words


def test_what_comes_from_outside_is_only_text_in_markdown():
    found = descriptions.plain("![x](https://evil.example/t.png)")
    assert found == r"\!\[x\]\(https://evil.example/t.png\)"
    assert "\n" not in descriptions.plain("a\nb")
    assert len(descriptions.plain("a" * 1000)) == 120


def test_latency_is_measured_on_the_beginning_of_a_long_text():
    long = "The birch canoe slid on the smooth planks. " * 40
    assert 0 < len(renditions.timed_text(long)) <= renditions.MAX_TIMED_CHARACTERS + 40
    assert long.startswith(renditions.timed_text(long))
    assert renditions.timed_text(" One sentence. And two. ") == "One sentence. And two."


# Speaking


def test_two_that_are_not_aligned_cannot_be_flipped(tiny):
    pruned = prune(tiny, PruneSpec(amount=0.9))
    first = speak(tiny, "hi there")
    own, locked = speak(pruned, "hi there"), speak(pruned, "hi there", timing=first)
    assert Spoken(first, locked, ()).aligned
    assert not np.array_equal(own.durations, first.durations)
    assert not Spoken(first, own, ()).aligned


def test_progress_then_the_voice_and_cancelling_in_between(upload):
    spec = PruneSpec("second_order", amount=0.4, parts=("flow",), texts=SHORT)
    request, bench, ended = Request(upload, "hi there", spec), workbench.bench, threading.Event()

    def work(progress):
        try:
            return bench.pruned(request, None, progress)
        except Cancelled:
            ended.set()
            raise

    walk = in_background(work)
    assert isinstance(next(walk), Update)
    walk.close()
    assert ended.wait(20)
    *told, found = in_background(lambda progress: bench.pruned(request, None, progress))
    assert told, "a cancelled calibration is made anew, and keeps nobody waiting"
    assert bench.pruned(request) is found, "made once"


def test_every_step_of_gradual_pruning_can_be_heard(upload):
    spec = PruneSpec("random", amount=0.6, steps=3, schedule="linear")
    how = {"method": "random", "amount": 0.6, "steps": 3, "schedule": "linear"}
    found = shown(stage.speak, **pressed(upload, **how))
    request, radio = found["asked"], found["rendition"]
    assert request.spec == spec
    assert (radio.visible, [label for label, _ in radio.choices]) == (
        True,
        ["step 1: 20.0% zeros", "step 2: 40.0% zeros", "step 3: 60.0% zeros"],
    )
    original = workbench.bench.recall(request).original
    voices = [voice for _, voice in prune_steps(workbench.bench.voice(upload), spec)]
    for index, voice in enumerate(voices):
        step = shown(stage.hear_step, asked=request, rendition=index)
        heard, _ = soundfile.read(step["rendition_audio"].value["path"], dtype="int16")
        assert nearly(heard, speak(voice, "hi there", timing=original).pcm16())
    for wrong in (3, -1, None, "0", True):
        with pytest.raises(InputError, match=r"hoose one of"):
            shown(stage.hear_step, asked=request, rendition=wrong)


def test_a_structured_voice_goes_through_all_that_speak_sets_off(upload):
    values = pressed(upload, method="structured", amount=0.5)
    first, *_ = stage.speak(values, None, Progress())
    assert first["stage"]["original"] is None, "the pruned voice is heard before both have spoken"
    found = shown(stage.speak, **values)
    request = found["asked"]
    assert request.spec == PruneSpec("structured", amount=0.5)
    assert found["stage"]["aligned"]
    assert "weights are gone. Of the rest," in found["sparsity"]
    assert not found["rendition"].visible
    assert "structured" in found["command"]
    measured = shown(stage.measure, asked=request)
    assert measured["size"].count("structured: channels or layers are gone") >= 4
    assert "on any hardware" in measured["latency"]
    (point,) = measured["stage"]["points"]
    assert "of the weights are gone" in point["words"]
    assert "The file shrinks from" in point["words"]
    assert measured["status"].startswith("Done. Latency: 5 runs of each voice, ")


def test_what_was_forgotten_is_spoken_again(upload):
    request = Request(upload, "hi", PruneSpec(amount=0.4), seed=9)
    assert workbench.bench.recall(request) is None
    spoken = renditions.heard_before(request, None)
    assert renditions.heard_before(request, None) is spoken
