from __future__ import annotations

import hashlib

import pytest

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import (
    Manifest,
    crc32_of,
    names_in,
    read_json,
    replaced_file,
    replaced_files,
    replaced_folder,
    sha256_of,
    write_file,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "figures.csv"
    write_file(path, "first\n")
    with pytest.raises(ZeroDivisionError), replaced_file(path) as beside:
        beside.write_text("half of the sec" * (1 // 0))
    assert path.read_text() == "first\n"
    write_file(path, b"second\n")
    assert path.read_bytes() == b"second\n"
    assert names(path.parent) == ["figures.csv"]


def test_a_folder_is_there_whole_or_as_it_was(tmp_path):
    target = tmp_path / "voice"
    for content in ("first", "second"):
        with replaced_folder(target) as beside:
            (beside / content).write_text(content)
        assert names(target) == [content]
    with pytest.raises(ZeroDivisionError), replaced_folder(target) as beside:
        (beside / "third").write_text("half" * (1 // 0))
    assert names(target) == ["second"]
    assert names(tmp_path) == ["voice"]


def test_what_killed_runs_left_goes_and_what_is_being_written_stays(tmp_path):
    (tmp_path / ".voice.abcd1234.part" / "deep").mkdir(parents=True)
    for name in (".figures.csv.abcd_123.part", ".mine.part", "mine.abcd1234.part"):
        (tmp_path / name).write_text("half")
    kept = {".mine.part", "mine.abcd1234.part"}
    with replaced_folder(tmp_path / "voice") as folder, replaced_file(tmp_path / "file") as file:
        assert set(names(tmp_path)) == {*kept, folder.name, file.name}
        assert names_in(tmp_path) == kept
        assert folder.is_dir()
        assert file.is_file()
    assert names_in(tmp_path) == {*kept, "voice", "file"}
    assert names_in(tmp_path / "nowhere") == set()


def test_files_take_the_places_of_older_ones_and_the_last_says_that_all_are_there(tmp_path):
    for name in ("report.json", "sound.wav", "mine"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ZeroDivisionError), replaced_files(tmp_path, last="report.json") as new:
        (new / "report.json").write_text("new" * (1 // 0))
    assert {path.read_text() for path in tmp_path.iterdir()} == {"old"}
    with replaced_files(tmp_path, last="report.json") as new:
        for name in ("report.json", "sound.wav"):
            (new / name).write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "report.json": "new",
        "sound.wav": "new",
        "mine": "old",
    }


def test_checksums_run_over_several_files(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).write_bytes(content)
    assert sha256_of(tmp_path / "a", tmp_path / "b") == hashlib.sha256(b"onetwo").hexdigest()


def test_json_is_read_within_bounds(tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, {"name": "jö"})
    assert read_json(path, "joe") == {"name": "jö"}
    refused = {
        "larger than": b"{" + b" " * 200 + b"}",
        "is not JSON": b"{",
        "is not JSON: download or": b"\xff",
        "not a JSON object": b"[1]",
        "is not JSON: ": b"[" * 100,
    }
    for words, content in refused.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=words):
            read_json(path, "joe", max_bytes=150)
    with pytest.raises(InputError, match=r"other\.json of joe is missing"):
        read_json(tmp_path / "other.json", "joe")


def test_a_manifest_knows_its_files(tmp_path):
    kind = Manifest("facts.json", checksum=crc32_of, max_bytes=200)
    assert kind.read(tmp_path) is None
    (tmp_path / "weights").write_bytes(b"one")
    files = kind.checksums([tmp_path / "weights"])
    kind.write(tmp_path, {"name": "jö", "files": files})
    values = kind.read(tmp_path)
    assert values == {"name": "jö", "files": {"weights": "7a6c86f1"}}
    kind.check(tmp_path, kind.listed(values))
    (tmp_path / "weights").write_bytes(b"two")
    for listed in (files, {"gone": "7a6c86f1"}, {"..": "7a6c86f1"}):
        with pytest.raises(DamagedFileError, match="not the file that was saved"):
            kind.check(tmp_path, listed)
    with pytest.raises(InputError, match="would be larger"):
        kind.write(tmp_path, {"name": "x" * 200})
    assert kind.read(tmp_path) == values
    for content in ("[]", "{", " " * 300):
        (tmp_path / "facts.json").write_text(content)
        with pytest.raises(DamagedFileError, match="is damaged"):
            kind.read(tmp_path)
    assert kind.listed({"files": {"../../etc/passwd": 1}}) == {"passwd": "1"}
    assert kind.listed({"files": [1]}) == kind.listed({}) == {}
