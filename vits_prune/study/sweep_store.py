"""The folder of a sweep: a manifest and the rows, safe against kills and full disks."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import Manifest, expanded, names_in, write_file
from vits_prune.study.signature import check_comparable
from vits_prune.study.sweep_grid import Point

LINES, TABLE = "sweep.jsonl", "sweep.csv"
SWEEP_MANIFEST = Manifest("sweep.json")
FORMAT_VERSION = 1
_MAX_BYTES = 1 << 30
_DIFFERENCES = {
    "kind": "another kind",
    "voice": "another voice",
    "texts": "other texts",
    "settings": "other settings",
    "versions": "other versions of packages",
}
"""Keys of the manifest in which two runs of one sweep agree, and what differs where they do not."""


class Store:
    """An open folder of a sweep, locked against other sweeps.

    Each line of `sweep.jsonl` is one point, whole or not there; `sweep.csv` is made from it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], manifest: Mapping[str, Any], points: Sequence[Point]
    ) -> None:
        """Make a folder for a sweep, or open the folder of the same sweep.

        `manifest` is what the numbers depend on. Points of the folder that are not given stay.

        Raises:
            InputError: the folder holds something else, is in use, or cannot be written.
            DamagedFileError: a line of it is damaged.
        """
        self.folder = expanded(folder)
        self.records: dict[Point, dict[str, Any]] = {}
        """Point, row and details of what is done."""
        self._order = {point: i for i, point in enumerate(points)}
        with contextlib.ExitStack() as files:
            with self._disk():
                self._refuse_other_files()
                self._lines = files.enter_context((self.folder / LINES).open("ab"))
            _lock(self._lines, self.folder)
            with self._disk():
                self.manifest = self._agree(manifest)
                self._read()
                self._write_table()
                self._table = files.enter_context((self.folder / TABLE).open("ab"))
            files.pop_all()

    def append(
        self, point: Point, row: Mapping[str, Any], details: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Keep a point, whole on the disk when this returns, and return its row as it was kept.

        Raises:
            InputError: the disk does not take it; what was kept before is as it was.
        """
        record = plain({"point": point.to_dict(), "row": row, "details": details})
        with self._disk():
            _append(self._lines, _line(record))
            self.records[point] = record
            if set(record["row"]) <= set(self._columns):
                _append(self._table, csv_of([record["row"]], self._columns, header=False))
            else:  # the first row, or one with other options: the header changes
                self._table.close()
                self._write_table()
                self._table = (self.folder / TABLE).open("ab")
        return record["row"]

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        """Put the files into the order of the points and unlock the folder."""
        try:
            ordered = self._sorted()
            if ordered != list(self.records.values()):  # several processes finish in any order
                with contextlib.suppress(InputError), self._disk():
                    write_file(self.folder / LINES, b"".join(map(_line, ordered)))
                    self._write_table()
        finally:
            self._table.close()
            self._lines.close()

    def _sorted(self) -> list[dict[str, Any]]:
        order, last = self._order, len(self._order)
        return [self.records[one] for one in sorted(self.records, key=lambda p: order.get(p, last))]

    def _refuse_other_files(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if holds_sweep(self.folder):
            return
        for path in map(self.folder.joinpath, names_in(self.folder)):
            if path.is_dir() or path.stat().st_size:  # a kill at the very start leaves it empty
                raise InputError(f"{self.folder} holds something else: give a new or empty folder.")

    def _agree(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest if it is of the same sweep as the folder's own."""
        agreed = plain({"format": FORMAT_VERSION, **manifest})
        kept = SWEEP_MANIFEST.read(self.folder)
        if kept is not None:
            if kept.get("format") != FORMAT_VERSION:
                what = f"The sweep in {self.folder} is of another version of vits_prune"
                raise InputError(f"{what}: give another folder.")
            for key, difference in _DIFFERENCES.items():
                if kept.get(key) != agreed.get(key):
                    what = f"{self.folder} holds a sweep of {difference}"
                    raise InputError(f"{what}: give another folder, or remove this one.")
            agreed["threads"] = kept.get("threads", agreed.get("threads"))
        SWEEP_MANIFEST.write(self.folder, agreed)
        return agreed

    def _read(self) -> None:
        """Read what is done, and cut off a last line that a kill left incomplete."""
        path, kept = self.folder / LINES, 0
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} is larger than a sweep writes it.")
        for record, size in _records(path):
            self.records[Point.from_dict(record["point"])] = record
            kept += size
        os.truncate(path, kept)

    def _write_table(self) -> None:
        rows = [record["row"] for record in self._sorted()]
        self._columns = columns_of(rows)
        write_file(self.folder / TABLE, csv_of(rows) if rows else b"")

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"The sweep could not be written to {self.folder}: {error.strerror or error}. "
                f"{len(self.records)} points are done and kept: make room and start it again."
            ) from error


def holds_sweep(folder: Path) -> bool:
    """Return whether a folder is that of a sweep."""
    return (folder / SWEEP_MANIFEST.name).exists()


def _records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each record and its bytes; a last line without an end, as a kill leaves it, is not."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                Point.from_dict(record["point"])
                record["row"].keys()
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise DamagedFileError(
                    f"Line {number} of {path} is damaged: "
                    "remove that line, and its point is measured again."
                ) from error
            yield record, len(line)


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _append(file: BinaryIO, content: bytes) -> None:
    """Append a line whole: if the disk fills up, the part that it took is removed."""
    end = os.fstat(file.fileno()).st_size
    try:
        # Not through the buffer: closing the file would try again to write what did not fit.
        view = memoryview(content)
        while view:
            view = view[os.write(file.fileno(), view) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise


def _lock(file: BinaryIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two sweeps into one folder are not noticed
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(
            f"Another sweep is writing to {folder} now: wait for it, or give another folder."
        ) from error


def check_signatures(rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError if rows were measured so differently that they cannot be compared.

    Rows of old sweeps have no signature and are not checked.
    """
    found = list(dict.fromkeys(row["signature"] for row in rows if row.get("signature")))
    for other in found[1:]:
        check_comparable(found[0], other)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of all rows, those of the longest row first."""
    return list(dict.fromkeys([*max(rows, key=len, default={}), *(k for row in rows for k in row)]))


def csv_of(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None, *, header: bool = True
) -> bytes:
    """Return rows as CSV in UTF-8; a cell that a row lacks is empty."""
    # As objects: in a column of numbers a whole number beside an empty cell would get a ".0".
    table = pd.DataFrame(list(rows), columns=columns or columns_of(rows), dtype=object)
    return table.to_csv(index=False, header=header, lineterminator="\n").encode()


def plain(value: Any) -> Any:
    """Return JSON-able values: no tuples, no NumPy scalars, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
