"""Progress on a terminal: one line that is written over, with the time that is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


class Progress:
    """The line, gone at the end; silent where stderr is no terminal."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __enter__(self) -> Callable[[str, float], None]:
        return self._tell if sys.stderr.isatty() else lambda _what, _share: None

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def _tell(self, what: str, share: float) -> None:
        left = time_left(time.monotonic() - self._start, share)
        print(f"\r\x1b[2K{100 * share:3.0f}%  {left}{what}"[:160], end="", file=sys.stderr, flush=True)


def time_left(seconds: float, share: float) -> str:
    """How long the rest takes if it goes on as before, empty where too little is done to say."""
    if share < 0.01 or seconds < 1:
        return ""
    left = round(seconds * (1 - share) / share)
    hours, minutes = left // 3600, left // 60 % 60
    return f"{hours}:{minutes:02}:{left % 60:02} left  " if hours else f"{minutes}:{left % 60:02} left  "
