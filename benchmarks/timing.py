"""Timing two ways of doing the same thing so that the ratio holds on a noisy machine: in turn, in changing order, after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def in_turn(
    ours: Callable[[int], object], rival: Callable[[int], object], runs: int
) -> list[tuple[float, float]]:
    """Seconds of (ours, rival) in each run; both are called with the run's number, one uncounted call of each first."""
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
    return f"{statistics.median(ratios):.2f} (runs: {min(ratios):.2f} to {max(ratios):.2f}, n={len(ratios)})"


def milliseconds(values: list[float]) -> str:
    """Median in milliseconds."""
    return f"{1e3 * statistics.median(values):.0f} ms"
