"""Long work in a thread, told step by step, that stops where it next says how far it is once nobody listens any more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
HEARTBEAT_SECONDS = 0.3


@dataclass(frozen=True)
class Doing:
    """A step is under way."""

    what: str
    share: float
    """How much is done, 0 to 1."""


class Stopped(Exception):
    """Raised inside the work when the listener has gone."""


def in_background(work: Callable[[Callable[[str, float], None]], T]) -> Iterator[Doing | T]:
    """Run `work(tell)` in a thread: yields a Doing whenever it tells something new, and its result last.

    While nothing new is told the last Doing comes again every HEARTBEAT_SECONDS, for it can be closed only when it has just yielded.
    Closing it (Gradio does on cancel) makes the next `tell` raise Stopped inside the work.

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
        yield from _heard(told)
        thread.join()
    finally:
        stop.set()  # whoever closes this must not wait: Gradio does it on its event loop
    if "error" in outcome:
        raise outcome["error"]
    yield outcome["result"]


def _heard(told: queue.Queue[Doing | None]) -> Iterator[Doing]:
    """What was told last, again and again while nothing new is, until the work has ended."""
    last = Doing("at work", 0.0)
    while True:
        try:
            step = told.get(timeout=HEARTBEAT_SECONDS)
            while step is not None and not told.empty():
                step = told.get()
        except queue.Empty:
            step = last
        if step is None:
            return
        yield step
        last = step
