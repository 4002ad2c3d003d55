"""Steps that can be stopped at once: the page need not wait for the one that is under way."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import anyio.to_thread

T = TypeVar("T")
_END = object()


def stoppable(function: Callable[..., Iterator[T]]) -> Callable[..., AsyncIterator[T]]:
    """An asynchronous generator function of a generator function, which runs in threads.

    Gradio cannot close a plain generator before its next step ends. Until then a stopped event counts as running, and a button that is
    pressed meanwhile cancels it a second time, which Gradio 6.31 answers with an error. Here the step under way is left to itself and
    the generator closed after it.
    """

    @functools.wraps(function)
    async def steps(*arguments: Any) -> AsyncIterator[T]:
        walk, gone = function(*arguments), threading.Event()

        def advance() -> Any:
            try:
                return next(walk, _END)
            finally:
                if gone.is_set():
                    walk.close()

        try:
            while (step := await anyio.to_thread.run_sync(advance, abandon_on_cancel=True)) is not _END:
                yield step
        finally:
            gone.set()
            with contextlib.suppress(ValueError):  # a step is under way: `advance` closes it after that
                walk.close()

    return steps
