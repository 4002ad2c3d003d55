from __future__ import annotations

import hashlib

import pytest

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import (
    Manifest,
    crc32_of,
    read_json,
    replaced_file,
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
