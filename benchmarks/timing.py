"""Timing two ways in turn, after a warm-up: the ratio then holds on a noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def in_turn(
    ours: Callable[[int], object], rival: Callable[[int], object], runs: int
) -> list[tuple[float, float]]:
    """Return the seconds of (ours, rival) in each run, after one uncounted call of each.

    Both are called with the number of the run.
    """
    timed = []
    for run in range(runs + 1):
        seconds = {}
        for name, function in (
            (("ours", ours), ("rival", rival)) if run % 2 else (("rival", rival), ("ours", ours))
        ):
            start = time.perf_counter()
            function(run)
            seconds[name] = time.perf_counter() - start
        timed.append((seconds["ours"], seconds["rival"]))
    return timed[1:]


def describe(ratios: list[float]) -> str:
    """Median and the range of the runs."""
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}, n={len(ratios)}"
    return f"{statistics.median(ratios):.2f} (runs: {spread})"


def milliseconds(values: list[float]) -> str:
    """Median in milliseconds."""
    return f"{1e3 * statistics.median(values):.0f} ms"
