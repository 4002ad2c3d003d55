"""Freed memory stays in the process; the peak of some work is read off the system."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from vits_prune import memory

FAULTS = """
import resource, sys
import torch
from vits_prune.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for run in range(16):
    if run == 8:  # by then the allocator has what it needs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (12_000_000, 3_000_000, 10_000_000):  # 12 to 48 MB
        torch.empty(size).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    run = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has the setting")
def test_large_buffers_are_fetched_from_the_system_once():
    assert faults("keep") < faults("let go") / 5


def buffers(megabytes):
    """Fill a buffer of so many MB, twice, and let go of it."""
    for _ in range(2):
        np.ones(megabytes << 20, np.uint8)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells the peak")
def test_the_peak_of_some_work():
    for _ in range(2):  # what was held before does not count
        found = [memory.peak_growth(lambda n=n: buffers(n)) / 2**20 for n in (100, 20)]
        assert found == pytest.approx([100, 20], abs=5)


def test_no_peak_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_OWN", tmp_path / "nothing")
    assert memory.peak_growth(lambda: pytest.fail("nothing is measured")) is None
