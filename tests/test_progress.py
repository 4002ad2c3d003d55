from __future__ import annotations

import pytest

from vits_prune.progress import SILENT, Cancelled, Progress


def test_parts_of_parts_map_onto_the_whole():
    shown = []
    progress = Progress(lambda message, fraction: shown.append((message, fraction)))
    piece = progress.part(0.5, 1.0, "decoder: ").part(0.0, 0.5)
    assert list(piece.track([10, 20], "layer")) == [10, 20]
    piece.report("done", 1.0)
    assert shown == [
        ("decoder: layer 1 of 2", 0.5),
        ("decoder: layer 2 of 2", 0.625),
        ("decoder: done", 0.75),
    ]


def test_cancelling_ends_the_work_at_its_next_report_however_deep():
    wanted = [True]
    piece = Progress(cancelled=lambda: not wanted[0]).part(0.2, 0.4).part(0.0, 1.0)
    piece.report("at work", 0.1)
    wanted[0] = False
    for end in (lambda: piece.report("at work", 0.2), piece.raise_if_cancelled):
        with pytest.raises(Cancelled):
            end()


def test_what_the_listener_raises_ends_the_work():
    def refuse(_message, _fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Progress(refuse).part(0.0, 0.5).report("at work", 0.0)


def test_nobody_need_watch():
    assert list(SILENT.track("ab", "letter")) == ["a", "b"]
    SILENT.raise_if_cancelled()
