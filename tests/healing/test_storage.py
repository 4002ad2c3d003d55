from __future__ import annotations

import resource

import pytest
import torch

from vits_prune import InputError
from vits_prune.errors import DamagedFileError
from vits_prune.healing.storage import Curve, digest, read_tensors, write_tensors

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([1, 2]),
    "none": torch.zeros(0, 3),
    "one": torch.tensor(3.0),
}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "file.safetensors"
    write_tensors(path, TENSORS, {"step": 3, "words": "é"})
    tensors, facts = read_tensors(path, 1 << 20)
    assert facts["step"] == 3
    assert facts["words"] == "é"
    assert set(tensors) == set(TENSORS)
    assert all(
        tensors[name].equal(TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype
        for name in TENSORS
    )
    assert [one.name for one in path.parent.iterdir()] == ["file.safetensors"]


def test_any_flipped_byte_and_any_cut_is_noticed(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"step": 3})
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        read = read_tensors(path, 1 << 20)
        assert read is None or (
            read[1]["step"] == 3 and all(read[0][name].equal(TENSORS[name]) for name in TENSORS)
        ), at
    for at in range(0, len(whole), 13):
        path.write_bytes(whole[:at])
        assert read_tensors(path, 1 << 20) is None, at


def test_missing_foreign_and_too_large_files_are_none(tmp_path):
    path = tmp_path / "file.safetensors"
    assert read_tensors(path, 1 << 20) is None
    path.write_bytes(b"{}" * 100)
    assert read_tensors(path, 1 << 20) is None
    write_tensors(path, TENSORS, {})
    assert read_tensors(path, 10) is None
    assert read_tensors(tmp_path, 1 << 20) is None


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (4096, before[1])
    )  # a disk that takes no more than that
    try:
        with pytest.raises(
            InputError, match=r"file\.safetensors could not be written .* Free some space"
        ):
            write_tensors(path, {"large": torch.zeros(1 << 16)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_tensors(path, 1 << 20)[1]["step"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["file.safetensors"]


def test_a_digest_tells_values_names_and_facts_apart():
    found = {
        digest(TENSORS, 1),
        digest(TENSORS, 2),
        digest({**TENSORS, "a": TENSORS["a"] + 1}, 1),
        digest({**TENSORS, "a": TENSORS["a"].reshape(3, 2)}, 1),
    }
    assert len(found) == 4
    assert digest(TENSORS, 1) == digest(dict(reversed(TENSORS.items())), 1)


def curve_at(path):
    curve = Curve()
    for step in (10, 20, 30):
        curve.rows.append({"step": step, "seconds": step / 10, "mel": 1 / step})
    curve.write(path)
    return curve


def test_a_curve_is_read_up_to_a_step(tmp_path):
    curve = curve_at(tmp_path / "curve.csv")
    assert Curve.read(tmp_path / "curve.csv").rows == curve.rows
    assert Curve.read(tmp_path / "curve.csv", 20).rows == curve.rows[:2]
    assert Curve.read(tmp_path / "curve.csv", max_rows=1).rows == curve.rows[:1]
    assert Curve.read(tmp_path / "none.csv", 20).rows == []


def test_what_was_measured_has_its_signature(tmp_path):
    curve = Curve(signature="texts:2.ab|seeds:0")
    curve.rows += [{"step": 10, "mel": 0.5}, {"step": 20, "measured_cer": 0.1}]
    curve.write(tmp_path / "curve.csv")
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[1:] == ["10,,0.5,,", "20,,,0.1,texts:2.ab|seeds:0"]
    found = Curve.read(tmp_path / "curve.csv")
    assert (found.rows, found.signature) == (curve.rows, curve.signature)
    assert Curve.read(tmp_path / "curve.csv", 10).signature == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"mel,total\n1,2\n",
        b"step,mel\n10,0.5\n20,0.4abc\n",
        b"step,mel\n,0.5\n",
        b"step\ninf\n",
    ],
)
def test_a_damaged_curve_is_refused(tmp_path, content):
    path = tmp_path / "curve.csv"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="is damaged, or is not a training curve") as caught:
        Curve.read(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
