"""Threads: how many torch computes with, and state that a forked process makes anew.

ZeroGPU's workers are forks of a process with threads. Only the thread that forks lives on in the
child: a lock that another one held is never released there, and a pool of threads never works
again.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from vits_prune.errors import InputError
from vits_prune.progress import SILENT, Progress

_TELL_SECONDS = 1.0


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch so many threads inside the block, and as many as before after it.

    The number belongs to the process: everything that computes meanwhile gets it. So it changes in
    the main thread only, as in a script, a notebook or the command line.

    Raises:
        InputError: it would have to change, and this is not the main thread.
    """
    import torch

    before = torch.get_num_threads()
    if count == before:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise InputError(
            f"This was begun with {count} threads of torch and there are {before} now: "
            f"call torch.set_num_threads({count}) first, or run it in the main thread."
        )
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_in_forks(owner: Any) -> None:
    """Call `owner.after_fork()` in every process forked from now on, while the owner lives."""
    _owners.add(owner)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=lambda: [owner.after_fork() for owner in list(_owners)])


class ForkSafeLock:
    """A `threading.Lock` that is free in a forked process, whoever held it in the parent."""

    def __init__(self) -> None:
        self.after_fork()
        renew_in_forks(self)

    def after_fork(self) -> None:
        """Free the lock."""
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock as `threading.Lock.acquire` does."""
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        """Free the lock."""
        self._lock.release()

    def locked(self) -> bool:
        """Return whether somebody holds the lock."""
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class WaitingLine:
    """Whoever comes is served in turn, so many at a time; whoever waits is told their place.

    Nobody stands in the line of a forked process.

    Args:
        width: how many are served at a time.
    """

    def __init__(self, width: int = 1) -> None:
        self._width = width
        self.after_fork()
        renew_in_forks(self)

    def after_fork(self) -> None:
        """Begin with nobody in the line."""
        self._moved, self._line = threading.Condition(), list[object]()
        self._served, self._seconds = 0, 0.0

    @contextlib.contextmanager
    def turn(self, progress: Progress = SILENT, message: str = "waiting") -> Iterator[None]:
        """Do what is inside the block when it is one's turn.

        Args:
            progress: told the message with the place, and by experience how long it takes. It may
                raise to leave the line.
            message: what one waits for.
        """
        mine = object()
        with self._moved:
            self._line.append(mine)
        begun = None
        try:
            self._wait(mine, progress, message)
            begun = time.monotonic()
            yield
        finally:
            with self._moved:
                if begun is not None:
                    self._served += 1
                    self._seconds += time.monotonic() - begun
                if mine in self._line:  # it is not in a forked process
                    self._line.remove(mine)
                self._moved.notify_all()

    def _wait(self, mine: object, progress: Progress, message: str) -> None:
        told = -math.inf
        while place := self._place(mine):
            progress.raise_if_cancelled()
            if time.monotonic() - told >= _TELL_SECONDS * max(1.0, place / 10):
                told = time.monotonic()
                progress.report(f"{message}: place {place}{self._expected(place)}", 0.0)
            with self._moved:
                if self._place(mine):
                    self._moved.wait(0.2)

    def _place(self, mine: object) -> int:
        """Return the place among those who wait, 0 when it is one's turn."""
        with self._moved:
            return max(0, self._line.index(mine) + 1 - self._width)

    def _expected(self, place: int) -> str:
        """Return how long it takes by experience, in words."""
        if not self._served:
            return ""
        return f", about {math.ceil(place * self._seconds / self._served / self._width)} s"
