"""How many threads torch computes with, and locks in forked processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.forked import in_fork
from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.threads import ForkSafeLock, WaitingLine, torch_threads


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


class Waiting:
    """One who waits in a line in a thread, and what they were told."""

    def __init__(self, line, pool, served, name):
        self.told, self.is_told, self.leaves = [], threading.Event(), False
        self.end = pool.submit(self.stand, line, served, name)
        assert self.is_told.wait(20)

    def stand(self, line, served, name):
        with line.turn(Progress(self.hear), "waiting to speak"):
            served.append(name)

    def hear(self, message, _fraction):
        self.told.append(message)
        self.is_told.set()
        if self.leaves:
            raise InterruptedError


def test_a_line_serves_in_order_and_tells_each_their_place():
    line, served = WaitingLine(), []
    with ThreadPoolExecutor(3) as pool:
        with line.turn():
            first, second, third = (Waiting(line, pool, served, name) for name in "abc")
            places = [one.told[0] for one in (first, second, third)]
            assert places == [f"waiting to speak: place {n}" for n in (1, 2, 3)]
            first.leaves = True
            with pytest.raises(InterruptedError):
                first.end.result(20)
        assert second.end.result(20) is third.end.result(20) is None
    assert served == ["b", "c"]
    with ThreadPoolExecutor(1) as pool, line.turn():
        late = Waiting(line, pool, served, "d")
        assert late.told[0].startswith("waiting to speak: place 1, about ")


def test_a_wider_line_serves_several_at_once():
    line = WaitingLine(width=2)
    with line.turn(), line.turn(), ThreadPoolExecutor(1) as pool:
        third = Waiting(line, pool, [], "third")
        assert third.told == ["waiting to speak: place 1"]
        third.leaves = True


def test_nobody_stands_in_the_line_of_a_forked_process():
    line, told = WaitingLine(), []

    def served():
        with line.turn(Progress(lambda message, _: told.append(message))):
            return not told

    with line.turn():
        assert in_fork(served)
