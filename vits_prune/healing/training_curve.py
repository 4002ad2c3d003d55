"""The training curve: losses and what was measured at checkpoints, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.files import write_file
from vits_prune.healing.plan import TrainingStep
from vits_prune.healing.storage import not_written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 2_000
"""Of a picture, which shows no more."""
_COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#8d6cc9", "#c98a00", "#d6478f", "#5f6b7a")
_GREY = "#7d8590"
"""Readable on a light and on a dark page: backgrounds are transparent."""

CurveRow: TypeAlias = dict[str, Any]


class Curve:
    """One row for `every` so many steps, with the mean of each loss, and what was measured."""

    def __init__(self, every: int = 10) -> None:
        self._every = every
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
        columns = dict.fromkeys(("step", "seconds", *(name for row in self.rows for name in row)))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(columns), restval="")
        writer.writeheader()
        writer.writerows(self.rows)
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
            with path.open(newline="", encoding="utf-8") as file:
                table = csv.DictReader(file)
                if "step" not in (table.fieldnames or ()):
                    raise ValueError("no column of steps")
                for cells in table:
                    row = {name: float(cell) for name, cell in cells.items() if name and cell}
                    if len(curve.rows) == max_rows or (step is not None and row["step"] > step):
                        break
                    curve.rows.append({**row, "step": int(row["step"])})
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
    axis, shown = figure.add_subplot(grid[0, :]), rows[:: math.ceil(len(rows) / MAX_ROWS)]
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


def save_figure(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the curve as SVG; the same rows give the same file. InputErrors as for a figure."""
    import matplotlib

    figure = curve_figure(rows, title)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "vits_prune"}):
            figure.savefig(path, metadata={"Date": None})
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
