"""Answers of blind listening tests as CSV, with all that repeats a test, and pooled listeners."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vits_prune.errors import InputError
from vits_prune.files import write_file
from vits_prune.pruning.spec import PruneSpec
from vits_prune.study.listening import Hearing, Preference, hearing, name_of, share_of

KINDS = ("abx", "preference")
MAX_LISTENER = 40
_MAX_BYTES, _MAX_ROWS = 16 << 20, 20_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""What a spreadsheet may run begins like this: such a cell is written with an apostrophe."""


@dataclass(frozen=True)
class Setup:
    """What all trials of one test have in common."""

    kind: str
    """"abx" or "preference"."""
    test: str
    """A random name, the same in all rows of the test."""
    listener: str
    """A pseudonym."""
    voice: str
    revision: str
    speaker: str
    seed: int
    """Of the speech's noise."""
    delivery: str
    """The Delivery as JSON."""
    order_seed: int
    """Of the order: which sound is A, and which one X is."""
    planned: int
    """Trials that the listener chose."""
    amounts: tuple[float, ...]
    """The row that an ABX test chooses from."""
    version: str = ""
    """Of vits_prune."""
    matched: bool = True
    """Whether the sounds of a trial have the same level. CSVs of old tests, which all have it, do
    not say it."""


@dataclass(frozen=True)
class Trial:
    """One answer."""

    setup: Setup
    number: int
    """From 1."""
    text: str
    spec: PruneSpec
    """ABX: the pruned side. Preference: the first setting."""
    other: PruneSpec | None
    """Preference: the second setting."""
    a: str
    """Which side is A: "original" or "pruned"; "first" or "second"."""
    x: str
    """ABX: which of the two X is, "A" or "B"."""
    answer: str
    """"A" or "B": what X is, or what sounds better."""
    seconds: float
    """From the trial's start to the answer."""

    @property
    def correct(self) -> bool:
        """Of ABX: whether the answer is right."""
        return self.answer == self.x

    @property
    def chose_first(self) -> bool:
        """Of a preference: whether the first setting was chosen."""
        return (self.answer == "A") == (self.a == "first")


_SETUP = tuple(field.name for field in dataclasses.fields(Setup))
COLUMNS = (
    *_SETUP, "trial", "text", "method", "scope", "amount", "spec", "other", "a", "x", "answer",
    "correct", "seconds",
)  # fmt: skip
_LATER = {"matched": "1"}
"""Columns that old files lack, with what their tests were."""


def version() -> str:
    """Return the version of this package, empty where it is not installed."""
    try:
        return importlib.metadata.version("vits_prune")
    except importlib.metadata.PackageNotFoundError:
        return ""


# Files


def write_trials(trials: Iterable[Trial], path: Path) -> None:
    """Write trials as CSV.

    Raises:
        OSError: the disk does not take the file.
    """
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(
        {name: harmless(cell) for name, cell in _row(trial).items()} for trial in trials
    )
    write_file(path, file.getvalue())


def _row(trial: Trial) -> dict[str, str]:
    setup = {name: getattr(trial.setup, name) for name in _SETUP}
    spec, abx = trial.spec, trial.setup.kind == "abx"
    row = {
        **setup,
        "amounts": json.dumps(setup["amounts"]),
        "matched": int(setup["matched"]),
        "trial": trial.number,
        **{name: getattr(spec, name) for name in ("method", "scope", "amount")},
        "spec": json.dumps(spec.to_dict(), ensure_ascii=False),
        "other": json.dumps(trial.other.to_dict(), ensure_ascii=False) if trial.other else "",
        **{name: getattr(trial, name) for name in ("text", "a", "x", "answer")},
        "correct": int(trial.correct) if abx else "",
        "seconds": round(trial.seconds, 2),
    }
    return {name: str(cell) for name, cell in row.items()}


def harmless(cell: str) -> str:
    """Return a cell that no spreadsheet runs."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _plain(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(_FORMULA) else cell


def read_trials(path: Path) -> list[Trial]:
    """Return the trials in a CSV file that may be hostile.

    Raises:
        InputError: it cannot be read, is too large, or is not such a file.
    """
    shown = path.name[:60]
    again = "give the CSV that the page's blind test wrote"
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown} cannot be read ({reason}): {again}.") from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"{shown} is larger than {_MAX_BYTES >> 20} MiB: {again}.")
    try:
        text = content.decode("utf-8-sig")
        mark = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets have their own
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=mark))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{shown} is not a CSV file in UTF-8: {again}.") from error
    if not rows or any(name not in rows[0] for name in COLUMNS if name not in _LATER):
        raise InputError(f"{shown} does not have the columns of a blind test: {again}.")
    if len(rows) > _MAX_ROWS:
        raise InputError(f"{shown} has more than {_MAX_ROWS:,} rows: {again}.")
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            known = _LATER | row
            found.append(_trial({name: _plain(known[name] or "") for name in COLUMNS}))
        except (ValueError, TypeError, RecursionError) as error:
            why = f"{error}" if isinstance(error, InputError) else f"a value is wrong: {again}."
            raise InputError(f"{shown}, row {number}: {why}") from error
    return found


def _trial(row: dict[str, str]) -> Trial:
    """Return the trial of a row; ValueError if a cell cannot be what it should be."""
    kind, amounts, abx = row["kind"], json.loads(row["amounts"]), row["kind"] == "abx"
    numbers = {name: int(row[name]) for name in ("seed", "order_seed", "planned")}
    spec = PruneSpec.from_dict(json.loads(row["spec"]))
    other = PruneSpec.from_dict(json.loads(row["other"])) if row["other"] else None
    seconds = float(row["seconds"])
    fits = (
        kind in KINDS
        and row["answer"] in ("A", "B")
        and row["a"] in (("original", "pruned") if abx else ("first", "second"))
        and row["x"] in (("A", "B") if abx else ("",))
        and (other is None) == abx
        and math.isfinite(seconds)
        and seconds >= 0
        and isinstance(amounts, list)
        and all(type(one) is float and 0 < one < 1 for one in amounts)
        and float(row["amount"]) == spec.amount
        and (spec.amount > 0 or not abx)
        and row["matched"] in ("0", "1")
        and row["test"].isalnum()
        and row["voice"].isprintable()
    )
    if not fits:
        raise ValueError
    words: dict[str, Any] = {name: row[name] for name in _SETUP}
    words["listener"] = checked_listener(row["listener"])
    others = {"amounts": tuple(amounts), "matched": row["matched"] == "1"}
    setup = Setup(**(words | numbers | others))
    texts = {name: row[name] for name in ("text", "a", "x", "answer")}
    return Trial(setup, int(row["trial"]), spec=spec, other=other, seconds=seconds, **texts)


def checked_listener(name: object) -> str:
    """Return a listener's pseudonym.

    Raises:
        InputError: it is empty or long, or has other characters than letters, digits, - and _.
    """
    found = name.strip() if isinstance(name, str) else ""
    if 0 < len(found) <= MAX_LISTENER and found.replace("-", "").replace("_", "").isalnum():
        return found
    raise InputError(
        f"A listener's name has 1 to {MAX_LISTENER} letters, digits, hyphens and underscores."
    )


# Results


@dataclass(frozen=True, eq=False)
class Group:
    """The answers of several listeners to one question."""

    voice: str
    kind: str
    by_listener: dict[str, Hearing | Preference]
    pooled: Hearing | Preference
    """All answers as if of one listener. Its interval does not hold how listeners differ."""
    matched: bool = True
    """Whether the sounds of a trial had the same level."""

    @property
    def name(self) -> str:
        """What was listened to."""
        pooled = self.pooled
        name = pooled.name if isinstance(pooled, Hearing) else " over ".join(pooled.names)
        return name if self.matched else f"{name}, loudness not matched"


def result_of(trials: Sequence[Trial], like: Trial | None = None) -> Hearing | Preference:
    """Return what the trials of one question say. There must be one at least.

    A preference is for the first side of the trial `like`, by default the first one.
    """
    like = like or trials[0]
    if like.setup.kind == "abx":
        answers = [(trial.spec.amount, trial.correct) for trial in trials]
        row = {amount for trial in trials for amount in trial.setup.amounts}
        return hearing(name_of(like.spec), answers, tuple(row))
    first, second = (side_name(spec) for spec in (like.spec, like.other or like.spec))
    chosen = sum(trial.chose_first == (trial.spec == like.spec) for trial in trials)
    return Preference((first, second), share_of(chosen, len(trials)))


def side_name(spec: PruneSpec) -> str:
    """Return the name of one side of a preference."""
    return name_of(spec, amount=True) if spec.amount or spec.shape else "the original"


def pool(trials: Iterable[Trial]) -> list[Group]:
    """Return the results by voice and question, each listener and all together.

    A trial that comes twice, because files overlap, counts once.
    """
    found = []
    for mine in questions(trials):
        listeners: dict[str, list[Trial]] = defaultdict(list)
        for trial in mine:
            listeners[trial.setup.listener].append(trial)
        ordered = {name: result_of(own, mine[0]) for name, own in sorted(listeners.items())}
        setup = mine[0].setup
        found.append(Group(setup.voice, setup.kind, ordered, result_of(mine), setup.matched))
    return found


def questions(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Return the trials by question; one that comes twice, because files overlap, counts once."""
    groups: dict[Any, list[Trial]] = defaultdict(list)
    for trial in dict.fromkeys(trials):
        groups[_question(trial)].append(trial)
    return list(groups.values())


def _question(trial: Trial) -> tuple[Any, ...]:
    """Return what makes two trials answer the same question."""
    setup = trial.setup
    who = (setup.kind, setup.voice, setup.revision, setup.speaker, setup.matched)
    if setup.kind == "abx":
        return (*who, dataclasses.replace(trial.spec, amount=0.0))
    sides = {json.dumps(one.to_dict()) for one in (trial.spec, trial.other) if one is not None}
    return (*who, tuple(sorted(sides)))
