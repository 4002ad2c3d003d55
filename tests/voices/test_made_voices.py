"""Real voices made of joe: a plain Hugging Face checkpoint, and one of two speakers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from transformers import VitsModel

from benchmarks.voices import train_speakers, with_speakers, write_hugging_face
from tests.nearly import nearly
from vits_prune import PruneSpec, load_voice, prune, save_voice, speak
from vits_prune.pruning import Shape
from vits_prune.ship.formats import export_voice
from vits_prune.study.evaluation import Settings, evaluate_against, prepare_reference

TEXT = "The birch canoe slid on the smooth planks."
CALIBRATION = (
    TEXT,
    "Take the winding path to reach the lake.",
    "Note closely the size of the gas tank.",
)
SPECS = (
    PruneSpec(scope="local", amount=0.3),
    PruneSpec("second_order", "local", 0.5, ("decoder",), texts=CALIBRATION),
    PruneSpec("structured", shape=Shape(decoder_width=0.875, multiple=2), texts=CALIBRATION),
)


@pytest.fixture(scope="module")
def folder(joe, tmp_path_factory):
    """That checkpoint, as transformers writes it."""
    folder = tmp_path_factory.mktemp("made") / "joe"
    write_hugging_face(joe, folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    """Its voice."""
    return load_voice(folder)


@pytest.fixture(scope="module")
def reference(plain):
    """What that voice says and what is heard of it."""
    return prepare_reference(plain, (TEXT,), Settings(metrics=("intelligibility",), noise_seeds=0))


def test_it_speaks_as_joe_does(joe, plain):
    assert plain.origin.family == "hugging-face"
    assert plain.origin.licence == "cc0-1.0"
    assert type(plain.model) is VitsModel
    (sentence,), (read,) = (list(one.tokenizer.sentences(TEXT)) for one in (joe, plain))
    assert read.ids == sentence.ids[1:-1]  # without ^ and $
    wanted = speak(dataclasses.replace(joe, tokenizer=plain.tokenizer), TEXT)
    spoken = speak(plain, TEXT)
    assert np.array_equal(spoken.durations, wanted.durations)
    assert np.abs(wanted.waveform).max() > 0.2
    assert np.abs(spoken.waveform - wanted.waveform).max() < 2e-5


def test_transformers_opens_it_with_every_key_matched(folder):
    _, report = VitsModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.method)
def test_it_is_pruned_understood_and_read_back(plain, reference, spec, tmp_path):
    pruned = prune(plain, spec)
    found = evaluate_against(reference, pruned)
    assert found.figures["cer"].pruned.value < 0.2
    original, spoken = speak(plain, TEXT), speak(pruned, TEXT)
    assert not nearly(spoken.waveform, original.waveform)
    form = "dense" if spec.method == "structured" else "sparse"
    export_voice(pruned, tmp_path / "small", form)
    assert nearly(speak(load_voice(tmp_path / "small"), TEXT).waveform, spoken.waveform)


def test_two_speakers_start_as_joe_and_come_apart(joe, tmp_path):
    two = with_speakers(joe)
    original = speak(joe, TEXT)
    for speaker in two.speakers:
        assert nearly(speak(two.with_speaker(speaker), TEXT).waveform, original.waveform)
    save_voice(prune(train_speakers(two, joe, 2), SPECS[0]), tmp_path / "two")
    again = load_voice(tmp_path / "two")
    low, high = (speak(again.with_speaker(one), TEXT, timing=original) for one in ("low", "high"))
    assert np.abs(low.waveform - high.waveform).max() > 0.01
