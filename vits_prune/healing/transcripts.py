"""The transcript of a folder of recordings, in LJSpeech's layout or as a Hugging Face audio folder: rows, and where their audio lies."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vits_prune.errors import InputError

MAX_TRANSCRIPT_BYTES = 32 << 20
MAX_ROWS = 200_000

Line = TypeVar("Line")

_FILE_COLUMN = "file_name"
_MAX_COLUMNS = 200
_TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript")
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_LAYOUTS = (
    "a metadata.csv with lines like id|text, or one with the columns file_name and transcription"
)


@dataclass(frozen=True)
class Row:
    """One line of a transcript."""

    name: str
    """File name or LJSpeech id, as it stands there: not to be trusted."""
    text: str
    by_id: bool
    """Whether the name is an id, which lacks folder and suffix."""


def read_rows(folder: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows of a folder's transcript in their order, and (which line, why) of those that cannot be read.

    Raises:
        InputError: there is no transcript, or it is too large, no text, or of no known layout.
    """
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {str(folder)[:200]!r} with recordings: check the path."
        )
    for name in ("metadata.jsonl", "metadata.csv"):
        if (folder / name).is_file():
            text = _read(folder / name)
            return _from_jsonl(text) if name.endswith(".jsonl") else _from_csv(text)
    raise InputError(f"The folder {folder.name[:100]!r} has no transcript: put {_LAYOUTS} into it.")


def find_audio(root: Path, row: Row) -> tuple[Path | None, str]:
    """The audio file of a row and "", or None and why there is none.

    Args:
        root: the folder, resolved: nothing outside it is ever opened.
        row: of its transcript.
    """
    names = (row.name,)
    if row.by_id:
        names = tuple(
            f"{place}{row.name}{suffix}" for place in ("wavs/", "") for suffix in (*_SUFFIXES, "")
        )
    for name in names if row.name.strip() else ():
        try:
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                return None, "Its file lies outside the folder."
            if path.is_file():
                return path, ""
        except (OSError, ValueError, RuntimeError):  # too long, with a NUL byte, links in a circle
            return None, "Its name is no path."
    return None, "There is no such file."


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TRANSCRIPT_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: check the folder of recordings.") from error
    if len(content) > MAX_TRANSCRIPT_BYTES:
        raise InputError(
            f"{path.name} is larger than {MAX_TRANSCRIPT_BYTES >> 20} MiB: give fewer recordings."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not in UTF-8: save it again as UTF-8.") from error
    if "\0" in text:
        raise InputError(f"{path.name} is not a text file: give {_LAYOUTS}.")
    return text


def _bounded(lines: Iterable[Line]) -> Iterator[Line]:
    for number, line in enumerate(lines):
        if number == MAX_ROWS:
            raise InputError(
                f"The transcript has more than {MAX_ROWS:,} lines: give fewer recordings."
            )
        yield line


def _from_csv(text: str) -> tuple[list[Row], list[tuple[str, str]]]:
    first = text.lstrip().split("\n", 1)[0]
    try:
        header = next(csv.reader([first]), [])
        if _FILE_COLUMN in header and len(header) <= _MAX_COLUMNS:
            return _from_columns(text)
    except csv.Error as error:
        raise InputError(
            f"metadata.csv cannot be read as CSV ({str(error)[:100]}): save it again."
        ) from error
    if "|" not in first:
        raise InputError(f"metadata.csv is of no known layout: give {_LAYOUTS}.")
    return _from_pipes(text)


def _from_pipes(text: str) -> tuple[list[Row], list[tuple[str, str]]]:
    """LJSpeech: `id|text|normalised text`, nothing quoted; the last that is not empty is what was said."""
    rows, broken = [], []
    for number, line in enumerate(_bounded(io.StringIO(text)), 1):
        name, bar, rest = line.partition("|")
        if not line.strip():
            continue
        if not bar:
            broken.append((f"line {number} of metadata.csv", "It has no | between id and text."))
            continue
        said = [field.strip() for field in rest.split("|", 1)]
        rows.append(Row(name.strip(), said[-1] or said[0], by_id=True))
    return rows, broken


def _from_columns(text: str) -> tuple[list[Row], list[tuple[str, str]]]:
    rows, broken = [], []
    reader = csv.DictReader(io.StringIO(text.lstrip()))
    column = next((name for name in _TEXT_COLUMNS if name in (reader.fieldnames or ())), None)
    if column is None:
        raise InputError(
            f"metadata.csv has no column of texts: name one {' or '.join(_TEXT_COLUMNS)}."
        )
    for values in _bounded(reader):
        name, said = values[_FILE_COLUMN], values[column]
        if not name or said is None:
            broken.append(
                (f"line {reader.line_num} of metadata.csv", "It has no file name or no text.")
            )
        else:
            rows.append(Row(name, said.strip(), by_id=False))
    return rows, broken


def _from_jsonl(text: str) -> tuple[list[Row], list[tuple[str, str]]]:
    rows, broken = [], []
    for number, line in enumerate(_bounded(io.StringIO(text)), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        name = values.get(_FILE_COLUMN) if isinstance(values, dict) else None
        said = (
            next((values[key] for key in _TEXT_COLUMNS if key in values), None)
            if isinstance(name, str)
            else None
        )
        if not isinstance(said, str):
            broken.append(
                (
                    f"line {number} of metadata.jsonl",
                    "It is no JSON object with file_name and transcription.",
                )
            )
        else:
            said = said.encode("utf-8", "replace").decode(
                "utf-8"
            )  # JSON can spell halves of characters
            rows.append(Row(name, said.strip(), by_id=False))
    return rows, broken
