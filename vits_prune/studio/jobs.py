"""Jobs: long work in a thread that reports, can be cancelled, and may get a GPU."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from vits_prune.progress import Progress
from vits_prune.threads import ForkSafeLock

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])
HEARTBEAT_SECONDS = 0.3
_LOOK_SECONDS = 0.1
_REPEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Update:
    """What a job is doing, and the fraction that is done, 0 to 1."""

    message: str
    fraction: float

    def __str__(self) -> str:
        return f"{self.message} … {100 * self.fraction:.0f}%"


@dataclass(frozen=True)
class _Ended:
    error: BaseException | None = None


def _start(
    work: Callable[[Progress], Generator[T, None, None]], put: Callable[[Update | T | _Ended], Any]
) -> threading.Event:
    """Run a generator function in a thread; set the returned event to cancel it."""
    cancelled = threading.Event()
    progress = Progress(lambda message, done: put(Update(message, done)), cancelled.is_set)

    def run() -> None:
        error = None
        try:
            with contextlib.closing(work(progress)) as found:
                for one in found:
                    put(one)
                    progress.raise_if_cancelled()
        except BaseException as raised:
            error = raised
        put(_Ended(error))

    context = contextvars.copy_context()  # where ZeroGPU finds whose request it is
    threading.Thread(target=context.run, args=(run,), daemon=True).start()
    return cancelled


async def stream(
    work: Callable[[Progress], Generator[T, None, None]],
    unwanted: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[Update | T, None]:
    """Run a generator function in a thread; yield its Updates and what it yields.

    It ends at once when it is closed, or when `unwanted` says so: the thread is left to itself and
    stops at its next report.

    Raises:
        Exception: what the work raised.
    """
    loop, news, is_news = asyncio.get_running_loop(), deque[Any](), asyncio.Event()

    def put(one: Update | T | _Ended) -> None:
        news.append(one)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(is_news.set)

    cancelled, told, at = _start(work, put), None, 0.0
    try:
        while not unwanted():
            if not news:
                # Not `wait_for`: before Python 3.12 it may swallow a cancellation.
                waiting = asyncio.ensure_future(is_news.wait())
                try:
                    await asyncio.wait({waiting}, timeout=_LOOK_SECONDS)
                finally:
                    waiting.cancel()
                is_news.clear()
                continue
            one = news.popleft()
            if isinstance(one, _Ended):
                if one.error:
                    raise one.error
                return
            if isinstance(one, Update):
                if news or (one == told and loop.time() - at < _REPEAT_SECONDS):
                    continue  # only the last of several matters, and the same one now and then
                told, at = one, loop.time()
            yield one
    finally:
        cancelled.set()


def in_background(
    work: Callable[[Progress], T],
) -> Generator[Update | T, None, None]:
    """Run `work(progress)` in a thread: yield its Updates, and its result last.

    The last Update comes again every HEARTBEAT_SECONDS, because a generator can be closed only
    when it has just yielded. Closing it cancels the work at its next report.

    Raises:
        Exception: what the work raised.
    """

    def once(progress: Progress) -> Generator[T, None, None]:
        yield work(progress)

    news: queue.SimpleQueue[Any] = queue.SimpleQueue()
    cancelled, one = _start(once, news.put), Update("at work", 0.0)
    try:
        while True:
            with contextlib.suppress(queue.Empty):
                one = news.get(timeout=HEARTBEAT_SECONDS)
                while isinstance(one, Update) and not news.empty():
                    one = news.get()
            if isinstance(one, _Ended):
                if one.error:
                    raise one.error
                return
            yield one
            if not isinstance(one, Update):
                return
    finally:
        cancelled.set()  # without waiting: Gradio closes generators on its event loop


def until_halted(
    work: Callable[[Progress], T], halted: Callable[[], bool], progress: Progress
) -> T | None:
    """Run `work(progress)` in a thread; return its result, None as soon as it is halted.

    What is halted is left to itself: it ends at its next report.
    """
    with contextlib.closing(in_background(work)) as found:
        for one in found:
            if not isinstance(one, Update):
                return one
            if halted():
                break
            progress.report(one.message, one.fraction)
    return None


def follow(found: Generator[Update | T, None, None], progress: Progress) -> T:
    """Report the Updates of a job; return its result."""
    result: Any = None
    with contextlib.closing(found):
        for one in found:
            if isinstance(one, Update):
                progress.report(one.message, one.fraction)
            else:
                result = one
    return result


class Tickets:
    """Which runs are not wanted any more, by their tickets. The oldest are forgotten."""

    _MOST, _LONGEST = 10_000, 64

    def __init__(self) -> None:
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self._lock = ForkSafeLock()

    def cancel(self, ticket: object) -> None:
        """Ask the run of a ticket to end; ignore what cannot be a ticket."""
        if not isinstance(ticket, str) or not 0 < len(ticket) <= self._LONGEST:
            return
        with self._lock:
            self._cancelled[ticket] = None
            while len(self._cancelled) > self._MOST:
                self._cancelled.popitem(last=False)

    def __contains__(self, ticket: object) -> bool:
        return isinstance(ticket, str) and ticket in self._cancelled


# ZeroGPU


def on_zero_gpu(seconds: int) -> Callable[[F], F]:
    """Return `spaces.GPU(duration=seconds)` where the `spaces` package is installed.

    On ZeroGPU the decorated generator function runs in a forked worker: its arguments and results
    must pickle, and what it remembers stays there.
    """
    try:
        import spaces
    except ImportError:
        return lambda function: function
    return spaces.GPU(duration=seconds)


def on_gpu(seconds: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate `function(*arguments, progress)`: on ZeroGPU it runs in a worker that has a GPU."""

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @on_zero_gpu(seconds)
        def in_worker(*arguments: Any) -> Generator[Update | T, None, None]:
            yield from in_background(lambda progress: function(*arguments, progress))

        @functools.wraps(function)
        def run(*arguments: Any) -> T:
            if not calls_are_limited():
                return function(*arguments)
            *others, progress = arguments
            return follow(in_worker(*others), progress)

        return run

    return decorate


def calls_are_limited() -> bool:
    """Return whether a decorated call may only take so long: on ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
