"""Progress: what long work is doing, how much of it is done, and whether it is still wanted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Cancelled(Exception):
    """Raised inside work that nobody wants any more."""


class Progress:
    """A channel from long work to whoever waits for it.

    The work calls `report`; a listener shows it. A piece of the work gets `part(...)`, which maps
    its own 0 to 1 onto a stretch of the whole. `report` raises Cancelled once the work is no longer
    wanted, and anything that the listener raises ends the work in the same way.

    Example:
        >>> shown = []
        >>> progress = Progress(lambda message, fraction: shown.append((message, fraction)))
        >>> for _ in progress.part(0.0, 0.5).track("ab", "letter"):
        ...     pass
        >>> shown
        [('letter 1 of 2', 0.0), ('letter 2 of 2', 0.25)]

    Args:
        listener: called with a message and the fraction that is done, 0 to 1.
        cancelled: returns True once the work is no longer wanted.
    """

    def __init__(
        self,
        listener: Callable[[str, float], object] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._listener, self._cancelled = listener, cancelled

    def report(self, message: str, fraction: float) -> None:
        """Say what is being done and the fraction that is done, 0 to 1.

        Raises:
            Cancelled: the work is no longer wanted.
        """
        self.raise_if_cancelled()
        if self._listener:
            self._listener(message, fraction)

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if the work is no longer wanted."""
        if self._cancelled and self._cancelled():
            raise Cancelled

    def part(self, start: float, end: float, before: str = "") -> Progress:
        """Return the progress of a piece of the work, from `start` to `end` of the whole.

        It never goes back, even if the piece does some of its work twice. Each message of the
        piece begins with `before`.
        """
        highest = 0.0

        def listen(message: str, fraction: float) -> None:
            nonlocal highest
            highest = min(1.0, max(highest, fraction))
            self.report(f"{before}{message}", start + (end - start) * highest)

        return Progress(listen, self._cancelled)

    def track(self, items: Sequence[T], message: str) -> Iterator[T]:
        """Yield the items, reporting "message 3 of 10" before each."""
        for index, item in enumerate(items):
            self.report(f"{message} {index + 1} of {len(items)}", index / len(items))
            yield item


SILENT = Progress()
"""For work that nobody watches."""


class Pieces:
    """Progress of pieces of work that may run at once, in several threads: the mean of theirs.

    If the listener raises, or the work is cancelled, then every piece ends at its next report.
    With a `noun`, "noun 3 of 10" is reported in place of the messages of the pieces.
    """

    def __init__(self, progress: Progress, count: int, noun: str = "") -> None:
        self.stopped = False
        """Whether the work was cancelled, or the listener raised."""
        self._progress, self._noun = progress, noun
        self._fractions, self._lock = [0.0] * count, threading.Lock()

    def stop(self) -> None:
        """End every piece at its next report."""
        self.stopped = True

    def of(self, index: int, before: str = "") -> Progress:
        """Return the progress of a piece; `before` is put before its messages."""
        return Progress(lambda what, done: self._report(index, before + what, done))

    def _report(self, index: int, message: str, fraction: float) -> None:
        with self._lock:
            if self.stopped:
                raise Cancelled
            # A piece that is tried again does not go back.
            self._fractions[index] = max(fraction, self._fractions[index])
            done, count = sum(self._fractions), len(self._fractions)
            if self._noun:
                message = f"{self._noun} {min(int(done) + 1, count)} of {count}"
            try:
                self._progress.report(message, done / count)
            except BaseException:
                self.stopped = True
                raise
