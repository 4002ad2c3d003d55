"""The command push: cheap checks first, consent, a dry run, and the way to a loopback hub."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shutil
import sys
import threading

import pytest

from tests.nearly import nearly
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Account, Fault, Repository, connect, serving
from vits_prune import PruneSpec, load_voice, prune, save_voice, speak
from vits_prune.cli.main import main
from vits_prune.cli.ship_commands import FORMAT_NAMES, PRECISION_NAMES
from vits_prune.ship.formats import FORMATS
from vits_prune.ship.hub_transfer import Push

ME = Account("me", orgs={"readers": "read"})


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A pruned voice of somebody's own, without a licence."""
    return save_voice(
        prune(tiny, PruneSpec(scope="local", amount=0.5)), tmp_path_factory.mktemp("push") / "half"
    )


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with an account, and the client logged in there; nobody at the terminal."""
    with serving() as server:
        connect(monkeypatch, server, tmp_path)
        monkeypatch.setenv("HF_TOKEN", "my-token")
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        server.store = tmp_path / "store"
        server.store.mkdir()
        server.accounts["my-token"] = ME
        yield server


def push(folder, *more):
    return main(["push", "--voice", str(folder), "--samples", "1", *map(str, more)])


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_choices_are_those_of_the_registry():
    assert tuple(FORMATS) == FORMAT_NAMES
    assert {precision for kind in FORMATS.values() for precision in kind.precisions} == set(
        PRECISION_NAMES
    )


def test_dry_run_writes_what_would_be_pushed(folder, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert (
        push(
            folder,
            "--repo",
            "small",
            "--original",
            tiny_folder,
            "--dry-run",
            "--out",
            tmp_path / "out",
        )
        == 0
    )
    shown = capsys.readouterr()
    assert "nothing was published" in shown.out
    assert "all rights are reserved" in shown.err
    assert {"README.md", "samples/1-original.wav", "samples/1-pruned.wav"} < files(tmp_path / "out")
    assert 'load_voice("your-name/small")' in (tmp_path / "out" / "README.md").read_text(
        encoding="utf-8"
    )
    assert (
        push(
            folder, "--repo", "small", "--format", "sparse", "--dry-run", "--out", tmp_path / "out"
        )
        == 0
    )  # over the earlier one
    assert "compares with nothing" in capsys.readouterr().err
    assert "samples/1-original.wav" not in files(tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--repo", "small", "--precision", "int8"], "precisions fp32, fp16"),
        (["--repo", "a/b/c"], "no name of a repository"),
        (["--repo", "small", "--samples", "99"], "--samples must be"),
        (["--repo", "small", "--dry-run"], "--out"),
        (["--repo", "small", "--evidence", "nothing.json"], "is not what `evaluate --json`"),
        (["--repo", "small", "--curve", "nothing"], "has no curve"),
        (["--repo", "small", "--texts", "9999"], "number of sentences"),
        (["--repo", "small", "--seed", "-1"], "seed"),
    ],
)
def test_what_can_be_known_beforehand_asks_nobody(hub, folder, capsys, more, said):
    assert push(folder, *more) == 2
    assert said in capsys.readouterr().err
    assert not hub.requests


def test_evidence_of_other_voices_and_broken_files(folder, tiny_folder, tmp_path, capsys):
    measured, broken = tmp_path / "measured.json", tmp_path / "broken.json"
    measured.write_text(json.dumps({"recipe": {}, "figures": {}}))
    out = ["--repo", "small", "--dry-run", "--out", tmp_path / "out"]
    assert push(folder, *out, "--evidence", measured) == 2
    assert "another recipe" in capsys.readouterr().err
    for content in ("{", "[]", '{"figures": 1}', "[" * 100_000):
        broken.write_text(content)
        assert push(folder, *out, "--evidence", broken) == 2
        assert "is not what `evaluate --json`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evidence_of_compare_and_evaluate_together(folder, tiny_folder, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("a short one\nrice is often served\n")
    judge = [
        "evaluate",
        "--voice",
        tiny_folder,
        "--against",
        folder,
        "--text-file",
        texts,
        "--metrics",
        "rhythm",
        "loudness",
    ]
    assert (
        main([*map(str, judge), "--noise-seeds", "1", "--json", str(tmp_path / "quality.json")])
        == 0
    )
    latency = {
        "speed_up": {"median": 1.5, "low": 1.25, "high": 2.0},
        "runs": 1,
        "threads": 2,
        "device": "cpu",
    }
    timed = {"real_time_factor": {"median": 0.1, "low": 0.1, "high": 0.1}}
    recipe = json.loads((folder / "vits_prune.json").read_text(encoding="utf-8"))["recipe"]
    report = {"revision": None, "speaker": None, "recipe": recipe}
    report |= {"latency": {**latency, "original": timed, "pruned": timed}}
    report["reference"] = load_voice(folder).origin.reference
    (tmp_path / "report.json").write_text(json.dumps(report))
    evidence = ["--evidence", tmp_path / "quality.json", tmp_path / "report.json"]
    assert (
        push(
            folder,
            "--repo",
            "me/small",
            "--dry-run",
            "--out",
            tmp_path / "out",
            "--original",
            tiny_folder,
            *evidence,
        )
        == 0
    )
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| duration ratio |" in card
    assert "2 sentences of its maker's choice" in card
    assert "1.5 (1.25 to 2)" in card
    assert "Signature: `texts:2." in card
    again = shutil.copy(tmp_path / "quality.json", tmp_path / "again.json")
    place = ["--repo", "me/small", "--dry-run", "--out", tmp_path / "not"]
    assert push(folder, *place, "--original", tiny_folder, *evidence, again) == 2
    assert "again.json: A card has the figures of one `evaluate`" in capsys.readouterr().err
    (tmp_path / "other.json").write_text(
        json.dumps(json.loads((tmp_path / "quality.json").read_text()) | {"recipe": {}})
    )
    others = [
        "--evidence",
        tmp_path / "other.json",
        tmp_path / "report.json",
    ]  # the last one's recipe is the voice's
    assert (
        push(
            folder,
            "--repo",
            "me/small",
            "--dry-run",
            "--out",
            tmp_path / "not",
            "--original",
            tiny_folder,
            *others,
        )
        == 2
    )
    assert "other.json: The evidence is of a voice with another recipe" in capsys.readouterr().err


def test_the_whole_way(hub, folder, tiny_folder, tmp_path, capsys):
    assert (
        push(
            folder,
            "--repo",
            "small",
            "--original",
            tiny_folder,
            "--yes",
            "--private",
            "--out",
            tmp_path / "kept",
        )
        == 0
    )
    shown = capsys.readouterr()
    assert f"Published at {hub.url}/me/small" in shown.out
    assert 'load_voice("me/small")' in shown.out
    assert {*files(tmp_path / "kept")} <= set(hub.files("me/small"))
    assert hub.repositories["me/small"][0].private
    assert len([commit for commit in hub.commits if commit]) == 1
    again = load_voice("me/small")
    assert nearly(
        speak(again, "a short one").waveform, speak(load_voice(folder), "a short one").waveform
    )
    assert (
        push(folder, "--repo", "me/small", "--format", "onnx", "--yes") == 0
    )  # in the place of the first
    assert "hf download me/small" in capsys.readouterr().out
    held = set(hub.files("me/small"))
    assert "export.json" in held
    assert not held & {"model.safetensors", "vits_prune.json", "samples/1-original.wav"}


def test_without_a_terminal_consent_has_to_be_typed_before(hub, folder, capsys):
    assert push(folder, "--repo", "small") == 2
    said = capsys.readouterr().err
    assert "all rights are reserved" in said
    assert "give --yes" in said
    assert "small" not in str(hub.repositories)


def test_a_licence_that_allows_it_is_not_asked_about(hub, tmp_path, capsys):
    hub.repositories["someone/free"] = [
        Repository(make_checkpoint(tmp_path / "free"), licence="cc-by-4.0")
    ]
    assert (
        main(
            ["prune", "--voice", "someone/free", "--amount", "0.5", "--out", str(tmp_path / "half")]
        )
        == 0
    )
    assert push(tmp_path / "half", "--repo", "small") == 0
    assert "Licence" not in capsys.readouterr().err
    card = hub.files("me/small")["README.md"].decode()
    assert "license: cc-by-4.0" in card
    assert "base_model: someone/free" in card
    assert "samples/1-original.wav" in card  # the original was found by its name


def test_original_that_cannot_be_had_is_said(hub, tmp_path, capsys):
    hub.repositories["someone/gone"] = [
        Repository(make_checkpoint(tmp_path / "gone"), licence="mit")
    ]
    assert (
        main(
            ["prune", "--voice", "someone/gone", "--amount", "0.5", "--out", str(tmp_path / "half")]
        )
        == 0
    )
    del hub.repositories["someone/gone"]
    assert push(tmp_path / "half", "--repo", "small") == 0
    said = capsys.readouterr().err
    assert "compares with nothing" in said
    assert "someone/gone" in said
    assert push(tmp_path / "half", "--repo", "small", "--texts", "2") == 2
    assert "no original to measure against" in capsys.readouterr().err


def test_original_that_the_hub_does_not_hand_over_now_ends_the_push(hub, tmp_path, capsys):
    source = make_checkpoint(tmp_path / "first")
    hub.repositories["someone/first"] = [Repository(source, licence="mit")]
    half = str(tmp_path / "half")
    assert main(["prune", "--voice", "someone/first", "--amount", "0.5", "--out", half]) == 0
    for status in (401, 429):
        hub.faults.append(Fault("GET", "models/someone/first", status=status, times=1_000))
        assert push(half, "--repo", "small") == 2
        assert "Hugging Face" in capsys.readouterr().err
        hub.faults.clear()
    assert "me/small" not in hub.repositories


def test_rights_are_looked_at_before_anything_is_written(
    hub, folder, tmp_path, capsys, monkeypatch
):
    for repo, token, said in (
        ("readers/x", "my-token", "readers"),
        ("small", "", "hf auth login"),
        ("small", "wrong", "log in"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert push(tmp_path / "no such voice", "--repo", repo, "--yes") == 2
        assert said in capsys.readouterr().err.lower()
    monkeypatch.setenv("HF_TOKEN", "my-token")
    hub.publish("me/thesis", {"thesis.pdf": b"%PDF"})
    assert push(tmp_path / "no such voice", "--repo", "thesis", "--yes") == 2
    assert "--replace" in capsys.readouterr().err
    assert push(folder, "--repo", "thesis", "--yes", "--replace") == 0
    assert {"thesis.pdf", "model.safetensors"} < set(hub.files("me/thesis"))
    assert push(folder, "--repo", "thesis", "--yes", "--private") == 2
    assert "public" in capsys.readouterr().err


def test_connection_lost_publishes_nothing_and_the_same_command_goes_on(hub, folder, capsys):
    hub.faults.append(Fault("PUT", "", after_bytes=10_000, times=1_000))
    assert push(folder, "--repo", "small", "--yes") == 2
    assert "again" in capsys.readouterr().err
    assert "model.safetensors" not in str(
        hub.repositories.get("me/small") and hub.files("me/small")
    )
    hub.faults.clear()
    assert push(folder, "--repo", "small", "--yes") == 0
    assert "model.safetensors" in hub.files("me/small")


def test_interrupted_while_it_is_published_it_is_not_known(hub, folder, capsys, monkeypatch):
    waiting = Push.wait

    def impatient(self, call, *, listen=True):
        found = waiting(self, call, listen=listen)
        if not listen:  # the second Ctrl-C, before the answer to the commit
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Push, "wait", impatient)
    assert push(folder, "--repo", "small", "--yes") == 130
    said = capsys.readouterr().err
    assert "Nothing was published" not in said
    assert f"It is not known whether the voice was published: look at {hub.url}/me/small" in said
    assert "model.safetensors" in hub.files("me/small")


def test_a_terminal_is_asked(hub, folder, monkeypatch):
    user_end, other_end = pty.openpty()
    shown = []

    def answer():
        with contextlib.suppress(OSError):  # the other end is gone
            while read := os.read(user_end, 1 << 16):
                shown.append(read)
                if read.endswith(b"[y/N] "):
                    os.write(user_end, b"y\n")

    user = threading.Thread(target=answer, daemon=True)
    user.start()
    terminal = os.ttyname(other_end)
    with open(terminal) as keyboard, open(terminal, "w") as screen, monkeypatch.context() as here:
        here.setattr(sys, "stdin", keyboard)
        here.setattr(sys, "stdout", screen)
        here.setattr(sys, "stderr", screen)
        assert push(folder, "--repo", "small", "--samples", "1") == 0
    os.close(other_end)
    user.join(60)
    os.close(user_end)
    words = b"".join(shown).decode()
    assert "all rights are reserved" in words
    assert "me/small" in hub.repositories
    assert "Published at" in words
    assert "sending" in words  # progress


def test_without_a_yes_nothing_is_published(hub, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def end(_question):
        raise EOFError

    def stop(_question):
        raise KeyboardInterrupt

    for answer, code in ((lambda _question: "n", 2), (end, 2), (stop, 130)):
        monkeypatch.setattr("builtins.input", answer)
        assert push(folder, "--repo", "small") == code
        assert "Nothing was published" in capsys.readouterr().err
    assert "me/small" not in hub.repositories
