"""Work in a thread that stops once nobody listens."""

from __future__ import annotations

import threading

import pytest

from vits_prune.errors import InputError
from vits_prune.studio import jobs as background
from vits_prune.studio.jobs import Doing, Stopped, in_background


def test_it_tells_and_ends_with_the_result():
    heard = threading.Event()

    def work(tell):
        tell("half", 0.5)
        assert heard.wait(10)
        return 42

    steps = in_background(work)
    assert next(steps) == Doing("half", 0.5)
    heard.set()
    assert list(steps) == [42]


def test_what_the_work_raises_is_raised_here():
    def work(tell):
        raise InputError("No.")

    with pytest.raises(InputError, match="No"):
        list(in_background(work))


def test_closing_stops_the_work_at_its_next_word():
    stopped, may_go_on = threading.Event(), threading.Event()

    def work(tell):
        tell("first", 0.0)
        may_go_on.wait(10)
        try:
            for i in range(1000):
                tell("more", i / 1000)
        except Stopped:
            stopped.set()
            raise

    steps = in_background(work)
    assert next(steps).what == "first"
    threading.Timer(0.1, may_go_on.set).start()
    steps.close()
    assert stopped.wait(10)


def test_it_can_be_closed_while_nothing_new_is_told(monkeypatch):
    monkeypatch.setattr(background, "HEARTBEAT_SECONDS", 0.01)
    go_on = threading.Event()
    steps = in_background(lambda tell: go_on.wait(10))
    assert [next(steps) for _ in range(3)] == [Doing("at work", 0.0)] * 3
    steps.close()
    go_on.set()
