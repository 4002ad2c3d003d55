"""Steps that can be stopped at once: the page need not wait for the one that is under way."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import anyio.to_thread
import gradio as gr

from vits_prune import forks

T = TypeVar("T")
_END = object()
_KEPT = 10_000
_LONGEST = 64
_LOOK_SECONDS = 0.1


class Halts:
    """Which runs are not wanted any more, by their tickets; the oldest are forgotten."""

    def __init__(self) -> None:
        self._tickets: OrderedDict[str, None] = OrderedDict()
        self._lock = forks.Lock()

    def halt(self, ticket: object) -> None:
        """The run of this ticket is to end; what is no ticket is passed over."""
        if not isinstance(ticket, str) or not 0 < len(ticket) <= _LONGEST:
            return
        with self._lock:
            self._tickets[ticket] = None
            while len(self._tickets) > _KEPT:
                self._tickets.popitem(last=False)

    def __contains__(self, ticket: object) -> bool:
        return isinstance(ticket, str) and ticket in self._tickets


def stoppable(function: Callable[..., Iterator[T]]) -> Callable[..., AsyncIterator[T]]:
    """An asynchronous generator function of a generator function, which runs in threads.

    Gradio cannot close a plain generator before its next step ends. Until then a stopped event counts as running, and a button that is
    pressed meanwhile cancels it a second time, which Gradio 6.31 answers with an error. Here the step under way is left to itself and
    the generator closed after it.
    """

    @functools.wraps(function)
    async def steps(*arguments: Any) -> AsyncIterator[T]:
        async with contextlib.aclosing(_walked(function(*arguments), lambda: False)) as walk:
            async for step in walk:
                yield step

    return steps


def haltable(function: Callable[..., Iterator[T]], halts: Halts) -> Callable[..., AsyncIterator[T]]:
    """As `stoppable`, of a function of (ticket, *its arguments) that ends by itself, without an error, once its ticket is halted.

    A link of a chain that is halted ends and so do those after it, each at once and without showing anything: so the page can wait for
    the end of the chain instead of cancelling it. In Gradio 6.31 what is started while something is being cancelled may get lost.
    """

    @functools.wraps(function)
    async def steps(ticket: object, *arguments: Any) -> AsyncIterator[T]:
        if ticket in halts:
            yield gr.skip()
            return
        async with contextlib.aclosing(
            _walked(function(*arguments), lambda: ticket in halts)
        ) as walk:
            async for step in walk:
                yield step

    return steps


async def _walked(walk: Iterator[T], halted: Callable[[], bool]) -> AsyncIterator[T]:
    """The steps of a generator that runs in threads, until it is halted or closed."""
    gone = threading.Event()

    def advance() -> Any:
        try:
            return next(walk, _END)
        finally:
            if gone.is_set():
                walk.close()

    step = None
    try:
        while True:
            step = asyncio.ensure_future(anyio.to_thread.run_sync(advance, abandon_on_cancel=True))
            while not step.done() and not halted():
                await asyncio.wait({step}, timeout=_LOOK_SECONDS)
            if halted() or (found := await step) is _END:
                return
            yield found
    finally:
        gone.set()
        if step is not None and not step.cancel() and not step.cancelled():
            step.exception()  # seen: nobody waits for it any more
        with contextlib.suppress(ValueError):  # a step is under way: `advance` closes it after that
            walk.close()
