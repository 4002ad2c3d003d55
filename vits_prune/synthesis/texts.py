"""The sentences that quality is measured on: sixty built in, or a user's file."""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vits_prune.errors import InputError
from vits_prune.synthesis.speak import MAX_CHARACTERS

HALVES = ("tuning", "held-out")
"""Lists 1 to 3 and lists 4 to 6 of the Harvard sentences. What was tuned or calibrated on the first is measured on the second."""
DEFAULT_COUNT = 20
MAX_FILE_BYTES = 1 << 20
MAX_TEXTS = 1_000

_MARKS = (  # the longer first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TextFile:
    """What a user's file holds."""

    texts: tuple[str, ...]
    """One a line, in the order of the file."""
    notes: tuple[str, ...]
    """What the reader should know of how it was read, in sentences."""


def load_texts(count: int | None = DEFAULT_COUNT, half: str = "held-out") -> tuple[str, ...]:
    """English sentences of the public domain, each list of ten phonetically balanced.

    Source: "IEEE Recommended Practice for Speech Quality Measurements", IEEE Transactions on Audio and Electroacoustics 17 (1969), 225-246,
    appendix C, lists 1 to 6 (the Harvard sentences).

    Args:
        count: how many, from the start; None for all.
        half: "tuning", "held-out", or "all" (the tuning half first).

    Raises:
        InputError: there is no such half, or it has fewer sentences.
    """
    if half not in (*HALVES, "all"):
        raise InputError(
            f"There is no half {str(half)[:40]!r} of the sentences: choose tuning, held-out or all."
        )
    texts = [line for name in (HALVES if half == "all" else (half,)) for line in _lines(name)]
    if count is None:
        return tuple(texts)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(texts):
        raise InputError(
            f"The number of sentences must be a whole number from 1 to {len(texts)}, not {str(count)[:40]!r}."
        )
    return tuple(texts[:count])


def load_calibration_texts() -> tuple[str, ...]:
    """English sentences to calibrate and to train on, written for this library (CC0); quality is measured on none of them."""
    return tuple(
        (resources.files("vits_prune") / "data" / "calibration.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )


def read_text_file(path: str | os.PathLike[str], count: int | None = None) -> TextFile:
    """A user's sentences, one a line; empty lines are skipped.

    Args:
        path: a text file in UTF-8, or in UTF-16 or UTF-32 with its byte order mark; anything else is read as Latin-1, with a note.
        count: the first so many; None for all.

    Raises:
        InputError: it cannot be read, is no text, is too large, has too many or too long lines, or nothing in it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The text file {path.name[:100]!r} cannot be read: check the path."
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise InputError(
            f"The text file is larger than {MAX_FILE_BYTES >> 20} MiB: give one sentence a line, {MAX_TEXTS:,} at most."
        )
    text, notes = _decoded(content)
    if "\0" in text:
        raise InputError(
            f"{path.name[:100]!r} is not a text file: give one with a sentence a line, in UTF-8."
        )
    lines = text.splitlines()
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError("The text file holds no sentence: write one a line.")
    for number, line in enumerate(lines, 1):
        if len(line.strip()) > MAX_CHARACTERS:
            raise InputError(
                f"Line {number} of the text file has more than {MAX_CHARACTERS:,} characters: put one sentence on a line."
            )
    if len(texts) > MAX_TEXTS and (count is None or count > MAX_TEXTS):
        raise InputError(
            f"The text file has {len(texts):,} sentences and the limit is {MAX_TEXTS:,}: give fewer."
        )
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(
                f"The number of sentences must be a whole number from 1, not {str(count)[:40]!r}."
            )
        if count > len(texts):
            notes.append(
                f"The text file has {len(texts)} sentences, fewer than the {count} asked for: all were used."
            )
    return TextFile(tuple(texts[:count]), tuple(notes))


def _lines(half: str) -> list[str]:
    return (
        (resources.files("vits_prune") / "data" / f"harvard-{half}.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )


def _decoded(content: bytes) -> tuple[str, list[str]]:
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding), []
            except UnicodeDecodeError as error:
                raise InputError(
                    f"The text file begins as {encoding.removesuffix('-sig')} and is not: save it again as UTF-8."
                ) from error
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError:
        # Every byte is a character of Latin-1: it always decodes, and where it is the wrong guess the note says what to do.
        return content.decode("latin-1"), [
            "The text file is not UTF-8 and was read as Latin-1: save it as UTF-8 where letters look wrong."
        ]
