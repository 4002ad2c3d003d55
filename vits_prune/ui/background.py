"""Long work in a thread, told step by step, that stops where it next says how far it is once nobody listens any more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from vits_prune.workbench import Doing

T = TypeVar("T")


class Stopped(Exception):
    """Raised inside the work when the listener has gone."""


def in_background(work: Callable[[Callable[[str, float], None]], T]) -> Iterator[Doing | T]:
    """Run `work(tell)` in a thread: yields a Doing whenever it tells something new, and its result last.

    Closing the iterator (Gradio does on cancel) makes the next `tell` raise Stopped inside the work, and waits for that.

    Raises:
        Exception: whatever the work raised.
    """
    told: queue.Queue[Doing | None] = queue.Queue()
    stop, outcome = threading.Event(), {}

    def tell(what: str, share: float) -> None:
        if stop.is_set():
            raise Stopped
        told.put(Doing(what, share))

    def run() -> None:
        try:
            outcome["result"] = work(tell)
        except BaseException as error:
            outcome["error"] = error
        told.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (step := _newest(told)) is not None:
            yield step
    finally:
        stop.set()
        thread.join()
    if "error" in outcome:
        raise outcome["error"]
    yield outcome["result"]


def _newest(told: queue.Queue[Doing | None]) -> Doing | None:
    """What was told last, waiting for it where nothing was; None once the work has ended."""
    step = told.get()
    while step is not None and not told.empty():
        step = told.get()
    return step
