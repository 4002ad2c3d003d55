"""Charts of sweeps, sensitivities and budgets, as matplotlib figures or as SVG and PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vits_prune.errors import InputError
from vits_prune.measure.quality import METRICS, Metric
from vits_prune.study.budget import Candidate, Solution
from vits_prune.study.knee import LIMITS, Limit, last_before
from vits_prune.study.sweep_grid import subject

COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#8d6cc9", "#c98a00", "#d6478f")
GREY = "#7d8590"
"""Legible on a light and on a dark page: backgrounds are transparent."""
_REACH = 6
"""How many times its limit a metric may go before it is drawn as an arrow at the edge."""
Rows = Sequence[Mapping[str, Any]]


def curve_figure(rows: Rows, metric: str, limit: Limit | None = None) -> Figure:
    """Draw a metric against sparsity: a line with 95% intervals for each curve.

    A band shows the noise floor, and a ring the knee of each curve.

    Args:
        rows: of a sweep, in any order.
        metric: name of the metric.
        limit: what the knee keeps; None for the metric's own in LIMITS, or if there is none, for
            the last point without a difference.

    Raises:
        InputError: no row has a value of this metric.
    """
    limit = limit or next((one for one in LIMITS if one.metric == metric), None)
    found, what = curves(rows, metric), METRICS[metric]
    figure = empty_figure(4.2)
    axis = styled(figure.subplots())
    _draw_floor(axis, [row for curve in found.values() for row in curve], what)
    for i, (name, curve) in enumerate(found.items()):
        colour = COLOURS[i % len(COLOURS)]
        x, y, low, high = (
            _column(curve, name) for name in ("sparsity", metric, f"{metric}_low", f"{metric}_high")
        )
        spread = np.abs([y - np.where(np.isnan(end), y, end) for end in (low, high)])
        line = axis.errorbar(100 * x, y, spread, label=name, color=colour, capsize=2)
        line[0].set(marker="o", markersize=3.5, linewidth=1.4)
        at = knee_of(curve, metric, limit)
        if at is not None:
            name = f"knee: amount {at['amount']:g}"
            _draw_ring(axis, 100 * at["sparsity"], at[metric], colour, name)
    axis.set_xlabel("zeros among the prunable weights of the whole voice (%)")
    axis.set_ylabel(title_of(what))
    kept = f"{limit.metric} within {limit.change:+g}" if limit else "no difference found"
    set_title(axis, f"{rows[0]['voice']}: {what.title}. Rings: last point with {kept}")
    axis.legend(frameon=False, fontsize=8, labelcolor=GREY)
    return figure


def sensitivity_figure(rows: Rows, metric: str) -> Figure:
    """Draw a heat map of a metric: what was pruned alone against how much; darker is worse.

    A dot marks a difference that is claimed.

    Args:
        rows: of a sensitivity.
        metric: name of the metric; unless it is a distance, the change from the original is drawn.

    Raises:
        InputError: no row has a value of this metric.
    """
    what = METRICS[metric]
    column = metric if what.kind == "distance" else f"{metric}_difference"
    if all(row.get(column) is None for row in rows):
        raise _not_measured(metric)
    names = list(dict.fromkeys(map(subject, rows)))
    amounts = sorted({row["amount"] for row in rows})
    table = np.full((len(names), len(amounts)), np.nan)
    figure = empty_figure(1.4 + 0.24 * max(5, len(names)))
    axis = styled(figure.subplots())
    for row in rows:
        y, x = names.index(subject(row)), amounts.index(row["amount"])
        table[y, x] = np.nan if row.get(column) is None else row[column]
        if row.get(f"{metric}_verdict") in ("worse", "better", "higher", "lower"):
            axis.plot(x + 0.38, y, marker="o", markersize=3, color=GREY)
    largest = float(np.nanmax(np.abs(table))) or 1.0
    colours, least, most = {
        "lower": ("Reds", 0.0, largest),
        "higher": ("Reds_r", -largest, 0.0),
        "neither": ("RdBu_r", -largest, largest),
    }[what.better]
    image = axis.imshow(table, cmap=colours, vmin=least, vmax=most, aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            dark = sum(image.cmap(image.norm(value))[:3]) <= 1.5
            text = axis.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=7)
            text.set_color("white" if dark else "black")
    axis.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("amount")
    title = title_of(what) + ("" if what.kind == "distance" else ", change from the original")
    set_title(axis, f"{rows[0]['voice']}, one at a time: {title}. Dots: a difference is claimed")
    return figure


def pareto_figure(solution: Solution) -> Figure:
    """Draw what is lost against the cost of all that was tried for a budget.

    Each limited metric has a row, with time on the left and bytes on the right. Limits are lines,
    and the chosen candidate has a ring.
    """
    budget = solution.budget
    figure = empty_figure(3.2 * len(budget.judged), 9.0)
    axes = figure.subplots(len(budget.judged), 2, squeeze=False, sharex="col")
    for pair, limit in zip(axes, budget.judged, strict=True):
        what = METRICS[limit.metric]
        for axis, title, most in (
            (pair[0], "time over the original's", budget.max_latency_ratio),
            (pair[1], "MB (lossless file)", budget.max_mb),
        ):
            _draw_candidates(axis, solution, limit, timed=axis is pair[0])
            if most is not None:
                axis.axvline(most, color=GREY, linestyle="--", linewidth=1)
            style = "--" if budget.quality else ":"
            axis.axhline(limit.change, color=GREY, linestyle=style, linewidth=1)
            axis.set_xlabel(title, fontsize=8)
            kind = "distance" if what.kind == "distance" else "change"
            axis.set_ylabel(f"{what.title}, {kind}", fontsize=8)
            styled(axis)
    legend = {"loc": "outside upper left", "ncols": 4, "frameon": False, "fontsize": 8}
    figure.legend(*axes[0][0].get_legend_handles_labels(), labelcolor=GREY, **legend)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG and as PNG, the same bytes for the same figure; return the files.

    Raises:
        OSError: the disk does not take them.
    """
    written = [folder / f"{name}.svg", folder / f"{name}.png"]
    with matplotlib.rc_context({"svg.hashsalt": "vits_prune"}):
        figure.savefig(written[0], metadata={"Date": None})
        figure.savefig(written[1])
    return written


def save_plots(rows: Rows, folder: Path, *, sensitivity: bool = False) -> list[Path]:
    """Draw every metric that was measured, and return the files.

    Args:
        rows: of a sweep.
        folder: where to write.
        sensitivity: whether to draw heat maps instead of curves.

    Raises:
        OSError: the disk does not take them.
    """
    draw, name = (sensitivity_figure, "sensitivity") if sensitivity else (curve_figure, "curve")
    return [
        path
        for metric in METRICS
        if any(row.get(metric) is not None for row in rows)
        for path in save_figure(draw(rows, metric), folder, f"{name}-{metric}")
    ]


def curves(rows: Rows, metric: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows that have the metric by curve, each curve sorted by amount.

    A curve has one method, scope, set of parts and set of options.

    Raises:
        InputError: no row has the metric.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    methods, options = {row["method"] for row in rows}, {row.get("options") for row in rows}
    for row in sorted(rows, key=lambda row: row["amount"]):
        if row.get(metric) is not None:
            method = f"{row['method']}, " if len(methods) > 1 else ""
            more = f", {row['options']}" if len(options) > 1 and row.get("options") else ""
            found.setdefault(f"{method}{row['scope']}, {row['parts']}{more}", []).append(row)
    if not found:
        raise _not_measured(metric)
    return found


def knee_of(curve: Rows, metric: str, limit: Limit | None = None) -> Mapping[str, Any] | None:
    """Return the last row before the limit breaks, or if there is none, before a difference."""
    if limit:
        return last_before(curve, limit.breaks)
    different = ("worse", "higher", "lower")
    return last_before(curve, lambda row: row.get(f"{metric}_verdict") in different)


def _draw_floor(axis: Axes, rows: Rows, what: Metric) -> None:
    """Draw where the original is with other seeds."""
    row = next((row for row in rows if row.get(f"{what.name}_floor_low") is not None), {})
    own = {"voice": row.get(f"{what.name}_original"), "distance": 0.0, "shift": what.neutral}
    base = own[what.kind]
    if row and base is not None:
        low, high = (base + row[f"{what.name}_floor_{end}"] for end in ("low", "high"))
        label = "noise floor: the original, other seeds"
        axis.axhspan(low, high, color=GREY, alpha=0.25, linewidth=0, label=label)


def _draw_candidates(axis: Axes, solution: Solution, limit: Limit, *, timed: bool) -> None:
    labels: set[str] = set()
    chosen = solution.chosen.quality.get(limit.metric)
    far = 0.0 if chosen is None or math.isnan(chosen.value) else 1.5 * abs(chosen.value)
    # A hopeless candidate would flatten all others.
    reach = max(_REACH * abs(limit.change), far) or math.inf
    for one in solution.tried:
        interval = one.quality.get(limit.metric)
        if one.stage == "cut" or interval is None or math.isnan(interval.value):
            continue
        ratio = one.latency_ratio
        x = ratio.median if timed else one.mb
        x_spread = [[x - ratio.low], [ratio.high - x]] if timed else None
        y, low, high = (
            max(-reach, min(reach, interval.value if end is None else end))
            for end in (interval.value, interval.low, interval.high)
        )
        y_spread = [[max(0.0, y - low)], [max(0.0, high - y)]]
        label, colour = _kind(one, solution)
        beyond = "^" if interval.value > 0 else "v"
        axis.errorbar(
            [x],
            [y],
            xerr=x_spread,
            yerr=y_spread,
            label=None if label in labels else label,
            color=colour,
            marker="o" if abs(interval.value) <= reach else beyond,
            markersize=4,
            linewidth=0.9,
            linestyle="",
        )
        labels.add(label)
        if one is solution.chosen:
            _draw_ring(axis, x, y, colour, "chosen")


def _kind(candidate: Candidate, solution: Solution) -> tuple[str, str]:
    """Return the label and the colour of a candidate."""
    if candidate.stage == "verified":
        return "on held-out sentences", COLOURS[2]
    if solution.budget.broken(candidate):
        return "breaks a limit", COLOURS[1]
    return "keeps all limits", COLOURS[0]


def _draw_ring(axis: Axes, x: float, y: float, colour: str, label: str) -> None:
    ring = axis.scatter([x], [y], s=120, label=label, zorder=4)
    ring.set(facecolor="none", edgecolor=colour, linewidth=1.8)


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=float)


def title_of(what: Metric) -> str:
    """Return the title of a metric with its unit."""
    return what.title + (f" ({what.unit})" if what.unit else "")


def _not_measured(metric: str) -> InputError:
    return InputError(f"There is no value of {str(metric)[:40]} to draw: it was not measured.")


def empty_figure(height: float, width: float = 8.0) -> Figure:
    """Return a transparent figure, made without pyplot, whose global list would keep it alive."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="none")


def set_title(axis: Axes, text: str) -> None:
    """Set the title of a picture, above its left edge."""
    axis.set_title(text, loc="left", fontsize=9, color=GREY)


def styled(axis: Axes) -> Axes:
    """Make axes readable on a light and on a dark page."""
    axis.set_facecolor("none")
    axis.tick_params(colors=GREY, labelsize=8)
    axis.xaxis.label.set_color(GREY)
    axis.yaxis.label.set_color(GREY)
    for spine in axis.spines.values():
        spine.set_color(GREY)
        spine.set_alpha(0.4)
    return axis
