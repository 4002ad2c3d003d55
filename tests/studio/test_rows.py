"""Rows of amounts, the sentence about each, and what a visitor may find of another's."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from tests.nearly import nearly
from vits_prune import PruneSpec, measure_latency, prune, speak
from vits_prune.measure import Latency, Size, Sparsity, Spread
from vits_prune.measure.cost import VoiceLatency
from vits_prune.measure.weights import LayerSparsity
from vits_prune.progress import Progress
from vits_prune.pruning.layers import Layer
from vits_prune.studio import renditions, rows, workbench
from vits_prune.studio.descriptions import happened
from vits_prune.studio.rows import AMOUNTS, FEWER_AMOUNTS, fill, known_row, row_of, warm_up
from vits_prune.studio.workbench import Spoken
from vits_prune.synthesis.speak import Speech


@pytest.fixture(autouse=True)
def no_rows():
    """Begin without rows of other tests."""
    rows.forget()


def test_a_row_is_filled_with_what_the_library_says(request_, tiny, monkeypatch):
    monkeypatch.setattr(rows, "AMOUNTS", (0.0, 0.3, 0.6))
    row = row_of(request_)
    row.add(0.3, renditions.hear(request_, None), "Measured.")
    first = row.points[0.3]
    assert [len(one.points) for one in fill(row)] == [2, 3]
    assert row.points[0.3] is first, "what is made stays"
    assert first.words == "Measured."
    original = speak(tiny, request_.text, request_.seed)
    for amount, point in row.points.items():
        spec = dataclasses.replace(request_.spec, amount=amount)
        wanted = speak(prune(tiny, spec), request_.text, request_.seed, timing=original)
        assert nearly(soundfile.read(point.sound, dtype="int16")[0], wanted.pcm16())
    assert nearly(soundfile.read(row.original, dtype="int16")[0], original.pcm16())
    assert row.points[0.0].words.startswith("No weight is zero.")
    assert row.points[0.6].words.startswith("60% of the weights are zero")
    assert list(fill(row)) == []


def test_two_visitors_of_a_row_make_each_amount_once(request_, monkeypatch):
    monkeypatch.setattr(rows, "AMOUNTS", (0.1, 0.2, 0.3, 0.4))
    made = []

    def counted(voice, spec):
        made.append(spec.amount)
        time.sleep(0.05)
        return prune(voice, spec)

    monkeypatch.setattr(rows, "prune", counted)
    row = row_of(request_)
    row.add(0.9, renditions.hear(request_, None))
    with ThreadPoolExecutor(2) as visitors:
        list(visitors.map(lambda one: list(fill(one)), [row, row]))
    assert sorted(made) == [0.1, 0.2, 0.3, 0.4]


def test_what_the_voice_cannot_be_pruned_by_is_left_out(request_, monkeypatch):
    monkeypatch.setattr(rows, "AMOUNTS", (0.3, 0.9))
    protected = dataclasses.replace(request_.spec, floor=0.5)
    row = row_of(request_.at(protected))
    for _ in fill(row):
        pass
    assert list(row.points) == [0.3]


def test_which_amounts_a_row_has(request_):
    def amounts(seconds=1.0, **changes):
        row = row_of(request_.at(dataclasses.replace(request_.spec, **changes)))
        row.seconds = seconds
        return row.amounts

    assert amounts() == AMOUNTS
    assert amounts(method="second_order") == amounts(scope="sensitivity") == FEWER_AMOUNTS
    assert amounts(seconds=rows.MAX_ROW_SECONDS + 1) == ()
    assert amounts(pattern="2:4", amount=0.5) == ()


def test_amounts_share_a_row_and_visitors_do_not(request_):
    row = row_of(request_)
    assert row_of(request_.at(dataclasses.replace(request_.spec, amount=0.7))) is row
    assert row_of(request_, "a visitor's token") is not row
    others = {"text": "hi you"}, {"seed": 3}, {"timing": "own"}
    assert all(row_of(dataclasses.replace(request_, **one)) is not row for one in others)
    patterned = dataclasses.replace(request_.spec, pattern="2:4", amount=0.5)
    assert row_of(request_.at(patterned)).request.spec == patterned


def test_the_first_row_is_made_in_the_background(request_, monkeypatch):
    monkeypatch.setattr(rows, "AMOUNTS", (0.0, 0.3))
    warm_up(request_)
    give_up = time.monotonic() + 60
    while len(row_of(request_).points) < 2:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    first = known_row(request_)
    for seed in range(200):  # what visitors ask for pushes out other rows, not this one
        row_of(dataclasses.replace(request_, seed=seed + 1)).seconds = 1e6
    assert known_row(request_) is first
    rows.forget(first=False)
    assert known_row(request_) is first


def test_hearing_goes_on_while_another_visitors_voice_is_calibrated(request_, monkeypatch):
    calibrating, go_on = threading.Event(), threading.Event()
    real = workbench.prune_steps

    def slow(voice, spec, **named):
        if spec.method == "activation":
            calibrating.set()
            assert go_on.wait(60)
        return real(voice, spec, **named)

    monkeypatch.setattr(workbench, "prune_steps", slow)
    theirs = request_.at(dataclasses.replace(request_.spec, method="activation"))
    with ThreadPoolExecutor(1) as pool:
        dear = pool.submit(renditions.hear_pruned, theirs, None)
        try:
            assert calibrating.wait(60)
            assert renditions.hear_pruned(request_, None).audio_seconds > 0
            assert not dear.done()
        finally:
            go_on.set()
        assert dear.result(60).audio_seconds > 0


def test_work_gives_way_to_those_who_wait_to_hear(request_):
    told, passed = [], threading.Event()
    progress = renditions.giving_way(Progress(lambda *one: told.append(one)))
    thread = threading.Thread(target=lambda: (progress.report("at work", 0.5), passed.set()))
    with workbench.bench.hearing():
        thread.start()
        assert not passed.wait(0.2)
    assert passed.wait(20)
    thread.join()
    assert told == [("at work", 0.5)]


def test_looking_for_a_row_makes_none(request_):
    assert known_row(request_) is None
    row = row_of(request_)
    assert known_row(request_) is row


def test_latency_is_measured_anew_only_when_it_is_wanted(request_):
    found = renditions.latency(request_, None)
    assert renditions.latency(request_, None) is found
    assert renditions.latency(request_, None, anew=True) is not found


def test_the_sentence_says_what_went_and_what_it_did(request_, tiny):
    spoken = renditions.hear(request_, None)
    size = workbench.bench.size(request_)
    pruned = workbench.bench.pruned(request_)
    words = happened(spoken, size, measure_latency(tiny, pruned, "hi", runs=1))
    assert words.startswith("30% of the weights are zero: 0.0 of 0.0 million. The plain file stays")
    assert "It is not" in words or "times as fast" in words
    assert "dB from the original" in words
    assert "file" not in happened(spoken)
    own = renditions.hear(dataclasses.replace(request_, timing="own"), None)
    assert "It lasts " in happened(own)
    cut = request_.at(PruneSpec("structured", amount=0.5))
    spoken = renditions.hear(cut, None)
    assert "of the weights are gone" in happened(spoken)
    assert "The file shrinks from" in happened(spoken, workbench.bench.size(cut))


def said(frames: int, **more) -> Speech:
    """Return speech of some frames of 10 ms."""
    samples = np.zeros(frames * 160, np.float32)
    return Speech(samples, 16_000, np.array([frames]), 160, {}, (), **more)


def counted(weights: int, zeros: int = 0) -> Sparsity:
    layer = Layer("flow.conv", "flow", "Conv1d", (weights, 1, 1), weights, "flow.conv.weight")
    return Sparsity((LayerSparsity(layer, zeros, ""),))


def sized(dense: int, sparse: int) -> Size:
    """Return the size of a voice; the files are in MB."""
    return Size(1, 1, dense * 10**6, dense * 10**6 // 2, sparse * 10**6, dense * 10**6)


def timed(seconds: float, low: float, high: float, macs: int = 100) -> Latency:
    """Return the latency of a pruned voice, where the original takes one second and 100 macs."""

    def one(value: float, macs: int) -> VoiceLatency:
        runs = Spread(value, value, value)
        return VoiceLatency({"total": runs}, runs, runs, 1.0, macs, macs)

    return Latency(one(1.0, 100), one(seconds, macs), Spread(1 / seconds, low, high), 5, 1, "cpu")


def test_the_sentence_about_a_smaller_and_faster_voice():
    spoken = Spoken(said(100), said(110), (counted(8_000_000), counted(2_000_000, 500_000)))
    assert happened(spoken, (sized(60, 60), sized(15, 14)), timed(0.4, 2.3, 2.7, macs=30)) == (
        "75% of the weights are gone: 2.0 of 8.0 million are left. The file shrinks from 60.0 to"
        " 15.0 MB (-75%). It speaks 2.5 times as fast. It lasts 10% longer than the original."
    )
    words = happened(spoken, None, timed(0.98, 0.9, 1.1, macs=90))
    assert "It is not clearly faster (0.90 to 1.10 times the speed, run by run)." in words


def test_the_sentence_about_zeros_and_what_the_voice_cannot_say():
    zeros = (counted(8_000_000), counted(8_000_000, 4_000_000))
    original = said(100, dropped=("ñ", " "))
    spoken = Spoken(original, said(80, cut_short=True), zeros)
    assert happened(spoken, (sized(60, 60), sized(60, 45)), timed(0.9, 0.98, 1.2)) == (
        "50% of the weights are zero: 4.0 of 8.0 million. The plain file stays at 60.0 MB; the"
        " sparse format shrinks from 60.0 to 45.0 MB (-25%). It is not faster: dense kernels"
        " ran, where a zero costs what any number costs (0.98 to 1.20 times the speed, run by"
        " run). It lasts 20% shorter than the original. The voice has no symbol for: ñ ␣ The"
        " pruned voice's durations ran away: a sentence was cut at the longest speech."
    )
    same = Spoken(said(100), dataclasses.replace(said(100), durations=np.array([99])), zeros)
    assert happened(same).endswith("million. It lasts as long as the original.")
    assert happened(Spoken(said(100), said(100), (zeros[0],) * 2)) == (
        "No weight is zero. The sound moved 0.0 dB from the original (mean of its mel bands)."
    )
