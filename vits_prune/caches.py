"""Caches and scratch folders that stay within bounds."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from vits_prune.threads import ForkSafeLock, renew_in_forks

K = TypeVar("K")
V = TypeVar("V")
WAIT_SECONDS = 0.2


class _Making(Generic[V]):
    """One thread makes a value; others wait for it."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.made: list[V] = []


class _Owned(NamedTuple):
    owner: weakref.ref[Any]
    key: Any


class Bounded(Generic[K, V]):
    """A cache that forgets the least recently used values once all weigh more than the bound.

    The newest value always stays. Threads may share a cache. No lock is held while a value is made.

    Args:
        bound: largest weight of all values together.
        weigh: the weight of a value.
        survives_fork: whether a forked process may use the values. Say False for what holds threads
            of its own: a forked process then makes it again.
    """

    def __init__(
        self, bound: float, weigh: Callable[[V], float], *, survives_fork: bool = True
    ) -> None:
        self._bound, self._weigh, self._survives_fork = bound, weigh, survives_fork
        self._values: OrderedDict[Any, V] = OrderedDict()
        self._making: dict[Any, _Making[V]] = {}
        self._left: list[object] = []
        self._lock = threading.Lock()
        renew_in_forks(self)

    def __len__(self) -> int:
        return len(self.items())

    def get(self, key: K) -> V | None:
        """Return the value, or None if it was never made or is forgotten."""
        with self._locked():
            return self._get(key)

    def get_or_make(
        self,
        key: K,
        make: Callable[[], V],
        while_waiting: Callable[[], object] | None = None,
        *,
        owner: object | None = None,
        enough: Callable[[V], bool] | None = None,
    ) -> V:
        """Return the value of a key; make it if it is not there.

        One thread at a time makes the value of a key, and the others wait for it. If making fails,
        only the thread that made it gets the error, and one of those that wait makes it next.

        Args:
            key: what to look up.
            make: makes the value. It must not ask for the same key.
            while_waiting: called every WAIT_SECONDS while another thread makes the value; it may
                raise to stop waiting.
            owner: the key is another one for another owner, and the value is forgotten when the
                owner is collected. The value must not refer to it.
            enough: whether a value that is there will do; if not, it is made again and replaced.
        """
        where: Any = key if owner is None else _Owned(weakref.ref(owner, self._owner_gone), key)
        while True:
            with self._locked():
                found = self._get(where)
                if found is not None and (enough is None or enough(found)):
                    return found
                making = self._making.get(where)
                if making is None:
                    mine = self._making[where] = _Making()
                    break
            while not making.over.wait(WAIT_SECONDS):
                if while_waiting:
                    while_waiting()
            for made in making.made:  # it may be forgotten already
                if enough is None or enough(made):
                    return made
        try:
            value = make()
            self.put(where, value)
            mine.made.append(value)
            return value
        finally:
            with self._locked():
                self._making.pop(where, None)
            mine.over.set()

    def items(self) -> list[tuple[K, V]]:
        """Return all keys and values, the least recently used first."""
        with self._locked():
            return list(self._values.items())

    def put(self, key: K, value: V) -> list[V]:
        """Keep a value; return the values that are forgotten for it."""
        forgotten = []
        with self._locked():
            self._values[key] = value
            self._values.move_to_end(key)
            weights = {one: self._weigh(kept) for one, kept in self._values.items()}
            while len(weights) > 1 and sum(weights.values()) > self._bound:
                weights.pop(next(iter(self._values)))
                forgotten.append(self._values.popitem(last=False)[1])
        return forgotten

    def clear(self) -> None:
        """Forget all values."""
        with self._locked():
            self._values.clear()

    def after_fork(self) -> None:
        """Begin anew in a forked process: nobody holds the lock, and nobody makes anything."""
        self._lock, self._making = threading.Lock(), {}
        if not self._survives_fork:
            # Not freed: its end would wait for threads that this process does not have.
            self._left.append(self._values)
            self._values = OrderedDict()

    def _get(self, key: Any) -> V | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            self._forget_gone()
            yield

    def _owner_gone(self, _owner: weakref.ref[Any]) -> None:
        """Forget the values of an owner. The garbage collector may call this under the lock."""
        lock = self._lock
        if lock.acquire(blocking=False):
            try:
                self._forget_gone()
            finally:
                lock.release()

    def _forget_gone(self) -> None:
        owned = [key for key in self._values if isinstance(key, _Owned)]
        for key in owned:
            if key.owner() is None:
                del self._values[key]


class Scratch:
    """Folders for files on their way to a visitor. The oldest go once they are many or large."""

    def __init__(self, most: int = 200, most_bytes: int = 1 << 30) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="vits_prune-scratch-")
        self._folders: deque[Path] = deque()
        self._most, self._most_bytes = most, most_bytes
        self._lock = ForkSafeLock()

    def clear(self) -> None:
        """Remove all folders."""
        with self._lock:
            while self._folders:
                shutil.rmtree(self._folders.popleft(), ignore_errors=True)

    def folder(self) -> Path:
        """Return a new empty folder."""
        made = Path(tempfile.mkdtemp(dir=self._root.name))
        with self._lock:
            while self._folders and (
                len(self._folders) >= self._most
                or sum(map(_folder_bytes, self._folders)) > self._most_bytes
            ):
                shutil.rmtree(self._folders.popleft(), ignore_errors=True)
            self._folders.append(made)
        return made


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
