"""Steps in threads that are left to themselves once nobody waits for them."""

from __future__ import annotations

import asyncio
import inspect
import threading

import gradio as gr
import pytest
from vits_prune.ui.stoppable import Halts, haltable, stoppable

from vits_prune.errors import InputError


def test_the_steps_come_in_order():
    async def all_of(function, *arguments):
        return [step async for step in function(*arguments)]

    function = stoppable(lambda most: iter_to(most))
    assert inspect.isasyncgenfunction(function)
    assert asyncio.run(all_of(function, 3)) == [0, 1, 2]
    with pytest.raises(InputError, match="No more"):
        asyncio.run(all_of(function, 4))


def iter_to(most: int):
    yield from range(3)
    if most > 3:
        raise InputError("No more.")


def test_a_step_under_way_is_not_waited_for_and_then_closed():
    inside, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    @stoppable
    def slow():
        try:
            yield 1
            inside.set()
            assert go_on.wait(20)
            yield 2
        finally:
            closed.set()

    async def visit():
        walk = slow()
        assert await anext(walk) == 1
        task = asyncio.create_task(walk.__anext__())
        while not inside.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not closed.is_set()
        go_on.set()
        assert await asyncio.to_thread(closed.wait, 20)

    asyncio.run(visit())


def test_what_waits_for_its_next_step_is_closed_at_once():
    closed = threading.Event()

    @stoppable
    def patient():
        try:
            yield from range(9)
        finally:
            closed.set()

    async def visit():
        walk = patient()
        await anext(walk)
        await walk.aclose()

    asyncio.run(visit())
    assert closed.is_set()


def test_a_halted_run_ends_in_the_middle_of_a_step_and_shows_nothing_more():
    inside, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    halts = Halts()

    def slow(most):
        try:
            yield most
            inside.set()
            assert go_on.wait(20)
            yield 2
        finally:
            closed.set()

    async def visit():
        walk, found = haltable(slow, halts)("mine", 1), []
        found.append(await anext(walk))
        task = asyncio.create_task(anext(walk, "ended"))
        while not inside.is_set():
            await asyncio.sleep(0.01)
        halts.halt("another")
        await asyncio.sleep(0.3)
        assert not task.done()
        halts.halt("mine")
        found.append(await asyncio.wait_for(task, 20))  # though the step is still under way
        assert not closed.is_set()
        go_on.set()
        assert await asyncio.to_thread(closed.wait, 20)
        return found, [step async for step in haltable(slow, halts)("mine", 7)]

    found, after = asyncio.run(visit())
    assert found == [1, "ended"]
    assert after == [gr.skip()], "a link of a halted chain shows nothing"


def test_what_is_no_ticket_halts_nothing():
    halts = Halts()
    for ticket in ("", None, 3, ["a"], "x" * 65):
        halts.halt(ticket)
        assert ticket not in halts
    for number in range(10_001):
        halts.halt(str(number))
    assert "0" not in halts
    assert "10000" in halts
