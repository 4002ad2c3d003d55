"""An interrupted network: every request of a push and of a download is cut, or its client killed.

What the hub and the cache hold is the old voice or the new one, and the same again ends well.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from tests.plug import KINDS, Plug, forked, running
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Account, LoopbackHub, Repository, connect, serving
from vits_prune import InputError, PruneSpec, load_voice, prune, save_voice
from vits_prune.errors import HubError
from vits_prune.ship.hub_push import push_folder
from vits_prune.voices.load import load_hub

ANN, REPO = "hf_" + "a" * 34, "ann/voice"
CUTS = {
    "request": None,
    "half a request": 0.5,
    "answer": 0.0,
    "half an answer": 0.5,
    "end of an answer": 0.99,
}
"""What is cut, and the share that passes."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as server:
        connect(monkeypatch, server, tmp_path)
        server.store = tmp_path / "store"
        server.store.mkdir()
        server.accounts = {ANN: Account("ann")}
        yield server


class Cutter:
    """Cuts the n-th request of a hub (from 0), once or for good, or kills who asks."""

    def __init__(self, how: str, at: int) -> None:
        self.what, _, self.times = how.partition(", ")
        self.at, self.seen = at, -1

    def __call__(self, handler) -> bool:
        self.seen += 1
        if self.seen < self.at or (self.seen > self.at and self.times == "once"):
            return False
        length = int(handler.headers.get("Content-Length") or 0)
        if self.what == "request":
            return True
        if self.what == "half a request":
            handler.rfile.read(length // 2)
            return True
        handler.body = handler.rfile.read(length)
        if self.what == "killed before":
            os.kill(running[0], signal.SIGKILL)
            return True
        handler.wfile, answer = io.BytesIO(), handler.wfile
        handler._serve(unquote(urlsplit(handler.path).path))
        if self.what == "killed after":
            os.kill(running[0], signal.SIGKILL)
            return True
        content = handler.wfile.getvalue()
        handler.wfile = answer
        handler.wfile.write(content[: int(CUTS[self.what] * len(content))])
        return True


HOWS = [
    *(f"{cut}, {times}" for cut in CUTS for times in ("once", "for good")),
    "killed before, once",
    "killed after, once",
]


def pull(hub: LoopbackHub, how: str, begin: Callable, work: Callable, seen: Callable) -> int:
    """Cut each request of some work in turn; return how many there were."""

    def once() -> int:
        time.sleep = lambda seconds: None  # the client's, between its attempts
        try:
            work()
        except InputError as error:
            print(f"InputError: {error}")
            return 2
        return 0

    begin()
    old = seen()
    assert forked(once).code == 0
    new = seen()
    assert new != old
    for at in range(1_000):
        begin()
        hub.cut = Cutter(how, at)
        ended = forked(once)
        met, hub.cut = hub.cut.seen >= at, None
        there, words = seen(), f"{how} {at}: {ended}"
        if not met:
            assert (ended.code, there) == (0, new), words
            return at
        assert "Traceback" not in ended.said, words
        assert ended.code in ((-9,) if how.startswith("killed") else (0, 2)), words
        assert there in (old, new), words
        if ended.code == 0:
            assert there == new, words
        if "nothing was published" in ended.said:
            assert there == old, words
        again = forked(once)
        assert (again.code, seen()) == (0, new), f"{words}, then {again}"
    raise AssertionError("there is no end of requests")


def push_between(hub: LoopbackHub, folders: tuple[Path, Path]) -> tuple[Callable, ...]:
    """A push of one voice over an older one, with what the hub holds before and after."""
    first, second = folders

    def send(folder):
        push_folder(folder, REPO, token=ANN, replace=True)

    def begin():
        for held in (hub.repositories, hub.objects, hub.parts, hub.commits, hub.requests):
            held.clear()
        assert forked(lambda: send(first)).code == 0

    return begin, lambda: send(second), lambda: hub.files(REPO)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two saved voices."""
    place = tmp_path_factory.mktemp("voices")
    voice = load_voice(make_checkpoint(place / "tiny", stochastic=False))
    pruned = prune(voice, PruneSpec(amount=0.5))
    return save_voice(voice, place / "one"), save_voice(pruned, place / "two", "sparse")


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_a_push_is_cut_at_every_request(how, hub, folders):
    found = pull(hub, how, *push_between(hub, folders))
    print(f"push, {how}: {found} faults")
    assert found > 5


def download(hub: LoopbackHub, place: Path, folder: Path) -> tuple[Callable, ...]:
    """A download into an empty cache, with what is there without the hub."""
    hub.repositories[REPO] = [Repository(folder)]
    caches: Iterator[Path] = (place / f"cache-{number}" for number in range(10_000))
    now: list[Path] = []

    def begin():
        now[:] = [next(caches)]
        now[0].mkdir()

    def weights(offline):
        constants.HF_HUB_OFFLINE = offline
        return load_hub(REPO, token=False, cache_dir=now[0]).model.state_dict()

    def seen():
        def work():
            try:
                print(sum(tensor.sum().item() for tensor in weights(offline=True).values()))
            except InputError as error:
                print(type(error) is HubError)  # nothing is there, and nothing is damaged

        return forked(work).said

    return begin, lambda: weights(offline=False) and None, seen, now


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("plain") / "tiny", stochastic=False)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_a_download_is_cut_at_every_request(how, hub, plain, tmp_path):
    begin, work, seen, _ = download(hub, tmp_path, plain)
    found = pull(hub, how, begin, work, seen)
    print(f"download, {how}: {found} faults")
    assert found > 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_of_downloads_at_every_write(kind, hub, plain, tmp_path):
    begin, work, seen, now = download(hub, tmp_path, plain)

    def once():
        try:
            work()
        except InputError as error:
            print(error)
            return 2
        return 0

    begin()
    old = seen()
    assert forked(once).code == 0
    new = seen()
    for at in range(1_000):
        begin()
        plug = Plug(now[0], kind, at)
        ended = forked(once, plug)
        there, words = seen(), f"{kind} {at}: {ended}"
        assert "Traceback" not in ended.said, words
        if ended.code == 0:
            assert there == new, words
            if not plug.met[0]:
                break
            continue
        assert ended.code == (2 if kind == "full" else -9), words
        # a lost power line may leave half a file, which is not read as whole
        assert there in (old, new, "False\n"[: 6 * (kind == "power")]), words
        again = forked(once)
        assert (again.code, seen()) == (0, new), f"{words}, then {again}"
    print(f"cache of downloads, {kind}: {at} faults")
    assert at > 10
