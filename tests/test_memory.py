"""Freed memory stays in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
