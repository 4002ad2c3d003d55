"""The folder of a sweep: a manifest, a row a point in JSON lines and CSV, and what makes them safe against kills and full disks."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.sweep.grid import Point

MANIFEST, LINES, TABLE = "sweep.json", "sweep.jsonl", "sweep.csv"
FORMAT_VERSION = 1
_LIMIT = 1 << 30
_NAMES = {
    "kind": "another kind",
    "voice": "another voice",
    "texts": "other texts",
    "settings": "other settings",
    "versions": "other versions of packages",
}
"""What makes two sweeps different: key of the manifest -> how to say it."""


class Store:
    """An open sweep's folder. `sweep.jsonl` is the truth: each line is one point, whole or not there; `sweep.csv` is made from it."""

    def __init__(self, folder: str | os.PathLike[str], manifest: Mapping[str, Any], points: Sequence[Point]) -> None:
        """Make a folder for a sweep, or open it where it is one already.

        Args:
            folder: new, empty, or of the same sweep.
            manifest: what the numbers depend on; JSON-able.
            points: all that the sweep is to visit, in order; a grid may grow, so points of the folder that are not here are kept.

        Raises:
            InputError: the folder holds something else, is in use, is damaged, or cannot be written.
        """
        self.folder = Path(folder)
        self._order = {point: i for i, point in enumerate(points)}
        self.records: dict[Point, dict[str, Any]] = {}
        """What is done, by point."""
        with self._telling():
            self._prepare()
            self._lines = (self.folder / LINES).open("ab")
        try:
            _lock(self._lines, self.folder)
            with self._telling():
                self.manifest = self._agree(dict(manifest))
                self._read()
                self._write_table()
                self._table = (self.folder / TABLE).open("ab")
        except BaseException:
            self._lines.close()
            raise

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of what is done, in the order of the grid."""
        return [record["row"] for record in self._sorted()]

    def append(self, point: Point, row: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a point: on the disk, whole, when this returns.

        Returns:
            The row as it was kept.

        Raises:
            InputError: the disk does not take it; what was kept before is as it was.
        """
        record = plain({"point": point.to_dict(), "row": dict(row), "details": dict(details)})
        with self._telling():
            _append(self._lines, (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
        self.records[point] = record
        with self._telling():
            if set(record["row"]) <= set(self._columns):
                _append(self._table, csv_of([record["row"]], header=False, columns=self._columns))
            else:  # the first row, or one with other options: the header changes
                self._table.close()
                self._write_table()
                self._table = (self.folder / TABLE).open("ab")
        return record["row"]

    def close(self) -> None:
        """Put the files into the order of the grid and let go of the folder."""
        try:
            ordered = self._sorted()
            if ordered != list(self.records.values()):  # they are in the order in which they were done: with several processes, by chance
                with contextlib.suppress(InputError), self._telling():
                    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in ordered)
                    write_atomically(self.folder / LINES, text.encode())
                    self._write_table()
        finally:
            self._table.close()
            self._lines.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sorted(self) -> list[dict[str, Any]]:
        last = len(self._order)
        return [self.records[point] for point in sorted(self.records, key=lambda point: self._order.get(point, last))]

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # A kill right at the start leaves an empty file, or one beside its place.
        foreign = [one for one in self.folder.iterdir() if not one.name.startswith(".sweep.") and (one.is_dir() or one.stat().st_size)]
        if foreign and not (self.folder / MANIFEST).exists():
            raise InputError(f"{self.folder} holds something that is no sweep: give a folder that is new or empty.")

    def _agree(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The manifest of the folder, where it is of the same sweep."""
        manifest = plain({"format": FORMAT_VERSION, **manifest})
        path = self.folder / MANIFEST
        if path.exists():
            kept = read_manifest(self.folder)
            for key, name in _NAMES.items():
                if kept.get(key) != manifest.get(key):
                    raise InputError(f"{self.folder} holds a sweep of {name}: give another folder, or remove this one.")
            manifest |= {"threads": kept.get("threads", manifest.get("threads"))}
        write_atomically(path, (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode())
        return manifest

    def _read(self) -> None:
        """Take in what is done; a last line that a kill left half-written is dropped."""
        path = self.folder / LINES
        if path.stat().st_size > _LIMIT:
            raise InputError(f"{path} is larger than {_LIMIT >> 30} GiB: it was not written by a sweep.")
        kept = 0
        for record, size in _read_records(path):
            self.records[Point.from_dict(record["point"])] = record
            kept += size
        os.truncate(path, kept)

    def _write_table(self) -> None:
        rows = self.rows
        self._columns = columns_of(rows)
        write_atomically(self.folder / TABLE, csv_of(rows) if rows else b"")

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Turns a disk that does not take more into a sentence."""
        try:
            yield
        except OSError as error:
            done = f" The {len(self.records)} points that are done are kept" if self.records else " Nothing was lost"
            reason = error.strerror or str(error)
            raise InputError(f"The sweep could not be written to {self.folder}: {reason}.{done}: make room and start it again.") from error


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a sweep's folder.

    Raises:
        InputError: it is no such folder, or of a newer version.
    """
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder} is not the folder of a sweep: its {MANIFEST} cannot be read.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT_VERSION:
        raise InputError(f"{Path(folder) / MANIFEST} is not of this version of vits_prune: give another folder.")
    return manifest


def read_rows(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows that a sweep's folder holds, finished or not, without touching it.

    Raises:
        DamagedFileError: a row is damaged.
        InputError: it is no such folder.
    """
    read_manifest(folder)
    try:
        return [record["row"] for record, _ in _read_records(Path(folder) / LINES)]
    except OSError as error:
        raise InputError(f"{Path(folder) / LINES} cannot be read: {error.strerror or error}.") from error


def _read_records(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each record of a file and its bytes, line by line. A last line without an end is left out: a kill leaves such a line.

    Raises:
        DamagedFileError: another line is no record.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            record = _parsed(line)
            if record is None:
                raise DamagedFileError(f"Line {number} of {path} is damaged: remove that line, and its point is measured again.")
            yield record, len(line)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there whole or as it was before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _append(file: BinaryIO, content: bytes) -> None:
    """Add a line as a whole: what a full disk took of it is taken back."""
    end = os.fstat(file.fileno()).st_size
    try:
        # Past the buffer, which would try again to write what did not fit when the file is closed.
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
    except ImportError:  # Windows has no such lock: two sweeps at once into one folder go unnoticed there
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"Another sweep is writing to {folder} now: wait for it, or give another folder.") from error


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line's record; None where it is damaged."""
    try:
        record = json.loads(line)
        Point.from_dict(record["point"])
        return record if isinstance(record["row"], dict) else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows, those of the longest row first."""
    longest = max(rows, key=len, default={})
    return list(dict.fromkeys([*longest, *(name for row in rows for name in row)]))


def csv_of(rows: Sequence[Mapping[str, Any]], header: bool = True, columns: Sequence[str] | None = None) -> bytes:
    """Rows as CSV in UTF-8; what a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or columns_of(rows), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def plain(value: Any) -> Any:
    """JSON-able values all the way down: no tuples, no NumPy scalars, None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
