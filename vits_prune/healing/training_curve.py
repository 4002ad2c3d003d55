"""The course of a healing: one row a step that is kept, as CSV, and as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vits_prune.errors import DamagedFileError, InputError
from vits_prune.healing.plan import TrainingStep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ROWS = 2_000
"""Rows a curve is thinned to where there are more: a picture shows no more either."""
_COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#8d6cc9", "#c98a00", "#d6478f", "#5f6b7a")
_GREY = "#7d8590"
"""Reads on a light and on a dark page: backgrounds are transparent."""

Row = dict[str, Any]


class Curve:
    """Losses, averaged over some steps a row, and what was measured at checkpoints.

    Args:
        every: steps of a row.
    """

    def __init__(self, every: int = 10) -> None:
        self._every = every
        self._sums: dict[str, float] = {}
        self._count = 0
        self.rows: list[Row] = []

    def add(self, told: TrainingStep) -> bool:
        """Count a step in; whether that made a row."""
        for name, value in told.losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if told.step % self._every and told.step != told.of:
            return False
        row: Row = {"step": told.step, "seconds": round(told.seconds, 1)}
        self.rows.append(
            row | {name: round(total / self._count, 5) for name, total in self._sums.items()}
        )
        self._sums, self._count = {}, 0
        return True

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """Add what was measured of the voice of a step."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1] |= figures

    def columns(self) -> list[str]:
        """Step and seconds first, then in the order in which they came."""
        return list(
            dict.fromkeys(("step", "seconds", *(name for row in self.rows for name in row)))
        )

    def write(self, path: Path) -> None:
        """As CSV, whole or not at all.

        Raises:
            InputError: the disk does not take it.
        """
        beside = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.columns(), restval="")
                writer.writeheader()
                writer.writerows(self.rows)
            beside.replace(path)
        except OSError as error:
            raise InputError(
                f"{path.name} could not be written to {path.parent}: {error.strerror or error}. Free some space."
            ) from error

    @classmethod
    def read(
        cls, path: Path, step: int | None = None, every: int = 10, most: int | None = None
    ) -> Curve:
        """Return the curve in a file that `write` wrote, an empty one where there is no file.

        Args:
            path: the file.
            step: the last step to read, for a healing that goes on from there; None for all.
            every: steps of a row.
            most: rows to read at most; None for all.

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
                    if len(curve.rows) == most or (step is not None and row["step"] > step):
                        break
                    curve.rows.append({**row, "step": int(row["step"])})
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, OverflowError, csv.Error) as error:
            raise DamagedFileError(
                f"{path} is damaged, or is not the course of a healing: put a whole copy in its place, or move it elsewhere to go on "
                "without it."
            ) from error
        return curve


def curve_figure(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Losses against steps on a logarithmic scale, and below them what was measured, one small plot a metric.

    Raises:
        InputError: there are no rows.
    """
    from matplotlib.figure import Figure

    if not rows:
        raise InputError("There is nothing to draw: no step was made.")
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in ("step", "seconds", "total")
    ]
    metrics = [name for name in names if name.startswith("measured_")]
    losses = [name for name in names if name not in metrics]
    figure = Figure(
        figsize=(8.0, 3.6 + (2.0 if metrics else 0.0)),
        dpi=110,
        layout="constrained",
        facecolor="none",
    )
    grid = figure.add_gridspec(
        2 if metrics else 1, max(1, len(metrics)), height_ratios=(3, 2) if metrics else (1,)
    )
    axis = figure.add_subplot(grid[0, :])
    thin = max(1, math.ceil(len(rows) / MAX_ROWS))
    for i, name in enumerate(losses):
        points = [
            (row["step"], row[name])
            for row in rows[::thin]
            if isinstance(row.get(name), float) and row[name] > 0
        ]
        if points:
            axis.plot(
                *zip(*points, strict=True),
                label=name,
                color=_COLOURS[i % len(_COLOURS)],
                linewidth=1.1,
            )
    axis.set(yscale="log", ylabel="loss", xlabel="" if metrics else "step")
    axis.set_title(title, loc="left", fontsize=9, color=_GREY)
    if losses:
        axis.legend(frameon=False, fontsize=7, labelcolor=_GREY, ncols=4)
    axes = [axis]
    for i, name in enumerate(metrics):
        below = figure.add_subplot(grid[1, i])
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        below.plot(
            *zip(*points, strict=True),
            color=_COLOURS[i % len(_COLOURS)],
            marker="o",
            markersize=3,
            linewidth=1.1,
        )
        below.set(xlabel="step")
        below.set_title(name.removeprefix("measured_"), loc="left", fontsize=8, color=_GREY)
        axes.append(below)
    for one in axes:
        _style(one)
    return figure


def save_figure(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw the curve as SVG. The same rows give the same file.

    Raises:
        InputError: there are no rows, or the disk does not take it.
    """
    import matplotlib

    figure = curve_figure(rows, title)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "vits_prune"}):
            figure.savefig(path, metadata={"Date": None})
    except OSError as error:
        raise InputError(
            f"{path.name} could not be written to {path.parent}: {error.strerror or error}. Free some space."
        ) from error


def _style(axis: Any) -> None:
    axis.set_facecolor("none")
    axis.tick_params(which="both", colors=_GREY, labelsize=8)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_color(_GREY)
    for spine in axis.spines.values():
        spine.set_color(_GREY)
        spine.set_alpha(0.4)
