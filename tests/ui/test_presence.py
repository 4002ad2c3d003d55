"""Who is on the page, and what goes after the last visitor."""

from __future__ import annotations

import threading
from pathlib import Path

import gradio as gr

from vits_prune.studio import rows, workbench
from vits_prune.ui import presence


def test_files_go_only_when_nobody_is_there_any_more():
    tidied = threading.Event()
    visitors = presence.Presence(tidied.set, patience=0.1)
    visitors.came("one")
    visitors.came("two")
    visitors.left("one")
    assert not tidied.wait(0.5)
    visitors.left("two")
    visitors.came("three")  # in time
    assert not tidied.wait(0.5)
    visitors.left("three")
    assert tidied.wait(20)


def test_one_who_was_gone_before_they_came_does_not_stay_for_ever(monkeypatch):
    monkeypatch.setattr(presence, "_LONGEST_SECONDS", 0.0)
    tidied = threading.Event()
    visitors = presence.Presence(tidied.set, patience=0.0)
    visitors.left("ghost")
    visitors.came("ghost")
    visitors.left("another")
    assert tidied.wait(20)


def test_nothing_of_visitors_stays(request_, tmp_path):
    with gr.Blocks() as demo:
        pass
    copy = tmp_path / "digest" / "speech.wav"
    copy.parent.mkdir()
    copy.write_bytes(b"RIFF")
    demo.temp_file_sets.append({str(copy)})
    row, table = rows.row_of(request_), workbench.scratch.folder() / "size.csv"
    speech = Path(row.folder.name) / "speech.wav"
    upload = tmp_path / "upload"
    upload.mkdir()
    workbench.bench._uploads.put("upload:1", upload)
    for file in (table, speech, upload / "voice.onnx"):
        file.write_bytes(b"1")
    del row
    presence.tidy(demo, 3600)
    assert copy.exists(), "it was handed out a moment ago"
    assert not any(file.exists() for file in (table, speech, upload))
    presence.tidy(demo, -1)
    assert not copy.parent.exists()


def test_what_ends_after_its_visitor_goes_too():
    tidied = threading.Semaphore(0)
    visitors = presence.Presence(tidied.release, patience=0.05)
    visitors.came("one")
    visitors.left("one")
    assert tidied.acquire(timeout=20)
    assert tidied.acquire(timeout=20)
    assert not tidied.acquire(timeout=0.5), "twice is enough"
