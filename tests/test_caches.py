"""Caches forget, make once, and let those who wait give up."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.forked import in_fork
from vits_prune.caches import Bounded, Scratch
from vits_prune.errors import InputError


class Owner:
    pass


def test_a_bounded_cache_forgets_the_least_recently_used():
    cache: Bounded[str, int] = Bounded(10, lambda value: value)
    for key in "abc":
        assert cache.put(key, 3) == []
    assert cache.get("a") == 3
    assert cache.put("d", 4) == [3]
    assert [cache.get(key) for key in "abcd"] == [3, None, 3, 4]
    assert sorted(cache.put("huge", 100)) == [3, 3, 4]
    assert cache.get("huge") == 100, "the newest stays however large"
    assert cache.put("huge", 1) == []
    assert cache.put("e", 9) == []


def test_what_is_asked_for_at_once_is_made_once():
    cache: Bounded[str, object] = Bounded(10, lambda _: 1)
    made, inside, go_on = [], threading.Event(), threading.Event()

    def make():
        made.append(object())
        inside.set()
        assert go_on.wait(10)
        return made[-1]

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(cache.get_or_make, "a", make)
        assert inside.wait(10)
        others = [pool.submit(cache.get_or_make, "a", make) for _ in range(5)]
        assert cache.get_or_make("b", lambda: "b") == "b", "another key need not wait"
        go_on.set()
        assert {id(future.result(10)) for future in (first, *others)} == {id(made[0])}
    assert len(made) == 1


def test_a_cache_recovers_when_making_fails():
    cache: Bounded[str, int] = Bounded(10, lambda _: 1)
    inside, go_on = threading.Event(), threading.Event()

    def fail():
        inside.set()
        assert go_on.wait(10)
        raise InputError("no.")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_make, "a", fail)
        assert inside.wait(10)
        second = pool.submit(cache.get_or_make, "a", lambda: 7)
        go_on.set()
        with pytest.raises(InputError):
            first.result(10)
        assert second.result(10) == 7
    assert cache.get_or_make("a", lambda: 8) == 7


def test_scratch_folders_are_removed_once_there_are_many():
    scratch = Scratch(most=2)
    first, second, third = (scratch.folder() for _ in range(3))
    assert not first.exists()
    assert second.is_dir()
    assert third.is_dir()


def test_scratch_folders_are_cleared():
    scratch = Scratch()
    before = scratch.folder()
    (before / "file").write_bytes(b"1")
    scratch.clear()
    assert not before.exists()
    assert scratch.folder().is_dir()


def test_scratch_folders_are_bounded_in_bytes():
    scratch = Scratch(most=100, most_bytes=1000)
    folders = []
    for _ in range(5):
        folders.append(scratch.folder())
        (folders[-1] / "file").write_bytes(bytes(600))
    assert [folder.exists() for folder in folders] == [False, False, False, True, True]


def test_after_a_failure_those_who_wait_and_those_who_come_have_one_maker():
    """The first fails while the second waits; the third comes while the second makes."""
    cache: Bounded[str, int] = Bounded(10, lambda _: 1)
    failing, fail, waiting, making, make = (threading.Event() for _ in range(5))
    made = []

    def first():
        failing.set()
        assert fail.wait(60)
        raise InputError("no.")

    def second():
        made.append(2)
        making.set()
        assert make.wait(60)
        return 2

    def third():
        made.append(3)
        return 3

    with ThreadPoolExecutor(3) as pool:
        failed = pool.submit(cache.get_or_make, "a", first)
        assert failing.wait(60)
        later = pool.submit(cache.get_or_make, "a", second, waiting.set)
        assert waiting.wait(60)
        fail.set()
        assert making.wait(60)
        waiting.clear()
        last = pool.submit(cache.get_or_make, "a", third, waiting.set)
        waited = waiting.wait(60)
        make.set()
        assert waited
        with pytest.raises(InputError):
            failed.result(60)
        assert (later.result(60), last.result(60), made) == (2, 2, [2])


def test_one_who_waits_can_give_up():
    cache: Bounded[str, int] = Bounded(10, lambda _: 1)
    inside, go_on = threading.Event(), threading.Event()

    class Gone(Exception):
        pass

    def make():
        inside.set()
        assert go_on.wait(60)
        return 1

    def leave():
        raise Gone

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_or_make, "a", make)
        assert inside.wait(60)
        with pytest.raises(Gone):
            cache.get_or_make("a", lambda: 2, leave)
        go_on.set()
        assert first.result(60) == 1


def test_those_who_waited_get_what_is_forgotten_at_once():
    cache: Bounded[str, int] = Bounded(1, lambda _: 1)
    inside, waiting = threading.Event(), threading.Event()

    def make():
        inside.set()
        assert waiting.wait(60)
        return 1

    def crowd_out():
        waiting.set()
        cache.put("b", 2)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_or_make, "a", make)
        assert inside.wait(60)
        assert cache.get_or_make("a", lambda: 3, crowd_out) == 1
        assert first.result(60) == 1


def test_what_is_not_enough_is_made_again():
    cache: Bounded[str, int] = Bounded(10, lambda _: 1)
    assert cache.get_or_make("a", lambda: 1) == 1
    assert cache.get_or_make("a", lambda: 5, enough=lambda value: value > 2) == 5
    assert cache.get_or_make("a", lambda: 6, enough=lambda value: value > 2) == 5


def test_values_of_an_owner_go_with_it():
    cache: Bounded[str, int] = Bounded(10, lambda _: 1)
    first, second = Owner(), Owner()
    assert [
        cache.get_or_make("a", lambda value=value: value, owner=owner)
        for value, owner in ((1, first), (2, second))
    ] == [1, 2]
    assert cache.get_or_make("a", lambda: 3, owner=first) == 1
    del first
    gc.collect()
    assert len(cache) == 1
    assert cache.get_or_make("a", lambda: 3, owner=second) == 2


def test_an_owner_may_go_while_the_cache_is_locked():
    """The garbage collector may run at any point."""
    owners = [Owner()]

    def weigh(_value):  # called while the cache is locked
        owners.clear()
        gc.collect()
        return 1

    cache: Bounded[str, int] = Bounded(10, weigh)
    cache.get_or_make("a", lambda: 1, owner=owners[0])
    cache.put("b", 2)
    assert not owners
    assert cache.items() == [("b", 2)]


def test_a_fork_in_the_middle_of_everything_can_use_its_cache():
    threads: Bounded[str, int] = Bounded(10, lambda _: 1, survives_fork=False)
    inside, go_on = threading.Event(), threading.Event()
    to_do, forked = [], []

    def weigh(_value):  # called while the cache is locked
        if to_do:
            forked.append(in_fork(to_do.pop()))
        return 1

    def use():
        made = cache.get_or_make("a", lambda: 2), threads.get_or_make("kept", lambda: 2)
        return *made, cache.get("kept")

    def make():
        inside.set()
        assert go_on.wait(60)
        return 1

    cache: Bounded[str, int] = Bounded(10, weigh)
    for one in (cache, threads):
        one.put("kept", 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_or_make, "a", make)
        assert inside.wait(60)
        to_do.append(use)
        cache.put("more", 1)
        go_on.set()
        assert first.result(60) == 1
    assert forked == [(2, 2, 1)]
    assert cache.get("a") == threads.get("kept") == 1
