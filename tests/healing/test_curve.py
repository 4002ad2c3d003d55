from __future__ import annotations

import pytest

from vits_prune.errors import DamagedFileError
from vits_prune.healing.training_curve import Curve


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
