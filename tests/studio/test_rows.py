"""Rows of amounts, the sentence about each, and what a visitor may find of another's."""

from __future__ import annotations

import dataclasses
import time

import pytest
import soundfile

from tests.nearly import nearly
from vits_prune import PruneSpec, measure_latency, prune, speak
from vits_prune.studio import renditions, rows, workbench
from vits_prune.studio.descriptions import happened
from vits_prune.studio.rows import AMOUNTS, FEWER_AMOUNTS, fill, row_of, warm_up


@pytest.fixture(autouse=True)
def no_rows(monkeypatch):
    """Begin without rows of other tests."""
    monkeypatch.setattr(rows, "_rows", rows.Bounded(rows._ROW_BYTES, rows._row_bytes))


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
