"""Sentences to measure on, to calibrate with and to train on: built in, or from a user's file."""

from __future__ import annotations

import codecs
import math
import os
from dataclasses import dataclass
from importlib import resources

from vits_prune.errors import InputError
from vits_prune.files import expanded
from vits_prune.synthesis.speak import MAX_CHARACTERS

HALVES = ("tuning", "held-out")
"""Lists 1 to 3 and lists 4 to 6 of the Harvard sentences. Tune on the first, measure on the
second."""
DEFAULT_COUNT = 20
MAX_TEXT_FILE_BYTES = 1 << 20
MAX_FILE_TEXTS = 1_000

_MARKS = (  # the longer first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class TextFile:
    """The lines of a user's file that are not empty, and notes about how it was read."""

    texts: tuple[str, ...]
    notes: tuple[str, ...]


def load_texts(count: int | None = DEFAULT_COUNT, half: str = "held-out") -> tuple[str, ...]:
    """Return Harvard sentences: English, public domain, lists of ten phonetically balanced.

    Source: "IEEE Recommended Practice for Speech Quality Measurements", IEEE Transactions on Audio
    and Electroacoustics 17 (1969), 225-246, appendix C, lists 1 to 6.

    Args:
        count: how many, from the start; None for all.
        half: "tuning", "held-out", or "all" (the tuning half first).

    Raises:
        InputError: there is no such half, or it has fewer sentences.
    """
    if half not in (*HALVES, "all"):
        asked = str(half)[:40]
        raise InputError(f"There is no half {asked!r}: choose tuning, held-out or all.")
    halves = HALVES if half == "all" else (half,)
    texts = [line for name in halves for line in _data_lines(f"harvard-{name}.txt")]
    return tuple(texts[: _checked(count, f" to {len(texts)}", len(texts))])


def load_calibration_texts() -> tuple[str, ...]:
    """Return English sentences to calibrate and train on, written for this library (CC0).

    Quality is measured on none of them.
    """
    return tuple(_data_lines("calibration.txt"))


def read_text_file(path: str | os.PathLike[str], count: int | None = None) -> TextFile:
    """Read a user's sentences, one on each line.

    The file is in UTF-8 or UTF-16, or in UTF-32 with a byte order mark. Other text in Latin letters
    is read as Windows-1252, with a note. `count` is how many are read from the start; None for all.

    Raises:
        InputError: the file cannot be read, is not text, is too large, is empty, or has too many
            lines or too long ones.
    """
    path = expanded(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        shown = f"The text file {path.name[:100]!r}"
        raise InputError(f"{shown} cannot be read: check the path.") from error
    if len(content) > MAX_TEXT_FILE_BYTES:
        limit = f"{MAX_TEXT_FILE_BYTES >> 20} MiB"
        raise InputError(
            f"The text file is larger than {limit}: give {MAX_FILE_TEXTS:,} sentences at most."
        )
    text, notes = decoded(content, "The text file")
    if "\0" in text:
        shown = f"{path.name[:100]!r} is not a text file"
        raise InputError(f"{shown}: give one with a sentence a line, in UTF-8.")
    lines = [line.strip() for line in text.splitlines()]
    texts = [line for line in lines if any(map(str.isprintable, line))]  # no lone Ctrl-Z
    if not texts:
        raise InputError("The text file holds no sentence: write one on each line.")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_CHARACTERS:
            shown = f"Line {number} of the text file has more than {MAX_CHARACTERS:,} characters"
            raise InputError(f"{shown}: put one sentence on each line.")
    asked = _checked(count)
    if len(texts) > MAX_FILE_TEXTS and (asked is None or asked > MAX_FILE_TEXTS):
        there = f"The text file has {len(texts):,} sentences"
        raise InputError(f"{there} and the limit is {MAX_FILE_TEXTS:,}: give fewer.")
    if asked is not None and asked > len(texts):
        there = f"The text file has {len(texts)} sentences"
        notes.append(f"{there}, fewer than the {asked} asked for: all were used.")
    return TextFile(tuple(texts[:count]), tuple(notes))


def _checked(count: int | None, span: str = "", most: float = math.inf) -> int | None:
    whole = isinstance(count, int) and not isinstance(count, bool)
    if count is None or (whole and 1 <= count <= most):
        return count
    what = f"The number of sentences must be a whole number from 1{span}"
    raise InputError(f"{what}, not {str(count)[:40]!r}.")


def _data_lines(name: str) -> list[str]:
    file = resources.files("vits_prune") / "data" / name
    return file.read_text(encoding="utf-8").splitlines()


def decoded(content: bytes, shown: str) -> tuple[str, list[str]]:
    """Return the text in a file that messages call `shown`, and notes about its encoding.

    Raises:
        InputError: it is not text in an encoding that can be told.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    zeros = content[::2].count(0), content[1::2].count(0)
    if encoding == "utf-8" and min(zeros) == 0 and 4 * max(zeros) > len(content):
        encoding = "utf-16-be" if zeros[0] else "utf-16-le"  # without a mark
    try:
        return content.decode(encoding), []
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            what = f"{shown} begins as {encoding.removesuffix('-sig')} but is not"
            raise InputError(f"{what}: save it again as UTF-8.") from error
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        text = ""
    letters = [c.isascii() for c in text if c.isalpha()]
    if 2 * sum(letters) <= len(letters):  # as of another script
        raise InputError(f"{shown} is neither UTF-8 nor Windows-1252: save it again as UTF-8.")
    note = f"{shown} is not UTF-8 and was read as Windows-1252"
    return text, [f"{note}: save it as UTF-8 where letters look wrong."]
