"""What commands show and write: a line of progress, tables, and files."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from vits_prune.errors import InputError
from vits_prune.progress import Progress

_CLEAR = "\r\x1b[2K"


class ProgressLine:
    """Shows the progress of long work on one line, which is gone at the end.

    Where stderr is not a terminal nothing is shown.

    Args:
        gently: the first Ctrl-C ends the work at its next report and not at once, so that a
            checkpoint is written; the second ends it at once. Elsewhere than in the main thread,
            which alone gets Ctrl-C, this has no effect.
    """

    def __init__(self, gently: bool = False) -> None:
        self._gently = gently
        self._interrupted = False
        self._shows = bool(sys.stderr and sys.stderr.isatty())
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        if self._gently:
            self._before = signal.getsignal(signal.SIGINT)
            self._handle(self._note)
        return Progress(self._listen)

    def __exit__(self, *_: object) -> None:
        if self._gently:
            self._handle(self._before)
        if self._shows:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def _handle(self, handler: Any) -> None:
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, handler)

    def _note(self, _signal: int, _frame: object) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        # not print, which may be under way itself
        os.write(
            2, b"\nStopping after the work under way; press Ctrl-C once more to stop at once.\n"
        )

    def _listen(self, message: str, fraction: float) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        if self._shows:
            left = time_left(time.monotonic() - self._start, fraction)
            line = f"{_CLEAR}{100 * fraction:3.0f}%  {left}{message}"
            print(line[:160], end="", file=sys.stderr, flush=True)


def time_left(seconds: float, fraction: float) -> str:
    """Return how long the rest takes at the same speed; empty if too little is done to say."""
    if fraction < 0.01 or seconds < 1:
        return ""
    minutes, left = divmod(round(seconds * (1 - fraction) / fraction), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02} left  " if hours else f"{minutes}:{left:02} left  "


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table; cells that a row lacks are empty."""
    import pandas as pd

    def shown(cell: Any) -> Any:
        return f"{cell:.4g}" if isinstance(cell, float) else cell

    cells = [{name: shown(cell) for name, cell in row.items()} for row in rows]
    if cells:
        print(pd.DataFrame(cells).to_string(index=False, na_rep=""))


def print_left_out(reasons: Iterable[str], file: TextIO | None = None) -> None:
    """Print what was left out and why, each reason once, and below how to install what lacks."""
    from vits_prune.measure.predictors import INSTALL

    found = list(dict.fromkeys(reasons))
    for reason in found:
        print(f"Note: {reason.replace(INSTALL, 'see the line below')}", file=file, flush=True)
    if any(INSTALL in reason for reason in found):
        print(f"To install all predictors: {INSTALL}", file=file, flush=True)


def interval_words(interval: Any, sign: str = "+") -> str:
    """Return "+0.02 [-0.01, +0.05]" of an Interval, the value alone if its ends are not known."""
    if interval is None:
        return ""
    shown = f"{interval.value:+.3g}"
    if interval.low is None:
        return shown
    return f"{shown} [{interval.low:{sign}.3g}, {interval.high:{sign}.3g}]"


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an error of the disk into an InputError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"The files could not be written to {place}: {reason}.") from error


def check_writable(path: Path | None) -> None:
    """Raise InputError if a file cannot be written, before the hours that lead to it."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"{path} cannot be written: give a file in a folder that exists.")


def write_report(path: Path | None, content: dict[str, Any]) -> None:
    """Write JSON to the file that --json names, if it names one."""
    from vits_prune.files import write_json
    from vits_prune.study.sweep_store import plain

    if path is not None:
        with writing(path):
            write_json(path, plain(content))
        print(f"\nWritten to {path}")
