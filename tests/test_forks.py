"""State that a forked process makes anew."""

from __future__ import annotations

from tests.forked import in_fork
from vits_prune import forks


def test_a_lock_that_is_held_is_free_in_a_forked_process():
    lock = forks.Lock()
    with lock:
        assert in_fork(lambda: lock.acquire(timeout=5))
        assert not lock.acquire(blocking=False)
    assert not lock.locked()
