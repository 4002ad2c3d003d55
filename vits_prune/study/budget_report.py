"""The files of a solution: the voice, everything that was tried as JSON and CSV, and the picture of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vits_prune.errors import InputError
from vits_prune.files import write_file
from vits_prune.measure.quality import METRICS
from vits_prune.study.budget import Budget, Candidate, Solution
from vits_prune.study.knee import Limit
from vits_prune.study.sweep_store import csv_of, plain
from vits_prune.voices.saved import save_voice
from vits_prune.voices.sparse_file import write_sparse

_GREY, _BLUE, _RED, _GREEN = "#7d8590", "#2f7ed8", "#e4572e", "#2a9d6f"
"""Read on a light and on a dark page: backgrounds are transparent."""
_LIMITS_SHOWN = 6
"""How many times its limit a metric may go before it is drawn at the picture's edge, as an arrow."""


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        InputError: it does, or it is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: give a folder that is new or empty.")


def save_solution(solution: Solution, folder: Path) -> list[Path]:
    """Write the voice, budget.json, tried.csv, pareto.svg and pareto.png; and where zeros were needed, the sparse file.

    Raises:
        InputError: the disk does not take them, or the folder is not empty.
    """
    check_empty(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [save_voice(solution.voice, folder / "voice")]
        if solution.chosen.file == "sparse":
            written.append(folder / "voice.sparse.safetensors")
            write_sparse(
                {name: tensor.float() for name, tensor in solution.voice.model.named_parameters()},
                written[-1],
            )
        report = (
            json.dumps(plain(solution.to_dict()), indent=2, ensure_ascii=False, allow_nan=False)
            + "\n"
        )
        rows = [
            plain(one.to_row(solution.budget)) | {"chosen": one is solution.chosen}
            for one in solution.tried
        ]
        for name, content in (("budget.json", report.encode()), ("tried.csv", csv_of(rows))):
            write_file(folder / name, content)
            written.append(folder / name)
        figure = pareto_figure(solution)
        for kind in ("svg", "png"):
            written.append(folder / f"pareto.{kind}")
            with matplotlib.rc_context({"svg.hashsalt": "vits_prune"}):
                figure.savefig(written[-1], metadata={"Date": None} if kind == "svg" else None)
    except OSError as error:
        raise InputError(
            f"The files could not be written to {folder}: {error.strerror or error}."
        ) from error
    return written


def pareto_figure(solution: Solution) -> Figure:
    """What is lost against what it costs: a row a metric, time on the left, bytes on the right; limits as lines, the chosen one ringed."""
    budget, shown = solution.budget, [one for one in solution.tried if one.stage != "cut"]
    figure = Figure(
        figsize=(9.0, 3.2 * len(budget.judged)), dpi=110, layout="constrained", facecolor="none"
    )
    axes = figure.subplots(len(budget.judged), 2, squeeze=False, sharex="col")
    costs = (
        ("latency", "time over the original's", budget.max_latency_ratio),
        ("size", "MB (lossless file)", budget.max_mb),
    )
    for row, limit in zip(axes, budget.judged, strict=True):
        for axis, (cost, title, most) in zip(row, costs, strict=True):
            _points(axis, solution, shown, limit, cost)
            _lines(axis, limit, most, binding=bool(budget.quality))
            axis.set_xlabel(title)
            axis.set_ylabel(
                f"{METRICS[limit.metric].title}, {'distance' if METRICS[limit.metric].kind == 'distance' else 'change'}"
            )
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=_GREY,
    )
    return figure


def _points(
    axis: Axes, solution: Solution, shown: list[Candidate], limit: Limit, cost: str
) -> None:
    told, reach = set(), _reach(solution, limit)
    for one in shown:
        interval = one.quality.get(limit.metric)
        if interval is None or math.isnan(interval.value):
            continue
        x = one.latency_ratio.median if cost == "latency" else one.mb
        wide = (
            [[x - one.latency_ratio.low], [one.latency_ratio.high - x]]
            if cost == "latency"
            else None
        )
        y, low, high = (
            max(-reach, min(reach, interval.value if end is None else end))
            for end in (interval.value, interval.low, interval.high)
        )
        name, colour = _kind(one, solution.budget)
        more = {"label": name} if name not in told else {}
        told.add(name)
        marker = (
            "o" if abs(interval.value) <= reach else "^" if interval.value > 0 else "v"
        )  # an arrow: it lies beyond the picture
        more |= {
            "color": colour,
            "marker": marker,
            "markersize": 4,
            "linewidth": 0.9,
            "linestyle": "",
        }
        axis.errorbar([x], [y], yerr=[[max(0.0, y - low)], [max(0.0, high - y)]], xerr=wide, **more)
        if one is solution.chosen:
            ring = {
                "marker": "o",
                "s": 130,
                "facecolors": "none",
                "edgecolors": colour,
                "linewidths": 1.8,
                "zorder": 4,
            }
            axis.scatter([x], [y], label="chosen", **ring)


def _reach(solution: Solution, limit: Limit) -> float:
    """How far from nothing lost the picture goes: a hopeless candidate would flatten all others."""
    chosen = solution.chosen.quality.get(limit.metric)
    far = 0.0 if chosen is None or math.isnan(chosen.value) else 1.5 * abs(chosen.value)
    return max(_LIMITS_SHOWN * abs(limit.change), far) or math.inf


def _kind(candidate: Candidate, budget: Budget) -> tuple[str, str]:
    if candidate.stage == "verified":
        return "on held-out sentences", _GREEN
    return ("keeps all limits", _BLUE) if not budget.broken(candidate) else ("breaks a limit", _RED)


def _lines(axis: Axes, limit: Limit, most: float | None, *, binding: bool) -> None:
    if most is not None:
        axis.axvline(most, color=_GREY, linestyle="--", linewidth=1)
    axis.axhline(limit.change, color=_GREY, linestyle="--" if binding else ":", linewidth=1)
    axis.set_facecolor("none")
    axis.tick_params(colors=_GREY, labelsize=8)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_color(_GREY)
        label.set_fontsize(8)
    for spine in axis.spines.values():
        spine.set_color(_GREY)
        spine.set_alpha(0.4)
