"""Threads: how many torch computes with, and state that a forked process makes anew.

ZeroGPU's workers are forks of a process with threads. Only the thread that forks lives on in the
child: a lock that another one held is never released there, and a pool of threads never works
again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from vits_prune.errors import InputError
from vits_prune.progress import Progress


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

    @contextlib.contextmanager
    def turn(self, progress: Progress, message: str) -> Iterator[None]:
        """Hold the lock; while another thread holds it, report the message, which may cancel."""
        while not self.acquire(timeout=0.2):
            progress.report(message, 0.0)
        try:
            yield
        finally:
            self.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
