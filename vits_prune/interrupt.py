"""Ctrl-C before there is anything to clean up: one word, and the exit code 130."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

STOPPED = 130
"""The exit code of a program that Ctrl-C ended."""


def stop_at_once() -> None:
    """Let Ctrl-C end this process without a traceback, as while modules load."""
    signal.signal(signal.SIGINT, _stop)


@contextlib.contextmanager
def clean_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C in the block, where `stop_at_once` had it end all."""
    if signal.getsignal(signal.SIGINT) is not _stop:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _stop)


def _stop(*_: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"vits_prune: stopped.\n")
    os._exit(STOPPED)
