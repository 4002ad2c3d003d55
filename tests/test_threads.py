"""How many threads torch computes with, and locks in forked processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.forked import in_fork
from vits_prune.errors import InputError
from vits_prune.threads import ForkSafeLock, torch_threads


def test_the_number_is_as_before_at_the_end():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_another_thread_changes_nothing_for_the_process(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(
        torch, "set_num_threads", lambda _count: pytest.fail("changed for all threads")
    )

    def use(count):
        with torch_threads(count):
            return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(use, before).result(60) == before
        with pytest.raises(InputError, match=rf"torch.set_num_threads\({before + 1}\)"):
            pool.submit(use, before + 1).result(60)


def test_a_lock_that_is_held_is_free_in_a_forked_process():
    lock = ForkSafeLock()
    with lock:
        assert in_fork(lambda: lock.acquire(timeout=5))
        assert not lock.acquire(blocking=False)
    assert not lock.locked()
