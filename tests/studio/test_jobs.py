"""Work in a thread that stops once nobody listens."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from vits_prune.errors import InputError
from vits_prune.progress import Cancelled, Progress
from vits_prune.studio import jobs
from vits_prune.studio.jobs import Tickets, Update, follow, in_background, stream


def test_it_reports_and_ends_with_the_result():
    seen = threading.Event()

    def work(progress):
        progress.report("half", 0.5)
        assert seen.wait(10)
        return 42

    found = in_background(work)
    assert next(found) == Update("half", 0.5)
    assert str(Update("half", 0.5)) == "half … 50%"
    seen.set()
    assert list(found) == [42]


def test_what_the_work_raises_is_raised_here():
    def refused(progress):
        raise InputError("No.")

    with pytest.raises(InputError, match="No"):
        list(in_background(refused))
    with pytest.raises(InputError, match="No"):
        follow(in_background(refused), Progress())


def test_closing_cancels_the_work_at_its_next_report():
    cancelled, may_go_on = threading.Event(), threading.Event()

    def work(progress):
        progress.report("first", 0.0)
        assert may_go_on.wait(10)
        try:
            for i in range(1000):
                progress.report("more", i / 1000)
        except Cancelled:
            cancelled.set()
            raise

    found = in_background(work)
    assert next(found).message == "first"
    found.close()
    may_go_on.set()
    assert cancelled.wait(10)


def test_it_can_be_closed_while_nothing_new_is_reported(monkeypatch):
    monkeypatch.setattr(jobs, "HEARTBEAT_SECONDS", 0.01)
    go_on = threading.Event()
    found = in_background(lambda progress: go_on.wait(10))
    assert [next(found) for _ in range(3)] == [Update("at work", 0.0)] * 3
    found.close()
    go_on.set()


def test_following_reports_and_returns_the_result():
    told = []
    found = iter([Update("a", 0.1), Update("b", 0.5), "result"])
    followed = (one for one in found)
    assert follow(followed, Progress(lambda *update: told.append(update))) == "result"
    assert told == [("a", 0.1), ("b", 0.5)]


@pytest.mark.parametrize("limited", [False, True])
def test_on_zero_gpu_the_progress_comes_out_of_the_worker(monkeypatch, limited):
    monkeypatch.setattr(jobs, "calls_are_limited", lambda: limited)
    told, heard = [], threading.Event()

    @jobs.on_gpu(60)
    def double(number, progress):
        progress.report("doubling", 0.5)
        assert heard.wait(10)
        return 2 * number

    def listen(*update):
        told.append(update)
        heard.set()

    assert double(21, Progress(listen)) == 42
    assert set(told) == {("doubling", 0.5)}


# Streams, which the page's events are


def counting(inside=None, go_on=None, closed=None):
    """Work that yields 1, waits, and yields 2."""

    def work(progress):
        try:
            progress.report("begun", 0.0)
            yield 1
            if inside:
                inside.set()
                assert go_on.wait(20)
            yield 2
        finally:
            if closed:
                closed.set()

    return work


async def results(found):
    return [one async for one in found if not isinstance(one, Update)]


def test_a_stream_yields_in_order_and_raises_at_the_end():
    async def seen():
        return [one async for one in stream(counting())]

    assert asyncio.run(seen()) in ([Update("begun", 0.0), 1, 2], [1, 2])

    def refused(progress):
        yield 1
        raise InputError("No more.")

    with pytest.raises(InputError, match="No more"):
        asyncio.run(results(stream(refused)))


def test_a_cancelled_stream_does_not_wait_for_the_work_which_ends_later():
    inside, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    async def visit():
        found = stream(counting(inside, go_on, closed))
        while await anext(found) != 1:
            pass
        task = asyncio.create_task(found.__anext__())
        assert await asyncio.to_thread(inside.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not closed.is_set()
        go_on.set()
        assert await asyncio.to_thread(closed.wait, 20)

    asyncio.run(visit())


def test_an_unwanted_stream_ends_in_the_middle_of_the_work_and_shows_nothing_more():
    inside, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    unwanted = threading.Event()

    async def visit():
        found = stream(counting(inside, go_on, closed), unwanted.is_set)
        while await anext(found) != 1:
            pass
        task = asyncio.create_task(anext(found, "ended"))
        assert await asyncio.to_thread(inside.wait, 20)
        unwanted.set()
        assert await asyncio.wait_for(task, 20) == "ended"
        assert not closed.is_set()
        go_on.set()
        assert await asyncio.to_thread(closed.wait, 20)
        assert await results(stream(counting(), unwanted.is_set)) == []

    asyncio.run(visit())


def test_a_stream_does_not_repeat_itself_many_times_a_second():
    def waiting(progress):
        for _ in range(40):
            progress.report("waiting", 0.5)
            time.sleep(0.005)
        yield 1

    async def seen():
        return [one async for one in stream(waiting)]

    *waited, last = asyncio.run(seen())
    assert last == 1
    assert len(waited) < 10, "each costs the page a whole update"
    assert set(waited) <= {Update("waiting", 0.5)}


def test_what_is_no_ticket_cancels_nothing():
    tickets = Tickets()
    for ticket in ("", None, 3, ["a"], "x" * 65):
        tickets.cancel(ticket)
        assert ticket not in tickets
    for number in range(10_001):
        tickets.cancel(str(number))
    assert "0" not in tickets
    assert "10000" in tickets
