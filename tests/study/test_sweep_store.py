"""The folder of a sweep: what a kill, a full disk or another sweep may do to it."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal

import pytest

from vits_prune import InputError, PruneSpec
from vits_prune.errors import DamagedFileError
from vits_prune.study.sweep_grid import Point
from vits_prune.study.sweep_store import LINES, SWEEP_MANIFEST, TABLE, Store

POINTS = [Point(PruneSpec(amount=amount)) for amount in (0.0, 0.1, 0.2, 0.3)]
ABOUT = {
    "kind": "sweep",
    "voice": {"name": "v"},
    "texts": ["a"],
    "settings": {"seed": 0},
    "versions": {"torch": "2"},
    "threads": 2,
}


def store(folder, **changes):
    return Store(folder, {**ABOUT, **changes}, POINTS)


def fill(folder, indices):
    with store(folder) as open_store:
        for i in indices:
            open_store.append(
                POINTS[i],
                {"amount": POINTS[i].spec.amount, "wer": i / 3, "note": 'a,\n"b" é'},
                {"deep": [float("nan"), (1,)]},
            )
    return folder


def rows_of(folder):
    return [json.loads(line)["row"] for line in (folder / LINES).read_text().splitlines()]


def table(folder):
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        return [float(row["amount"]) for row in csv.DictReader(file)]


def test_rows_come_back_exactly_and_in_order(tmp_path):
    folder = fill(tmp_path / "new" / "sweep", [2, 0, 1])
    assert [row["amount"] for row in rows_of(folder)] == table(folder) == [0.0, 0.1, 0.2]
    with store(folder) as again:
        assert [one["row"]["wer"] for one in again.records.values()] == [0, 1 / 3, 2 / 3]
        assert again.records[POINTS[0]]["details"] == {"deep": [None, [1]]}
        again.append(POINTS[3], {"amount": 0.3, "wer": 1.0, "note": ""}, {})
        assert table(folder) == [0.0, 0.1, 0.2, 0.3]  # at once, not at the end
    assert {path.name for path in folder.iterdir()} == {SWEEP_MANIFEST.name, LINES, TABLE}


@pytest.mark.parametrize("torn", [1, 30, -1])
def test_an_incomplete_last_line_is_dropped(tmp_path, torn):
    folder = fill(tmp_path / "sweep", [0, 1, 2])
    whole = (folder / LINES).read_bytes()
    lines = whole.splitlines(keepends=True)
    (folder / LINES).write_bytes(b"".join(lines[:2]) + lines[2][:torn])
    with store(folder) as again:
        assert list(again.records) == POINTS[:2]
        assert table(folder) == [0.0, 0.1]
    fill(folder, [2])
    assert (folder / LINES).read_bytes() == whole


def test_a_damaged_line_in_the_middle_is_told(tmp_path):
    folder = fill(tmp_path / "sweep", [0, 1, 2])
    lines = (folder / LINES).read_bytes().splitlines(keepends=True)
    (folder / LINES).write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(InputError, match="Line 2"):
        store(folder)
    assert (folder / LINES).read_bytes().endswith(lines[2])


def test_a_damaged_last_line_is_told_and_stays(tmp_path):
    folder = fill(tmp_path / "sweep", [0, 1])
    lines = (folder / LINES).read_bytes().splitlines(keepends=True)
    damaged = lines[0] + lines[1].replace(b'"row"', b'"raw"')
    (folder / LINES).write_bytes(damaged)
    with pytest.raises(DamagedFileError, match="Line 2"):
        store(folder)
    assert (folder / LINES).read_bytes() == damaged


def test_a_folder_of_another_sweep(tmp_path):
    folder = fill(tmp_path / "sweep", [0])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for key in ("kind", "voice", "texts", "settings", "versions"):
        with pytest.raises(InputError, match=r"holds a sweep of (other|another)"):
            store(folder, **{key: "different"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(InputError):
        store(tmp_path / "file")


def test_the_manifest_of_a_newer_version(tmp_path):
    folder = fill(tmp_path / "sweep", [0])
    (folder / SWEEP_MANIFEST.name).write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="of another version"):
        store(folder)


def test_the_number_of_threads_is_the_first_run_s(tmp_path):
    fill(tmp_path / "sweep", [0])
    with store(tmp_path / "sweep", threads=8) as again:
        assert again.manifest["threads"] == 2


def test_two_at_once(tmp_path):
    with store(tmp_path / "sweep"), pytest.raises(InputError, match="Another sweep is writing"):
        store(tmp_path / "sweep")
    with store(tmp_path / "sweep"):
        pass


def test_a_full_disk(tmp_path):
    """A limit on the size of files imitates it: it takes a part of the line, then no more."""
    folder = fill(tmp_path / "sweep", [0, 1])
    before = (folder / LINES).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with store(folder) as again:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
            with pytest.raises(InputError, match="2 points are done and kept"):
                again.append(POINTS[2], {"amount": 0.2, "wer": 0.0, "note": "x" * 1000}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
    assert (folder / LINES).read_bytes() == before
    assert table(fill(folder, [2])) == [0.0, 0.1, 0.2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="could not be written"):
        store(tmp_path / "sweep")
