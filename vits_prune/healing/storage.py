"""What a healing keeps on the disk: tensors with a checksum, checkpoints, the training curve."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import names_in, replaced_file, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEIGHTS_PREFIX = "weights."
"""Prefix of the student's weights in a checkpoint, next to the optimiser's tensors."""
_FORMAT = 1
_KEPT = 2
_MAX_BYTES = 8 << 30
_MAX_FACTS = 1 << 20
_BEST, _SCORED = "best.safetensors", "scored.safetensors"
_NAME = re.compile(r"checkpoint-\d{8}\.safetensors$")
MAX_DRAWN_ROWS = 2_000
"""Of a picture, which shows no more."""
_COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#8d6cc9", "#c98a00", "#d6478f", "#5f6b7a")
_GREY = "#7d8590"
"""Readable on a light and on a dark page: backgrounds are transparent."""

Tensors: TypeAlias = Mapping[str, torch.Tensor]
StoredState: TypeAlias = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors by name, and facts."""
CurveRow: TypeAlias = dict[str, Any]

log = logging.getLogger(__name__)


def write_tensors(path: Path, tensors: Tensors, facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON values to a file that is there whole or as it was before.

    Raises:
        InputError: the disk does not take it.
    """
    plain = _plain(tensors)
    words = json.dumps({"format": _FORMAT, **facts})
    about = {"facts": words, "checksum": _checksum(plain, words)}
    try:
        with replaced_file(path) as beside:
            save_file(plain, beside, metadata=about)
    except (OSError, SafetensorError) as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> InputError:
    """Return the error for a file that the disk does not take."""
    reason = str(getattr(error, "strerror", None) or error).rstrip(".")
    return InputError(
        f"{path.name} could not be written to {path.parent}: {reason}. Free some space."
    )


def read_tensors(path: Path, max_bytes: int) -> StoredState | None:
    """Return what `write_tensors` wrote; None if it is missing, too large, damaged or foreign."""
    try:
        if not path.is_file() or path.stat().st_size > max_bytes:
            return None
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            words = about.get("facts", "")
            if len(words) > _MAX_FACTS:
                return None
            tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
        facts = json.loads(words)
    except (OSError, SafetensorError, ValueError, RuntimeError, RecursionError):
        return None
    known = isinstance(facts, dict) and facts.get("format") == _FORMAT
    whole = known and about.get("checksum") == _checksum(tensors, words)
    return (tensors, facts) if whole else None


def digest(tensors: Tensors, *facts: Any) -> str:
    """Return 32 hexadecimal digits that stand for tensors and JSON values."""
    return _checksum(_plain(tensors), json.dumps(facts))[:32]


def _plain(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _checksum(tensors: Tensors, words: str) -> str:
    found = hashlib.blake2b(words.encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


class Checkpoints:
    """The checkpoints in a folder. Writing raises InputError if the disk is full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """Write a checkpoint, then remove all but the last two."""
        name = f"checkpoint-{step:08}.safetensors"
        write_tensors(self.folder / name, tensors, {**facts, "step": step})
        _remove(*self._paths()[:-_KEPT])

    def save_best(self, step: int, weights: Tensors, facts: Mapping[str, Any]) -> None:
        """Write the weights that were best so far, with their score among the facts."""
        write_tensors(self.folder / _BEST, weights, {**facts, "step": step})

    def save_scored(self, step: int) -> None:
        """Note that the voice of a step has been judged."""
        write_tensors(self.folder / _SCORED, {}, {"step": step})

    def scored(self) -> int:
        """Return the step that was judged last, 0 if none was."""
        found = read_tensors(self.folder / _SCORED, _MAX_FACTS)
        return int(found[1].get("step", 0)) if found else 0

    def newest(self) -> StoredState | None:
        """Return the newest checkpoint that is whole, None if there are no checkpoints.

        Raises:
            DamagedFileError: there are checkpoints, and none of them can be read.
        """
        paths = self._paths()
        found = next(filter(None, (read_tensors(path, _MAX_BYTES) for path in paths[::-1])), None)
        if paths and found is None:
            raise DamagedFileError(
                f"The checkpoints in {self.folder} are damaged: put whole copies in their place, "
                "or start anew in another folder."
            )
        return found

    def best(self) -> StoredState | None:
        """Return the best weights, None if none were judged.

        Raises:
            DamagedFileError: there are such weights, and they cannot be read.
        """
        path = self.folder / _BEST
        found = read_tensors(path, _MAX_BYTES)
        if found is None and path.exists():
            words = "put a whole copy in its place, or remove it to go on without"
            raise DamagedFileError(f"{path} is damaged: {words}.")
        return found

    def kept(self) -> StoredState | None:
        """Return the best weights, or the newest if none can be read as the best.

        Raises:
            DamagedFileError: there are checkpoints, and none of them can be read.
        """
        try:
            if best := self.best():
                return best
        except DamagedFileError as error:
            log.warning("%s The newest is taken.", error)
        newest = self.newest()
        if newest is None:
            return None
        start, tensors = len(WEIGHTS_PREFIX), newest[0].items()
        return {
            name[start:]: one for name, one in tensors if name.startswith(WEIGHTS_PREFIX)
        }, newest[1]

    def require(self, facts: Mapping[str, Any], owner: Mapping[str, Any]) -> None:
        """Raise InputError if a checkpoint with such facts is of another healing.

        `owner` is what a healing writes under "recordings", "belongs" and "processes".
        """
        if facts.get("recordings", "") != owner["recordings"]:
            raise InputError(
                f"The checkpoints in {self.folder} were made with other recordings: give the "
                "recordings that the healing began with, or another folder."
            )
        if any(facts.get(name) != owner[name] for name in ("belongs", "processes")):
            raise InputError(
                f"The checkpoints in {self.folder} belong to another healing (voice, speaker, "
                "texts, plan or number of processes): give the same options, or another folder."
            )

    def clear(self) -> None:
        """Remove what an earlier healing left."""
        _remove(*self._paths(), self.folder / _BEST, self.folder / _SCORED)

    def _paths(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return [self.folder / name for name in sorted(filter(_NAME.match, names_in(self.folder)))]


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


@dataclass(frozen=True)
class TrainingStep:
    """One step of the training, for whoever watches it.

    `of` is None until the minutes have been turned into steps. The losses have their weighted sum
    as "total". The seconds count from the begin of the healing, over all its runs.
    """

    step: int
    of: int | None
    losses: Mapping[str, float]
    seconds: float


class Curve:
    """One row for `every` so many steps, with the mean of each loss, and what was measured.

    `signature` is that of all that was measured, in columns that begin with measured_.
    """

    def __init__(self, every: int = 10, signature: str = "") -> None:
        self._every, self.signature = every, signature
        self._losses: list[Mapping[str, float]] = []
        self.rows: list[CurveRow] = []

    def add(self, made: TrainingStep) -> bool:
        """Count a step in; return whether that completed a row."""
        self._losses.append(made.losses)
        if made.step % self._every and made.step != made.of:
            return False
        row = {"step": made.step, "seconds": round(made.seconds, 1)}
        for name in dict.fromkeys(name for losses in self._losses for name in losses):
            total = sum(losses.get(name, 0.0) for losses in self._losses)
            row[name] = round(total / len(self._losses), 5)
        self.rows.append(row)
        self._losses = []
        return True

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Add what was measured of the voice of a step."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1] |= figures

    def write(self, path: Path) -> None:
        """Write the curve as CSV, whole or not at all; raise InputError if the disk is full."""
        rows: list[dict[str, Any]] = [dict(row) for row in self.rows]
        for row in rows:
            if self.signature and any(name.startswith("measured_") for name in row):
                row["signature"] = self.signature
        columns = dict.fromkeys(("step", "seconds", *(name for row in rows for name in row)))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)
        try:
            write_file(path, text.getvalue())
        except OSError as error:
            raise not_written(path, error) from error

    @classmethod
    def read(
        cls, path: Path, step: int | None = None, every: int = 10, max_rows: int | None = None
    ) -> Curve:
        """Return the curve that `write` wrote, up to a step; an empty one if there is no file.

        Raises:
            DamagedFileError: there is a file, and it cannot be read as a curve.
        """
        curve = cls(every)
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                table = csv.DictReader(file)
                if "step" not in (table.fieldnames or ()):
                    raise ValueError("no column of steps")
                for cells in table:
                    signature = cells.pop("signature", "")
                    row = {name: float(cell) for name, cell in cells.items() if name and cell}
                    if len(curve.rows) == max_rows or (step is not None and row["step"] > step):
                        break
                    curve.rows.append({**row, "step": int(row["step"])})
                    curve.signature = signature or curve.signature
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, OverflowError, csv.Error) as error:
            words = "put a whole copy in its place, or move it elsewhere to go on without it"
            raise DamagedFileError(
                f"{path} is damaged, or is not a training curve: {words}."
            ) from error
        return curve


def curve_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Draw losses on a logarithmic scale, and below them each metric; InputError for no rows."""
    from matplotlib.figure import Figure

    if not rows:
        raise InputError("There is nothing to draw: no step was made.")
    names = dict.fromkeys(name for row in rows for name in row)
    metrics = [name for name in names if name.startswith("measured_")]
    losses = [name for name in names if name not in ("step", "seconds", "total", *metrics)]
    size, heights = (8.0, 5.6 if metrics else 3.6), (3, 2) if metrics else (1,)
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="none")
    grid = figure.add_gridspec(len(heights), max(1, len(metrics)), height_ratios=heights)
    axis, shown = figure.add_subplot(grid[0, :]), rows[:: math.ceil(len(rows) / MAX_DRAWN_ROWS)]
    for number, name in enumerate(losses):
        drawn = [row for row in shown if isinstance(row.get(name), float) and row[name] > 0]
        points = [(row["step"], row[name]) for row in drawn]
        if points:
            axis.plot(*zip(*points, strict=True), label=name, **_line(number))
    axis.set(yscale="log", ylabel="loss", xlabel="" if metrics else "step")
    axis.set_title(title, loc="left", fontsize=9, color=_GREY)
    if losses:
        axis.legend(frameon=False, fontsize=7, labelcolor=_GREY, ncols=4)
    _style(axis)
    for number, name in enumerate(metrics):
        axis = figure.add_subplot(grid[1, number])
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, **_line(number))
        axis.set(xlabel="step")
        axis.set_title(name.removeprefix("measured_"), loc="left", fontsize=8, color=_GREY)
        _style(axis)
    return figure


def save_curve(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the curve as SVG; the same rows give the same file. InputErrors as for a figure."""
    import matplotlib

    figure = curve_figure(rows, title)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "vits_prune"}), replaced_file(path) as beside:
            figure.savefig(beside, format="svg", metadata={"Date": None})
    except OSError as error:
        raise not_written(path, error) from error


def _line(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "linewidth": 1.1}


def _style(axis: Axes) -> None:
    axis.set_facecolor("none")
    axis.tick_params(which="both", colors=_GREY, labelsize=8)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_color(_GREY)
    for spine in axis.spines.values():
        spine.set(color=_GREY, alpha=0.4)
