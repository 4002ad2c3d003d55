"""Memory that a process keeps, so that it need not be fetched from the system for every layer."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path

_OWN = Path("/proc/self")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEEP = 1 << 30
"""Bytes: larger buffers than those of the longest sentence."""


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed buffers for the next ones; return whether it will.

    By default it gives large ones back to the system at once, and each new one costs a page fault
    for every 4 KiB: 12,000 to 17,000 for a sentence. For programs of our own (the page, the command
    line, benchmarks): the setting belongs to the whole process. Elsewhere than on Linux with glibc
    nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt  # mallopt(3)
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEEP)) and bool(mallopt(_TRIM_THRESHOLD, _KEEP))


def peak_growth(work: Callable[[], object]) -> int | None:
    """Do work; return the bytes of memory that the process then held at most, less those before.

    Memory that is free but kept is given back first. What other threads do meanwhile counts too.
    None, and nothing is done, elsewhere than on Linux with glibc.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_OWN / "clear_refs").write_text("5")  # forgets the peak: proc(5)
        before = _resident("VmRSS")
    except (OSError, AttributeError, TypeError):
        return None
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(kind: str) -> int:
    found = re.search(rf"^{kind}:\s+(\d+) kB$", (_OWN / "status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
