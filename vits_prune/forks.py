"""State that a forked process makes anew. ZeroGPU's workers are forks of a process with threads.

Only the thread that forks lives on in the child: a lock that another one held is never released
there, and a pool of threads never works again.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol


class Renewable(Protocol):
    def after_fork(self) -> None:
        """Make the state anew that does not survive in a child process."""


_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_in_forks(owner: Renewable) -> None:
    """Call `owner.after_fork()` in every process forked from now on, while the owner lives."""
    _owners.add(owner)


def _renew() -> None:
    for owner in list(_owners):
        owner.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_renew)


class Lock:
    """A `threading.Lock` that is free in a forked process, whoever held it in the parent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        renew_in_forks(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
