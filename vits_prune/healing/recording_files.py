"""Transcripts and audio files of a folder of recordings that comes from a stranger."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vits_prune.errors import InputError
from vits_prune.synthesis.texts import decoded

if TYPE_CHECKING:
    import soundfile

MAX_TRANSCRIPT_BYTES = 32 << 20
MAX_LINES = 200_000
MAX_FILE_BYTES = 64 << 20
MIN_SECONDS = 0.5
_FILE_COLUMN = "file_name"
_MAX_COLUMNS = 200
_TEXT_COLUMNS = ("transcription", "text", "sentence", "transcript")
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_LAYOUTS = "a metadata.csv with lines id|text, or with the columns file_name and transcription"
_MAX_RATE, _MAX_CHANNELS = 192_000, 8
_MAX_SAMPLE = 1.5
"""Of full scale."""
_BLOCK, _MAX_CHUNKS = 1 << 16, 1_000
_WAV_SLACK_BYTES = 64
"""May be missing from a WAV file whose writer counted its header among the samples."""


log = logging.getLogger(__name__)


class UnusableError(Exception):
    """Why a recording cannot be used, in a sentence."""


@dataclass(frozen=True)
class Row:
    """One line of a transcript; the name is a file's, or an id without folder and suffix."""

    name: str
    text: str
    by_id: bool


@dataclass(frozen=True)
class Skipped:
    """A recording by its name, or a line of the transcript, and in a sentence why it is left."""

    name: str
    reason: str


def read_rows(folder: Path) -> tuple[list[Row], list[Skipped]]:
    """Return the rows of a folder's transcript, in their order, and those that cannot be read.

    Raises:
        InputError: there is no transcript, or it is too large, not text, or of no known layout.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {str(folder)[:200]!r} of recordings: check the path.")
    readers = {"metadata.jsonl": _from_jsonl, "metadata.csv": _from_csv}
    name = next((name for name in readers if (folder / name).is_file()), None)
    if name is None:
        raise InputError(
            f"The folder {folder.name[:100]!r} has no transcript: put {_LAYOUTS} into it."
        )
    found = list(itertools.islice(readers[name](_transcript(folder / name)), MAX_LINES + 1))
    if len(found) > MAX_LINES:
        words = f"The transcript has more than {MAX_LINES:,} lines"
        raise InputError(f"{words}: give fewer recordings.")
    rows = [one for one in found if isinstance(one, Row)]
    return rows, [one for one in found if isinstance(one, Skipped)]


def find_audio(root: Path, row: Row) -> Path:
    """Return the audio file of a row, in the folder `root`, which is resolved.

    Raises:
        UnusableError: there is none, or it lies outside the folder.
    """
    names = [row.name]
    if row.by_id:
        endings = (*_SUFFIXES, "")
        names = [f"{place}{row.name}{end}" for place in ("wavs/", "") for end in endings]
    for name in names if row.name.strip() else ():
        try:
            path = (root / name).resolve()
            if not path.is_relative_to(root):
                raise UnusableError("Its file lies outside the folder.")
            if path.is_file():
                return path
        except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, a loop of links
            raise UnusableError("Its name is not a path.") from error
    raise UnusableError("There is no such file.")


def _transcript(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TRANSCRIPT_BYTES + 1)
        if len(content) > MAX_TRANSCRIPT_BYTES:
            most = f"{MAX_TRANSCRIPT_BYTES >> 20} MiB"
            raise InputError(f"{path.name} is larger than {most}: give fewer recordings.")
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: check the folder of recordings.") from error
    text, notes = decoded(content, path.name)
    for note in notes:
        log.warning(note)
    if "\0" in text:
        raise InputError(f"{path.name} is not a text file: give {_LAYOUTS}.")
    return text


def _from_csv(text: str) -> Iterator[Row | Skipped]:
    first = text.lstrip().split("\n", 1)[0]
    try:
        for mark in ",;\t":  # spreadsheets of some countries write the others
            how: Any = {"delimiter": mark, "skipinitialspace": True}
            header = next(csv.reader([first], **how), [])
            if _FILE_COLUMN not in header or len(header) > _MAX_COLUMNS:
                continue
            if not set(header) & set(_TEXT_COLUMNS):
                names = " or ".join(_TEXT_COLUMNS)
                raise InputError(f"metadata.csv has no column of texts: name one {names}.")
            reader = csv.DictReader(io.StringIO(text.lstrip()), **how)
            for values in reader:
                yield _row(values, f"line {reader.line_num} of metadata.csv")
            return
    except csv.Error as error:
        why = str(error)[:100]
        raise InputError(f"metadata.csv cannot be read as CSV ({why}): save it again.") from error
    if "|" not in first:
        raise InputError(f"metadata.csv is of no known layout: give {_LAYOUTS}.")
    # LJSpeech's `id|text|normalised text`, without quotes: the last text was spoken.
    for number, line in enumerate(io.StringIO(text), 1):
        name, bar, rest = line.partition("|")
        if bar:
            texts = [field.strip() for field in rest.split("|", 1)]
            yield Row(name.strip(), texts[-1] or texts[0], by_id=True)
        elif line.strip():
            yield Skipped(f"line {number} of metadata.csv", "It has no | between id and text.")


def _from_jsonl(text: str) -> Iterator[Row | Skipped]:
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            values: Any = None
            with contextlib.suppress(ValueError, RecursionError):
                values = json.loads(line)
            yield _row(values, f"line {number} of metadata.jsonl")


def _row(values: Any, line: str) -> Row | Skipped:
    known = values if isinstance(values, dict) else {}
    name = known.get(_FILE_COLUMN)
    said = next((known[key] for key in _TEXT_COLUMNS if key in known), None)
    if not (name and isinstance(name, str) and isinstance(said, str)):
        return Skipped(line, "It is not a row with a file_name and a transcription.")
    # JSON can spell half a character.
    return Row(name, said.encode("utf-8", "replace").decode().strip(), by_id=False)


def read_samples(path: Path, min_rate: int, max_seconds: float) -> tuple[np.ndarray, int]:
    """Return mono samples, float32 [samples], and their rate. Every sample is checked.

    Raises:
        UnusableError: the file cannot be used.
    """
    import soundfile

    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            limit = MAX_FILE_BYTES >> 20
            raise UnusableError(f"The file has {size / 2**20:,.0f} MiB, more than {limit} MiB.")
        if size == 0:
            raise UnusableError("The file is empty.")
        if _is_cut_off(path, size):
            raise UnusableError("The file is truncated.")
        with soundfile.SoundFile(path) as sound:
            rate, promised = sound.samplerate, sound.frames
            shown = f"{rate:,} samples a second"
            if sound.channels > _MAX_CHANNELS:
                raise UnusableError(f"It has {sound.channels} channels, more than {_MAX_CHANNELS}.")
            if rate > _MAX_RATE:
                raise UnusableError(f"It has {shown}, more than {_MAX_RATE:,}.")
            if rate < min_rate:
                why = f"the voice {min_rate:,}: it would sound muffled"
                raise UnusableError(f"It has {shown} and {why}.")
            samples = _mono(sound, max_seconds)
    except (OSError, RuntimeError, ValueError, TypeError) as error:  # libsndfile: RuntimeError
        raise UnusableError("It is not an audio file, or a damaged one.") from error
    if len(samples) < promised:
        raise UnusableError("The file is truncated.")
    if len(samples) < MIN_SECONDS * rate:
        seconds = len(samples) / rate
        raise UnusableError(f"It has {seconds:.2f} seconds, less than {MIN_SECONDS:g}.")
    return samples, rate


def _mono(sound: soundfile.SoundFile, max_seconds: float) -> np.ndarray:
    """Return the mean of the channels, read in blocks: a header may promise less than comes."""
    blocks, frames = [np.zeros(0, dtype=np.float32)], 0
    while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
        if not np.isfinite(block).all():
            raise UnusableError("It contains samples that are not numbers.")
        if np.abs(block).max() > _MAX_SAMPLE:
            raise UnusableError("Its samples go far beyond full scale: save it as 16-bit PCM.")
        frames += len(block)
        if frames > int(max_seconds * sound.samplerate):
            words = f"It is longer than {max_seconds:g} seconds"
            raise UnusableError(f"{words}: cut it into sentences.")
        blocks.append(block.mean(axis=1))
    return np.concatenate(blocks)


def _is_cut_off(path: Path, size: int) -> bool:
    """Return whether a WAV file ends before the samples that it promises: libsndfile does not mind.

    Programs that do not know the length write sizes of 0 or 2**32 - 1.
    """
    with path.open("rb") as file:
        start = file.read(12)
        if start[:4] != b"RIFF" or start[8:] != b"WAVE":
            return False
        at = 12
        for _ in range(_MAX_CHUNKS):
            if at + 8 > size:
                break
            file.seek(at)
            head = file.read(8)
            length = int.from_bytes(head[4:8], "little")
            if head[:4] == b"data":
                return length not in (0, 2**32 - 1) and at + 8 + length > size + _WAV_SLACK_BYTES
            at += 8 + length + length % 2
    return True
