"""Caches and scratch folders that stay within bounds."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(Generic[K, V]):
    """A cache that forgets the least recently used once its values weigh more than the bound; the newest always stays."""

    def __init__(self, bound: float, weigh: Callable[[V], float]) -> None:
        self._bound, self._weigh = bound, weigh
        self._values: OrderedDict[K, V] = OrderedDict()
        self._making: dict[K, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value, None where it was never made or is forgotten."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value, made once even where several threads ask for it at the same time."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        try:
            with making:
                value = self.get(key)
                if value is None:
                    value = make()
                    self.put(key, value)
                return value
        finally:
            with self._lock:
                self._making.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """All that is kept, the least recently used first."""
        with self._lock:
            return list(self._values.items())

    def put(self, key: K, value: V) -> list[V]:
        """Keep a value; the values forgotten for it."""
        forgotten = []
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > 1 and sum(map(self._weigh, self._values.values())) > self._bound:
                forgotten.append(self._values.popitem(last=False)[1])
        return forgotten


class Scratch:
    """Folders for files on their way to a visitor; the oldest are removed once there are many or they are large, all at the end."""

    def __init__(self, most: int = 200, most_bytes: int = 1 << 30) -> None:
        self._root = tempfile.TemporaryDirectory(prefix="vits_prune-scratch-")
        self._folders: deque[Path] = deque()
        self._most, self._most_bytes = most, most_bytes
        self._lock = threading.Lock()

    def folder(self) -> Path:
        """A new empty folder."""
        made = Path(tempfile.mkdtemp(dir=self._root.name))
        with self._lock:
            while self._folders and (len(self._folders) >= self._most or sum(map(_folder_bytes, self._folders)) > self._most_bytes):
                shutil.rmtree(self._folders.popleft(), ignore_errors=True)
            self._folders.append(made)
        return made


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
