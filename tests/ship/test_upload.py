"""Push to a hub on the loopback interface with the real huggingface_hub client."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.nearly import nearly
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Account, Fault, Repository, connect, serving
from tests.voices.loopback_xet import LoopbackXet
from vits_prune import InputError, PruneSpec, load_voice, prune, save_voice, speak
from vits_prune.errors import HubError, LoginError
from vits_prune.progress import Progress
from vits_prune.ship import hub_push as upload
from vits_prune.ship import hub_transfer as transfer
from vits_prune.ship.hub_destination import (
    RECORD,
    Destination,
    check_destination,
    files_of_earlier_push,
    is_plain,
    pushable_files,
)
from vits_prune.ship.hub_push import push_folder
from vits_prune.ship.hub_transfer import one_line
from vits_prune.voices.manifest import EXPORT

ROOT = Path(__file__).parents[2]
ANN = "hf_" + "a" * 34
READS = "hf_reads" + "b" * 26
FINE = "hf_fine" + "c" * 27
BOB = "hf_bob" + "d" * 28
NOTHING = "nothing was published"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving() as server:
        connect(monkeypatch, server, tmp_path)
        server.store = tmp_path / "store"
        server.store.mkdir()
        server.accounts = {
            ANN: Account("ann", orgs={"choir": "write", "guests": "read"}),
            READS: Account("ann", role="read"),
            FINE: Account(
                "ann", role="fineGrained", scoped=(("choir", ("repo.content.read", "repo.write")),)
            ),
            BOB: Account("bob"),
        }
        yield server


@pytest.fixture
def folder(tmp_path):
    """As large as a real one's card and samples; the weights are a megabyte of noise."""
    made = tmp_path / "voice"
    (made / "samples").mkdir(parents=True)
    (made / "vits_prune.json").write_text('{"name": "voice"}')
    (made / "README.md").write_text("---\nlicense: mit\n---\nA voice.\n")
    (made / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(1 << 20))
    (made / "samples" / "one.wav").write_bytes(b"RIFF" + bytes(3000))
    return made


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def published(hub, repo="ann/voice"):
    return {
        name: content
        for name, content in hub.files(repo).items()
        if name not in (".gitattributes", RECORD)
    }


def untouched(hub, before=None):
    """Whether nothing was published."""
    return not hub.commits and (before is None or hub.files("ann/voice") == before)


def refused(call, match):
    with pytest.raises(InputError, match=match) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert not [token for token in (ANN, READS, FINE, BOB) if token in text]
    return text


def test_pushed_and_loaded_back_by_its_hub_id(hub, tmp_path):
    voice = prune(
        load_voice(make_checkpoint(tmp_path / "tiny")), PruneSpec(scope="local", amount=0.6)
    )
    folder = save_voice(voice, tmp_path / "saved", "sparse")
    pushed = push_folder(folder, "tiny", token=ANN, message="A\nvoice")
    assert (pushed.repo_id, pushed.url, pushed.files) == (
        "ann/tiny",
        f"{hub.url}/ann/tiny",
        len(list(folder.iterdir())),
    )
    assert pushed.bytes_sent == (folder / "model.sparse.safetensors").stat().st_size
    assert [commit["summary"] for commit in hub.commits] == ["A voice"]
    again = load_voice("ann/tiny", token=False)
    assert again.origin == voice.origin
    assert dict(again.recipe) == dict(voice.recipe)
    assert nearly(speak(voice, "hello you", 3).waveform, speak(again, "hello you", 3).waveform)
    assert load_voice(f"ann/tiny@{pushed.commit}", token=False).name == voice.name


def test_one_commit_holds_every_file(hub, folder):
    seen = []
    pushed = push_folder(
        folder,
        "ann/voice",
        token=ANN,
        progress=Progress(lambda what, share: seen.append((what, share))),
    )
    assert published(hub) == contents(folder)
    assert pushed.commit == hub.repositories["ann/voice"][0].commit
    assert [(commit["repo"], sorted(commit["lfsFile"])) for commit in hub.commits] == [
        ("ann/voice", ["model.safetensors", "samples/one.wav"])
    ]
    total = sum(map(len, contents(folder).values())) / 1e6
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert seen[-1] == (f"sending {total:.1f} of {total:.1f} MB", 1.0)
    assert not [path for path in hub.paths("PUT") if not path.startswith("/storage/")]
    stored = [headers for method, path, headers in hub.requests if method == "PUT"]
    assert stored
    assert not [
        headers for headers in stored if "authorization" in headers
    ]  # a signed address needs no token


def test_progress_comes_while_a_large_file_is_sent(hub, folder):
    hub.faults = [Fault("POST", "verify", status=500, silent=0.35, times=1)]
    seen = []
    push_folder(
        folder, "voice", token=ANN, progress=Progress(lambda _what, share: seen.append(share))
    )
    assert [share for share in seen if 0 < share < seen[-1]]
    assert len(seen) > 5  # also while nothing moves, so that a cancel is heard


def test_in_parts(hub, folder):
    hub.part_bytes = 300_000
    pushed = push_folder(folder, "voice", token=ANN)
    assert published(hub) == contents(folder)
    assert len(hub.paths("PUT")) == 5
    assert pushed.bytes_sent == (1 << 20) + 3004


def test_how_a_repository_may_be_named(hub):
    wanted = Destination("ann/voice", f"{hub.url}/ann/voice", "ann", False, None, "")
    web = "https://huggingface.co/ann/voice"
    for repo in ("voice", "ann/voice", " ann/voice ", web, f"{hub.url}/ann/voice/"):
        assert check_destination(repo, token=ANN) == wanted
    assert hub.repositories == {}


def test_no_name_of_a_repository(hub):
    names = ("", "a b", "../x", "ann/voice/more", "datasets/voice", "x.git", "a--b", "é")
    for repo in (*names, "https://example.com/ann/voice"):
        text = refused(partial(check_destination, repo, token=ANN), "is no name for a repository")
        assert NOTHING in text


def test_a_push_has_no_revision(hub):
    refused(lambda: check_destination("ann/voice@v2", token=ANN), "leave the revision out")


def test_what_a_destination_holds(hub, folder):
    assert push_folder(folder, "choir/voice", token=ANN, private=True).repo_id == "choir/voice"
    found = Destination(
        "choir/voice", f"{hub.url}/choir/voice", "ann", True, True, "voice", voice="voice"
    )
    assert check_destination("choir/voice", token=ANN) == found
    hub.publish("ann/other", {"train.py": b"print()", "README.md": b"mine"})
    assert check_destination("other", token=ANN).holds == "other"
    hub.publish("ann/bare", {".gitattributes": b"", "README.md": b"soon"})
    assert check_destination("bare", token=ANN).holds == ""
    hub.publish(
        "ann/exported",
        {"export.json": b'{"format": "onnx", "sha256": {"voice.onnx": ""}}', "voice.onnx": b""},
    )
    assert check_destination("exported", token=ANN).holds == "voice"
    for content in (
        b"{}",
        b"[1]",
        b"no JSON",
        b'{"format": "csv"}',
    ):  # other programs write a file of that name too
        hub.publish("ann/theirs", {"export.json": content, "pytorch_model.bin": b""})
        assert check_destination("theirs", token=ANN).holds == "other"


def test_no_part_of_a_token_is_shown():
    said = one_line("Invalid hf_oauth_eyJhbGciOi.eyJzdWIiOi-x.c2ln_bmF0 of ann, Bearer abc.def")
    assert said == "Invalid *** of ann, ***"


def test_the_next_push_takes_away_what_it_lacks_and_nothing_of_others(hub, folder):
    push_folder(folder, "voice", token=ANN)
    hub.publish(
        "ann/voice",
        {**hub.files("ann/voice"), "my-notes.txt": b"by hand", "samples/mine.wav": b"too"},
    )
    (folder / "model.safetensors").rename(folder / "model.sparse.safetensors")
    (folder / "samples" / "one.wav").unlink()
    pushed = push_folder(folder, "voice", token=ANN)
    assert published(hub) == {
        **contents(folder),
        "my-notes.txt": b"by hand",
        "samples/mine.wav": b"too",
    }
    assert pushed.bytes_sent == 0  # the same weights by another name
    assert sorted(hub.commits[-1]["deletedFile"]) == ["model.safetensors", "samples/one.wav"]


def test_the_same_push_again_changes_nothing(hub, folder):
    first = push_folder(folder, "voice", token=ANN)
    second = push_folder(folder, "voice", token=ANN)
    assert (second.commit, second.bytes_sent, len(hub.commits)) == (first.commit, 0, 1)


def test_something_else_is_written_over_only_when_asked_to(hub, folder):
    mine = {"train.py": b"print()", "model.safetensors": b"another"}
    hub.publish("ann/voice", mine)
    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN), "holds something else.*--replace"
    )
    assert hub.files("ann/voice") == mine
    push_folder(folder, "voice", token=ANN, replace=True)
    assert published(hub) == {**contents(folder), "train.py": b"print()"}
    assert hub.commits[0]["deletedFile"] == []


def test_another_voice_is_replaced_only_when_asked_to(hub, folder):
    push_folder(folder, "voice", token=ANN)
    before = hub.files("ann/voice")
    (folder / "vits_prune.json").write_text('{"name": "alto"}')
    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN),
        "holds the voice 'voice', and this is 'alto'.*--replace",
    )
    assert (hub.files("ann/voice"), len(hub.commits)) == (before, 1)
    push_folder(folder, "voice", token=ANN, replace=True)
    assert published(hub) == contents(folder)
    (folder / "vits_prune.json").write_text("{}")  # one that does not tell its name
    push_folder(folder, "voice", token=ANN)
    push_folder(folder, "voice", token=ANN)


def test_long_and_odd_names_are_the_same_voice(hub, folder):
    for number, name in enumerate(("no\u00a0break", "x" * 3_000_000)):
        repo = f"voice{number}"
        (folder / "vits_prune.json").write_text(json.dumps({"name": name}))
        push_folder(folder, repo, token=ANN)
        check_destination(repo, token=ANN).require_same(name)
        push_folder(folder, repo, token=ANN)
        (folder / "vits_prune.json").write_text('{"name": "alto"}')
        refused(lambda repo=repo: push_folder(folder, repo, token=ANN), "holds the voice")


def test_no_sparse_voice_is_pushed_next_to_weights_that_others_would_load(hub, folder):
    dense, sparse = (folder / f"model.{kind}safetensors" for kind in ("", "sparse."))
    dense.rename(sparse)
    for stays in ("model.safetensors.index.json", "pytorch_model.bin", "model.safetensors"):
        hub.publish("ann/voice", {stays: b"another", "config.json": b"{}"})
        message = f"holds {stays}, which other programs would go on loading.*delete it there first"
        text = refused(lambda: push_folder(folder, "voice", token=ANN, replace=True), message)
        assert NOTHING in text
        assert untouched(hub)
    sparse.rename(dense)  # dense weights are what others load first
    push_folder(folder, "voice", token=ANN, replace=True)
    assert published(hub)["model.safetensors"] == contents(folder)["model.safetensors"]


def test_what_is_to_be_private_is_not_put_into_a_public_repository(hub, folder):
    push_folder(folder, "voice", token=ANN)
    (folder / "README.md").write_text("secret")
    refused(
        lambda: push_folder(folder, "voice", token=ANN, private=True),
        "ann/voice is public: make it private",
    )
    assert len(hub.commits) == 1
    push_folder(folder, "hidden", token=ANN, private=True)
    assert hub.repositories["ann/hidden"][0].private
    push_folder(folder, "hidden", token=ANN)  # stays as it is
    assert hub.repositories["ann/hidden"][0].private
    hub.public_always = True
    refused(
        lambda: push_folder(folder, "hidden-2", token=ANN, private=True), "made ann/hidden-2 public"
    )
    assert len(hub.commits) == 2


def test_no_rights(hub, folder):
    for token, repo, message in (
        (False, "voice", "Nobody is logged in"),
        ("", "voice", "Nobody is logged in"),
        (None, "voice", "Nobody is logged in.*hf auth login"),
        ("hf_of_nobody_known", "voice", "does not accept the access token: log in again"),
        (READS, "voice", "access token of ann may only read"),
        (FINE, "ann/voice", "does not let ann write to ann/voice"),
        (ANN, "bob/voice", "ann cannot push to bob.*push to ann/voice"),
        (ANN, "guests/voice", "ann cannot push to guests .may only read there"),
    ):
        assert NOTHING in refused(partial(push_folder, folder, repo, token=token), message)
    assert hub.repositories == {}
    assert not hub.objects


def test_rights_of_an_organisation_and_of_a_narrow_token(hub, folder):
    assert push_folder(folder, "choir/voice", token=FINE).repo_id == "choir/voice"
    hub.accounts[FINE] = Account(
        "ann", role="fineGrained", scoped=(("ann", ("repo.content.read",)),)
    )
    refused(lambda: check_destination("voice", token=FINE), "may only read")


def test_only_the_given_token_is_used(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", BOB)
    push_folder(folder, "voice", token=ANN)
    used = {
        headers.get("authorization")
        for _, path, headers in hub.requests
        if path != "/api/agent-harnesses"
    }
    assert used == {None, f"Bearer {ANN}"}
    hub.requests.clear()
    refused(lambda: push_folder(folder, "voice", token=False), "Nobody is logged in")
    assert not hub.requests
    assert push_folder(folder, "voice", token=None).repo_id == "bob/voice"


def test_a_name_that_somebody_hides(hub, folder):
    hub.publish("choir/voice", {"x": b""}, Repository(hub.store, private=True))
    hub.accounts[FINE] = Account("ann", orgs={"choir": "write"})
    hub.faults = [Fault("GET", "models/choir/voice$", status=404)]
    hub.faults[0].message = "Repository not found"
    assert NOTHING in refused(lambda: push_folder(folder, "choir/voice", token=FINE), "choir/voice")


def test_a_name_that_was_taken_a_moment_ago(hub, folder):
    hub.faults = [
        Fault("POST", "repos/create", status=409, message="You already created this model repo")
    ]
    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN),
        "The name ann/voice is taken.*choose another name",
    )
    assert hub.repositories == {}


def test_a_lost_connection_is_resumed_with_what_is_missing(hub, folder):
    large = (folder / "samples" / "one.wav").read_bytes()
    oid = hashlib.sha256(large).hexdigest()
    hub.faults = [Fault("PUT", oid, after_bytes=100)]  # the second large file; the first arrives
    text = refused(
        lambda: push_folder(folder, "voice", token=ANN),
        "connection was lost while sending ann/voice: push again",
    )
    assert NOTHING in text
    assert "ann/voice was made and is empty, and the same push again goes on" in text
    assert untouched(hub)
    assert list(hub.files("ann/voice")) == [".gitattributes"]
    assert len(hub.objects) == 1
    hub.faults, hub.requests[:] = [], []
    seen = []
    pushed = push_folder(
        folder,
        "voice",
        token=ANN,
        progress=Progress(lambda what, share: seen.append((what, share))),
    )
    assert pushed.bytes_sent == len(large)
    assert hub.paths("PUT") == [f"/storage/{oid}"]
    assert published(hub) == contents(folder)
    assert seen[-1][1] == 1.0


def test_a_connection_that_breaks_once_is_taken_up_by_the_client(hub, folder):
    hub.faults = [Fault("PUT", "storage", after_bytes=200_000, times=2)]
    assert push_folder(folder, "voice", token=ANN).bytes_sent == (1 << 20) + 3004
    assert published(hub) == contents(folder)


FAULTS = (
    (Fault("GET", "whoami", status=503), "answered 503"),
    (Fault("GET", "whoami"), "cannot be reached: check the connection"),
    (Fault("GET", "whoami", status=429), "too many requests"),
    (Fault("GET", "models/ann/voice$", status=500), "answered 500"),
    (Fault("POST", "repos/create", status=500), "answered 500"),
    (
        Fault("POST", "repos/create", status=403, message="No rights"),
        "does not let ann write to ann/voice .it says: No rights",
    ),
    (
        Fault("POST", "repos/create", status=402, message="Pay first"),
        "takes no more files from ann .it says: Pay first",
    ),
    (Fault("POST", "preupload", status=500), "answered 500.*sends only what is missing.*goes on"),
    (
        Fault("POST", "objects/batch", status=403, message=f"Not you, Bearer {ANN}"),
        r"does not let ann .*it says: Not you, \*\*\*\)",
    ),
    (Fault("PUT", "storage", status=500), "answered 500"),
    (Fault("PUT", "storage", status=507), "answered 507"),
    (Fault("POST", "validate-yaml"), "connection was lost"),
    (Fault("POST", "commit/main", status=500), "answered 500"),
    (Fault("POST", "commit/main"), "connection was lost"),
    (Fault("POST", "commit/main", status=413, message="too large"), "refuses the files"),
    (
        Fault("POST", "commit/main", status=403, message="Storage limit reached"),
        "it says: Storage limit reached",
    ),
)


@pytest.mark.parametrize(
    "place",
    [
        at if at in (1, 6, 8, 11, 13) else pytest.param(at, marks=pytest.mark.slow)
        for at in range(len(FAULTS))
    ],
)
def test_whatever_goes_wrong_nothing_is_published_and_the_next_push_works(
    hub, folder, place, caplog
):
    fault, message = FAULTS[place]
    hub.faults = [fault]
    with caplog.at_level(logging.DEBUG):
        assert NOTHING in refused(lambda: push_folder(folder, "voice", token=ANN), message)
    assert untouched(hub)
    assert ANN not in caplog.text.replace(
        fault.message, ""
    )  # what the server itself said is in the client's log
    hub.faults = []
    push_folder(folder, "voice", token=ANN)
    assert published(hub) == contents(folder)


@pytest.mark.parametrize(
    ("where", "bug"),
    [("record_of", KeyError), ("offers_chunks", ValueError), ("read", RuntimeError)],
)
def test_a_bug_of_our_own_is_not_reported_as_the_hubs(hub, folder, monkeypatch, bug, where):
    def broken(*_):
        raise bug("a bug")

    if where == "read":  # a CountedFile, which huggingface_hub reads
        monkeypatch.setattr(transfer.Push, "arrived", broken)
    else:
        monkeypatch.setattr(upload, where, broken)
    with pytest.raises(bug, match="a bug") as caught:
        push_folder(folder, "voice", token=ANN)
    assert not isinstance(caught.value, InputError)
    assert untouched(hub)


def test_errors_of_a_push_have_types(hub, folder):
    for fault, kind in (
        (Fault("GET", "whoami", status=401), LoginError),
        (Fault("GET", "whoami", status=200), HubError),
        (Fault("POST", "repos/create", status=403), LoginError),
        (Fault("POST", "repos/create", status=402), HubError),
        (Fault("POST", "commit/main", status=413, message="tokens.txt is too large"), HubError),
    ):
        hub.faults = [fault]
        with pytest.raises(InputError) as caught:
            push_folder(folder, "voice", token=ANN)
        assert type(caught.value) is kind


def test_nobody_logged_in_and_a_token_that_only_reads(hub):
    for token in ("", False, READS):
        with pytest.raises(LoginError):
            check_destination("voice", token=token)


def test_an_update_that_fails_leaves_the_voice_that_was_there(hub, folder):
    push_folder(folder, "voice", token=ANN)
    before = hub.files("ann/voice")
    (folder / "model.safetensors").write_bytes(b"new" * 100_000)
    (folder / "README.md").write_text("new")
    hub.faults = [Fault("PUT", "storage", after_bytes=50_000)]
    text = refused(lambda: push_folder(folder, "voice", token=ANN), "connection was lost")
    assert "is empty" not in text
    assert hub.files("ann/voice") == before


def test_an_answer_that_is_lost_after_the_commit(hub, folder):
    hub.faults = [Fault("POST", "commit/main", late=True, times=1)]
    pushed = push_folder(folder, "voice", token=ANN)
    assert pushed.commit == hub.repositories["ann/voice"][0].commit
    assert len(hub.commits) == 1


def test_an_answer_that_is_lost_and_nobody_to_ask(hub, folder):
    def gone():
        hub.faults.append(Fault("GET", "models/ann/voice"))

    hub.before_commit = gone
    hub.faults = [Fault("POST", "commit/main", late=True, times=1)]
    text = refused(
        lambda: push_folder(folder, "voice", token=ANN),
        "not known whether ann/voice has the voice: look at",
    )
    assert NOTHING not in text


def test_ctrl_c_once_the_commit_is_on_its_way_waits_for_its_end(hub, folder):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.5)

    hub.before_commit = interrupt
    pushed = push_folder(folder, "voice", token=ANN)
    assert pushed.commit == hub.repositories["ann/voice"][0].commit
    assert published(hub) == contents(folder)


def test_ctrl_c_before_it(hub, folder):
    hub.faults = [Fault("POST", "preupload", status=500, silent=20.0)]
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        push_folder(folder, "voice", token=ANN)
    assert untouched(hub)


def test_a_commit_by_somebody_else_meanwhile(hub, folder):
    push_folder(folder, "voice", token=ANN)
    (folder / "README.md").write_text("second")

    def race():
        hub.before_commit = None
        hub.publish("ann/voice", {**hub.files("ann/voice"), "theirs.txt": b"first"})

    hub.before_commit = race
    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN), "changed by another push meanwhile"
    )
    assert hub.files("ann/voice")["theirs.txt"] == b"first"
    assert hub.files("ann/voice")["README.md"] != b"second"
    push_folder(folder, "voice", token=ANN)
    assert hub.files("ann/voice")["README.md"] == b"second"


class Cancelled(RuntimeError):
    """What a caller may raise, of whatever kind."""


@pytest.mark.parametrize("at", [0.0, 0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_cancelled_by_the_caller(hub, folder, at):
    def stop(_what, share):
        if share >= at:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        push_folder(folder, "voice", token=ANN, progress=Progress(stop))
    assert untouched(hub)
    assert threading.active_count() < 50
    push_folder(folder, "voice", token=ANN)
    assert published(hub) == contents(folder)


def test_cancelled_while_the_hub_says_nothing(hub, folder):
    ended = threading.Event()
    hub.faults = [Fault("PUT", "storage", status=500, silent=20.0)]
    calls = []

    def stop(_what, share):
        calls.append(share)
        if len(calls) > 12:
            raise KeyboardInterrupt

    def push():
        with pytest.raises(KeyboardInterrupt):
            push_folder(folder, "voice", token=ANN, progress=Progress(stop))
        ended.set()

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    assert ended.wait(15)  # long before the hub answers
    assert untouched(hub)


def test_a_hub_that_takes_nothing_is_given_up(hub, folder, monkeypatch):
    monkeypatch.setattr(transfer, "STALL_SECONDS", 0.5)
    hub.faults = [Fault("PUT", "storage", status=500, silent=20.0)]
    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN), "did not answer for minutes"
    )
    assert untouched(hub)


def test_offline_and_no_hub_at_all(hub, folder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert NOTHING in refused(
        lambda: check_destination("voice", token=ANN), "cannot be reached: check the connection"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN), "HF_HUB_OFFLINE is set"
    )


def test_a_gitignore_does_not_make_a_part_of_it(hub, folder):
    hub.ignored = ("model.safetensors",)
    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN),
        "gitignore of ann/voice leaves out 'model.safetensors'",
    )
    assert untouched(hub)


def test_a_card_that_the_hub_does_not_read(hub, folder):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN),
        "front matter of README.md .bad indentation",
    )
    assert untouched(hub)


def test_what_is_not_pushed(hub, folder, tmp_path):
    secret, outside = tmp_path / "secret", tmp_path / "outside"
    secret.write_text("secret")
    outside.mkdir()

    def too_many(path):
        for number in range(201):
            path.with_name(f"{number}.wav").write_bytes(b"")

    def too_large(path):
        with path.open("r+b") as file:
            file.truncate(5 << 30)  # holes: no disk is used

    def touch(path):
        path.write_bytes(b"")

    for name, spoil, message in (
        ("pytorch_model.bin", touch, "'pytorch_model.bin' in copy is of a kind that can run code"),
        ("samples/voice.PT", touch, "'samples/voice.PT' in copy is of a kind"),
        ("notes.txt", lambda path: path.symlink_to(secret), "'notes.txt' in copy is a link that"),
        ("more", lambda path: path.symlink_to(outside), "'more' in copy is a link that leads out"),
        ("samples/deep", Path.mkdir, "'samples/deep' in copy is a folder in a folder"),
        ("pipe", os.mkfifo, "'pipe' in copy is no plain file"),
        ("samples/x", too_many, "more than 200 files"),
        ("a\nb.txt", touch, "has a name that a repository does not take"),
        ("vits_prune.json", Path.unlink, "no voice that vits_prune saved"),
        ("model.safetensors", too_large, "more than the 4,096 MiB"),
        ("", shutil.rmtree, "There is no folder"),
    ):
        copy = shutil.copytree(folder, tmp_path / "copy")
        spoil(copy / name)
        assert NOTHING in refused(partial(push_folder, copy, "voice", token=ANN), message)
        shutil.rmtree(copy, ignore_errors=True)
    assert not hub.requests


def test_hidden_files_stay_at_home_and_links_inside_are_followed(hub, folder):
    (folder / ".env").write_text("HF_TOKEN=secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "LICENSE").symlink_to(folder / "README.md")
    push_folder(folder, "voice", token=ANN)
    assert sorted(published(hub)) == [
        "LICENSE",
        "README.md",
        "model.safetensors",
        "samples/one.wav",
        "vits_prune.json",
    ]
    assert b"secret" not in b"".join(hub.files("ann/voice").values())


def test_a_file_that_goes_away_meanwhile(hub, folder):
    def vanish(_what, _share):
        (folder / "samples" / "one.wav").unlink(missing_ok=True)

    assert NOTHING in refused(
        lambda: push_folder(folder, "voice", token=ANN, progress=Progress(vanish)),
        "one.wav' cannot be read",
    )
    assert untouched(hub)


def test_plain_names():
    for name in ("a", "samples/a b.wav", "ä.wav"):
        assert is_plain(name)
    elsewhere = ("", "/a", "a/", "a//b", "./a", "../a", "a/..", ".a", "a/.b", "a/b/c", "a\\b")
    for name in (*elsewhere, "a\nb", " a", "a ", 3, None, "x" * 300):
        assert not is_plain(name)


def test_a_record_that_cannot_be_used_deletes_nothing_of_it():
    held = ["a", "x", ".git", "README.md"]
    unusable = (b"", b"{", b"[]", b'{"files": 3}', b'{"files": [["a"]]}', b"[" * 100_000)
    for record in (*unusable, b'{"files": ["../../x", ".git"]}'):
        assert files_of_earlier_push(held, record, None) == set()


def test_a_voice_that_was_put_there_by_hand_is_known_by_its_manifest():
    manifest = b'{"files": {"model.safetensors": "0", "gone": "1"}}'
    held = ["model.safetensors", "vits_prune.json", "train.py"]
    assert files_of_earlier_push(held, None, manifest) == {"model.safetensors", "vits_prune.json"}


def test_the_files_of_a_push_are_sorted(folder):
    assert list(pushable_files(folder)) == sorted(pushable_files(folder))


def test_two_visitors_at_once_each_with_their_own_token(hub, folder):
    with ThreadPoolExecutor(2) as threads:
        pushed = list(
            threads.map(lambda token: push_folder(folder, "voice", token=token), (ANN, BOB))
        )
    assert [each.repo_id for each in pushed] == ["ann/voice", "bob/voice"]
    assert published(hub) == published(hub, "bob/voice") == contents(folder)
    for _, path, headers in hub.requests:
        if "/ann/" in path or "/bob/" in path:
            assert headers["authorization"] == f"Bearer {ANN if '/ann/' in path else BOB}"


@pytest.fixture
def chunked(hub):
    """The same hub, with storage in chunks."""
    hub.xet = LoopbackXet()
    return hub


@pytest.fixture
def noise(folder):
    """The same folder; what is kept outside git cannot be compressed."""
    (folder / "samples" / "one.wav").write_bytes(np.random.default_rng(1).bytes(30_000))
    return folder


def test_in_chunks_where_the_hub_offers_it(chunked, noise):
    seen = []
    pushed = push_folder(
        noise, "voice", token=ANN, progress=Progress(lambda what, share: seen.append((what, share)))
    )
    assert published(chunked) == contents(noise)
    assert chunked.xet.shards
    [_] = [path for path in chunked.paths("POST") if "xorbs" in path]  # the client sends none again
    assert not chunked.paths("PUT")
    assert pushed.bytes_sent >= (1 << 20) + 30_000
    assert seen[-1][1] == 1.0
    to_storage = {
        headers["authorization"]
        for _, path, headers in chunked.requests
        if path.startswith(("/v1/", "/v2/"))
    }
    assert to_storage == {"Bearer xet-ann"}  # never the token of the hub
    chunked.requests.clear()
    (noise / "samples" / "two.wav").write_bytes(np.random.default_rng(2).bytes(30_000))
    assert push_folder(noise, "voice", token=ANN).bytes_sent < 100_000
    assert published(chunked) == contents(noise)
    chunked.requests.clear()
    assert push_folder(noise, "voice", token=ANN).bytes_sent == 0
    assert not [path for path in chunked.paths("POST") if "xorbs" in path]


def test_plain_files_where_xet_is_switched_off(chunked, noise, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    push_folder(noise, "voice", token=ANN)
    assert published(chunked) == contents(noise)
    assert chunked.xet.shards == 0


def test_chunks_that_do_not_arrive(chunked, noise):
    chunked.faults = [Fault("POST", "shards", status=400)]
    assert NOTHING in refused(
        lambda: push_folder(noise, "voice", token=ANN),
        "connection was lost while sending ann/voice",
    )
    assert untouched(chunked)
    chunked.faults = []
    push_folder(noise, "voice", token=ANN)
    assert published(chunked) == contents(noise)


def test_cancelled_while_chunks_are_sent(chunked, noise):
    chunked.faults = [Fault("POST", "xorbs", status=500, silent=20.0)]
    calls = []

    def stop(_what, share):
        calls.append(share)
        if len(calls) > 15:
            raise Cancelled

    ended = threading.Event()

    def push():
        with pytest.raises(Cancelled):
            push_folder(noise, "voice", token=ANN, progress=Progress(stop))
        ended.set()

    threading.Thread(target=push, daemon=True).start()
    assert ended.wait(15)
    assert untouched(chunked)
    chunked.faults = []
    push_folder(noise, "voice", token=ANN)
    assert published(chunked) == contents(noise)


def test_a_token_that_may_not_write_chunks(chunked, noise):
    chunked.faults = [Fault("GET", "xet-write-token", status=403, message="No")]
    assert NOTHING in refused(
        lambda: push_folder(noise, "voice", token=ANN),
        "does not let ann write to ann/voice .it says: No",
    )


@pytest.mark.slow
def test_end_to_end_in_a_process_of_its_own(hub, folder, tmp_path):
    """With HF_ENDPOINT, HF_HOME and HF_TOKEN as a user sets them, it prints the address only."""
    script = (
        "import sys; from vits_prune.ship.hub_push import push_folder; "
        "print(push_folder(sys.argv[1], 'voice').url)"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env = {
        **clean,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": ANN,
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"{hub.url}/ann/voice"), done.stderr
    assert ANN not in done.stdout + done.stderr
    assert published(hub) == contents(folder)


def test_a_file_too_long_to_name_a_voice_is_not_read_whole(tmp_path, monkeypatch):
    path = tmp_path / upload.MANIFESTS[0]
    with path.open("wb") as file:
        file.truncate(3 * EXPORT.max_bytes)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read whole"))
    assert upload.name_in({upload.MANIFESTS[0]: path}) == ""
