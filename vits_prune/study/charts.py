"""Charts of sweeps, sensitivities and budgets, as matplotlib figures or as SVG and PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vits_prune.errors import InputError
from vits_prune.files import replaced_file
from vits_prune.measure.quality import METRICS, Metric
from vits_prune.study.budget import Solution
from vits_prune.study.knee import LIMITS, Limit, last_before
from vits_prune.study.listening import Hearing
from vits_prune.study.listening_store import Group
from vits_prune.study.sweep_grid import subject
from vits_prune.study.sweep_store import check_signatures

COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#8d6cc9", "#c98a00", "#d6478f")
GREY = "#7d8590"
"""Legible on a light and on a dark page: backgrounds are transparent."""
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": GREY}
_REACH = 6
"""How many times its limit a metric may go before it is drawn as an arrow at the edge."""
Rows = Sequence[Mapping[str, Any]]


def curve_figure(rows: Rows, metric: str, limit: Limit | None = None) -> Figure:
    """Draw a metric against sparsity: a line with 95% intervals for each curve.

    A band shows the noise floor, and a ring the knee of each curve: the last point within `limit`,
    or within that of LIMITS, or else without a difference.

    Raises:
        InputError: no row has a value of this metric, or the rows have several signatures.
    """
    check_signatures(rows)
    limit = limit or next((one for one in LIMITS if one.metric == metric), None)
    found, what = curves(rows, metric), METRICS[metric]
    figure = empty_figure(4.2)
    axis = styled(figure.subplots())
    _draw_floor(axis, [row for curve in found.values() for row in curve], what)
    for i, (name, curve) in enumerate(found.items()):
        colour = COLOURS[i % len(COLOURS)]
        names = ["sparsity", metric, f"{metric}_low", f"{metric}_high"]
        x, y, *ends = pd.DataFrame(list(curve)).reindex(columns=names).astype(float).to_numpy().T
        spread = np.abs([y - np.where(np.isnan(end), y, end) for end in ends])
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
    axis.legend(**_LEGEND)
    return figure


def sensitivity_figure(rows: Rows, metric: str) -> Figure:
    """Draw a heat map of a metric: what was pruned alone against how much; darker is worse.

    A dot marks a difference that is claimed. Unless the metric is a distance, its change from the
    original is drawn.

    Raises:
        InputError: no row has a value of this metric, or the rows have several signatures.
    """
    check_signatures(rows)
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
        table[y, x] = row.get(column)  # None becomes NaN
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
            colour = "white" if sum(image.cmap(image.norm(value))[:3]) <= 1.5 else "black"
            axis.text(x, y, f"{value:.3g}", color=colour, ha="center", va="center", fontsize=7)
    axis.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("amount")
    title = title_of(what) + ("" if what.kind == "distance" else ", change from the original")
    set_title(axis, f"{rows[0]['voice']}, one at a time: {title}. Dots: a difference is claimed")
    return figure


def pareto_figure(solution: Solution) -> Figure:
    """Draw what all candidates lose against their time and size; limits are lines.

    Each limited metric has a row. The chosen candidate has a ring.
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
    handles = axes[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper left", ncols=4, **_LEGEND)
    return figure


def listening_figure(groups: Sequence[Group]) -> Figure:
    """Draw the right answers of blind ABX tests against the amount, all listeners together.

    Bars are Wilson intervals, bands hold 95% of the fitted curve, and a tick at the bottom is the
    threshold of one listener.

    Raises:
        InputError: no group is of an ABX test.
    """
    figure = empty_figure(4.2)
    axis, drawn = styled(figure.subplots()), 0
    for group in groups:
        found = group.pooled
        if not isinstance(found, Hearing):
            continue
        colour = COLOURS[drawn % len(COLOURS)]
        amount, mean, low, high = 100 * np.array(found.posterior.curve()).T
        label, drawn = f"{group.voice}: {group.name}, {found.range_words()}", drawn + 1
        axis.fill_between(amount, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(amount, mean, color=colour, linewidth=1.4, label=label)
        for at, share in found.shares.items():
            ends = [[share.value - share.low], [share.high - share.value]]
            y, spread = 100 * share.value, 100 * np.array(ends)
            axis.errorbar([100 * at], [y], spread, color=colour, marker="o", markersize=3, lw=0.7)
        own = [one.posterior.threshold().value for one in group.by_listener.values()
               if isinstance(one, Hearing)]  # fmt: skip
        axis.plot(100 * np.array(own), [1] * len(own), "|", color=colour, markersize=10)
    if not drawn:
        raise InputError("There is no ABX test to draw: these files hold preferences alone.")
    axis.axhline(50, color=GREY, linestyle=":", linewidth=1)
    axis.set(xlim=(0, 100), ylim=(0, 102), xlabel="amount (%)", ylabel="right answers (%)")
    set_title(axis, "Blind ABX. Bars and bands: 95%; ticks: thresholds of single listeners")
    axis.legend(frameon=False, fontsize=8, labelcolor=GREY, loc="lower right")
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as SVG and as PNG, the same bytes for the same figure; return the files."""
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    with matplotlib.rc_context({"svg.hashsalt": "vits_prune"}):
        with replaced_file(svg) as beside:
            figure.savefig(beside, format="svg", metadata={"Date": None})
        with replaced_file(png) as beside:
            figure.savefig(beside, format="png")
    return [svg, png]


def save_plots(rows: Rows, folder: Path, *, sensitivity: bool = False) -> list[Path]:
    """Write a curve, or a heat map, of every metric that was measured; return the files."""
    draw, name = (sensitivity_figure, "sensitivity") if sensitivity else (curve_figure, "curve")
    return [
        path
        for metric in METRICS
        if any(row.get(metric) is not None for row in rows)
        for path in save_figure(draw(rows, metric), folder, f"{name}-{metric}")
    ]


def curves(rows: Rows, metric: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows that have the metric by curve, each curve sorted by amount.

    A curve has one method, scope, set of parts and set of options. Raises InputError if no row has
    the metric.
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
        ends = (interval.value, interval.low, interval.high)
        values = [interval.value if end is None else end for end in ends]
        y, low, high = np.clip(values, -reach, reach)
        y_spread = [[max(0.0, y - low)], [max(0.0, high - y)]]
        broken = bool(solution.budget.broken(one))
        label, colour = ("keeps all limits", "breaks a limit")[broken], COLOURS[broken]
        if one.stage == "verified":
            label, colour = "on held-out sentences", COLOURS[2]
        beyond = "^" if interval.value > 0 else "v"
        bars = axis.errorbar([x], [y], y_spread, x_spread, color=colour, linestyle="", linewidth=1)
        bars[0].set(marker="o" if abs(interval.value) <= reach else beyond, markersize=4)
        bars.set_label("_" if label in labels else label)
        labels.add(label)
        if one is solution.chosen:
            _draw_ring(axis, x, y, colour, "chosen")


def _draw_ring(axis: Axes, x: float, y: float, colour: str, label: str) -> None:
    ring = axis.scatter([x], [y], s=120, label=label, zorder=4)
    ring.set(facecolor="none", edgecolor=colour, linewidth=1.8)


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
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_color(GREY)
    axis.spines[:].set(color=GREY, alpha=0.4)
    return axis
