"""One grid for many voices: a folder each, one table of all, and whatever becomes of one voice the others go on."""

from __future__ import annotations

import csv

import pytest
from tests.sweep.test_sweep_run import CHEAP, TEXTS, numbers, table

from tests.voices.hf_factory import make_checkpoint
from vits_prune import InputError
from vits_prune.study import sweep_voices as voices
from vits_prune.study.sweep import run_sweep
from vits_prune.study.sweep_engines import VoiceRef
from vits_prune.study.sweep_grid import Grid
from vits_prune.study.sweep_voices import named, run_voices

GRID = Grid(amounts=(0.0, 0.5))
NOWHERE = VoiceRef("./nowhere")


@pytest.fixture(scope="module")
def refs(tiny_folder, tmp_path_factory):
    """A voice, one that does not exist, and another voice."""
    other = make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "other", seed=5)
    return VoiceRef(str(tiny_folder)), NOWHERE, VoiceRef(str(other))


@pytest.fixture(scope="module")
def found(refs, tmp_path_factory):
    return run_voices(refs, GRID, TEXTS, CHEAP, tmp_path_factory.mktemp("sweeps") / "voices")


def test_each_voice_is_swept_and_one_that_is_not_there_is_named(found, refs, tmp_path):
    first, _, second = refs
    assert list(found.sweeps) == [first.ref, second.ref]
    assert list(found.failures) == ["./nowhere"]
    assert "nowhere" in found.failures["./nowhere"]
    alone = run_sweep(second, GRID, TEXTS, CHEAP, tmp_path / "alone")
    assert numbers(found.sweeps[second.ref].rows) == numbers(alone.rows)
    assert numbers(found.sweeps[first.ref].rows) != numbers(alone.rows)
    assert len({sweep.folder for sweep in found.sweeps.values()}) == 2
    assert all(
        (sweep.folder / "sweep.jsonl").exists() and sweep.folder.parent == found.folder
        for sweep in found.sweeps.values()
    )


def test_one_table_of_all(found):
    rows = table(found.folder)
    assert len(rows) == len(found.rows) == 4
    assert rows == [row for sweep in found.sweeps.values() for row in table(sweep.folder)]


def test_again_there_is_nothing_to_do_and_what_failed_is_tried_again(found, refs, monkeypatch):
    monkeypatch.setattr("vits_prune.study.sweep.prepare_reference", None)  # no original is spoken
    shares = []
    again = run_voices(
        reversed(refs),
        GRID,
        TEXTS,
        CHEAP,
        found.folder,
        progress=lambda what, share: shares.append(share),
    )
    assert [sweep.measured for sweep in again.sweeps.values()] == [0, 0]
    assert (again.sweeps.keys(), again.failures.keys()) == (
        found.sweeps.keys(),
        found.failures.keys(),
    )
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    monkeypatch.undo()
    run_voices(refs, GRID, TEXTS, CHEAP, found.folder)  # the table in the order of before


def test_a_bug_in_one_voice_stops_no_other(refs, tmp_path, monkeypatch):
    def sweep(ref, *arguments, **options):
        if ref == refs[0]:
            raise ZeroDivisionError("a bug")
        return run_sweep(ref, *arguments, **options)

    monkeypatch.setattr(voices, "run_sweep", sweep)
    found = run_voices((refs[0], refs[2]), GRID, TEXTS, CHEAP, tmp_path / "voices")
    assert found.failures == {refs[0].ref: "ZeroDivisionError: a bug"}
    assert len(found.rows) == 2


@pytest.mark.parametrize(
    "reason", [InputError("Enough."), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
def test_cancelled_in_the_second_voice(refs, tmp_path, reason):
    """Even by an InputError, which is no failure of the voice; what is done stays and is in the table."""

    def stop(what, share):
        if refs[2].ref in what:
            raise reason

    with pytest.raises(type(reason)):
        run_voices(refs, GRID, TEXTS, CHEAP, tmp_path / "voices", progress=stop)
    with (tmp_path / "voices" / "sweep.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    again = run_voices(refs, GRID, TEXTS, CHEAP, tmp_path / "voices")
    assert [sweep.measured for sweep in again.sweeps.values()] == [0, 2]


def test_the_folder_of_one_voice_is_refused(refs, tmp_path):
    run_sweep(refs[0], Grid(amounts=(0.0,)), TEXTS, CHEAP, tmp_path / "one")
    before = (tmp_path / "one" / "sweep.csv").read_bytes()
    with pytest.raises(InputError, match="one voice's sweep"):
        run_voices(refs, GRID, TEXTS, CHEAP, tmp_path / "one")
    assert (tmp_path / "one" / "sweep.csv").read_bytes() == before


@pytest.mark.parametrize("changes", [{"jobs": 0}, {"engine": "steam"}, {"refs": ()}])
def test_bad_input(refs, tmp_path, changes):
    options = {
        "refs": refs,
        "grid": GRID,
        "texts": TEXTS,
        "settings": CHEAP,
        "out": tmp_path / "voices",
        **changes,
    }
    with pytest.raises(InputError):
        run_voices(**options)
    assert not (tmp_path / "voices").exists()


def test_names_and_folders_tell_voices_apart():
    refs = [
        VoiceRef("a/b"),
        VoiceRef("a-b"),
        VoiceRef("a/b", 0),
        VoiceRef("a/b", "0"),
        VoiceRef("a/b", revision="old"),
        VoiceRef(".."),
    ]
    folders = voices._folders(refs)
    assert len(set(folders.values())) == len(refs)
    assert voices._folders(refs[::-1]) == folders
    for name in folders.values():
        assert "/" not in name
        assert not name.startswith(".")
    assert [named(ref) for ref in refs] == ["a/b", "a-b", "a/b:0", "a/b:0", "a/b@old", ".."]
