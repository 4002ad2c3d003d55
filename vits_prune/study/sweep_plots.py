"""Pictures of a sweep, from its rows: quality against sparsity, and sensitivity as a heat map. SVG and PNG on disk, or figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vits_prune.errors import InputError
from vits_prune.measure.quality import METRICS
from vits_prune.study.knee import LIMITS, Limit, last_before
from vits_prune.study.sweep_grid import subject

COLOURS = ("#2f7ed8", "#e4572e", "#2a9d6f", "#8d6cc9", "#c98a00", "#d6478f")
_GREY = "#7d8590"
"""Reads on a light and on a dark page: backgrounds are transparent."""
Rows = Sequence[Mapping[str, Any]]


def curve_figure(rows: Rows, metric: str, limit: Limit | None = None) -> Figure:
    """A metric against sparsity: one line a curve with its 95% intervals, the noise floor as a band, the knee of each curve as a ring.

    Args:
        rows: of a sweep, in any order.
        metric: name of the metric.
        limit: what the knee keeps; None for the usual limit of this metric, or where it has none, for no difference found.

    Raises:
        InputError: no row has a value of this metric.
    """
    limit = limit or next((one for one in LIMITS if one.metric == metric), None)
    found = curves(rows, metric)
    figure = _figure(4.2)
    axis = _styled(figure.subplots())
    _band(axis, [row for curve in found.values() for row in curve], metric)
    for i, (name, curve) in enumerate(found.items()):
        colour = COLOURS[i % len(COLOURS)]
        x, y = _column(curve, "sparsity") * 100, _column(curve, metric)
        low, high = (
            np.where(np.isnan(ends), y, ends)
            for ends in (_column(curve, f"{metric}_low"), _column(curve, f"{metric}_high"))
        )
        axis.errorbar(
            x,
            y,
            yerr=np.abs([y - low, high - y]),
            label=name,
            color=colour,
            marker="o",
            markersize=3.5,
            linewidth=1.4,
            capsize=2,
        )
        at = knee_of(curve, metric, limit)
        if at is not None:
            knee = {
                "marker": "o",
                "s": 110,
                "facecolors": "none",
                "edgecolors": colour,
                "linewidths": 1.8,
                "zorder": 4,
            }
            axis.scatter(
                [100 * at["sparsity"]], [at[metric]], label=f"knee: amount {at['amount']:g}", **knee
            )
    what = METRICS[metric]
    axis.set(
        xlabel="zeros among the prunable weights of the whole voice (%)",
        ylabel=what.title + (f" ({what.unit})" if what.unit else ""),
    )
    kept = f"{limit.metric} within {limit.change:+g}" if limit else "no difference found"
    axis.set_title(
        f"{rows[0]['voice']}: {what.title}. Rings: last point with {kept}",
        loc="left",
        fontsize=9,
        color=_GREY,
    )
    axis.legend(frameon=False, fontsize=8, labelcolor=_GREY)
    return figure


def sensitivity_figure(rows: Rows, metric: str) -> Figure:
    """A heat map of a metric: what was pruned alone against how much; darker is worse, a dot where a difference is claimed.

    Args:
        rows: of a sensitivity.
        metric: name of the metric; for what both voices have, the change from the original is shown.

    Raises:
        InputError: no row has a value of this metric.
    """
    column = metric if METRICS[metric].kind == "distance" else f"{metric}_difference"
    if all(row.get(column) is None for row in rows):
        raise InputError(f"There is no value of {metric} to draw: it was not measured.")
    names, amounts = (
        list(dict.fromkeys(map(subject, rows))),
        sorted({row["amount"] for row in rows}),
    )
    table = np.full((len(names), len(amounts)), np.nan)
    figure = _figure(1.4 + 0.24 * max(5, len(names)))
    axis = _styled(figure.subplots())
    for row in rows:
        y, x = names.index(subject(row)), amounts.index(row["amount"])
        table[y, x] = np.nan if row.get(column) is None else row[column]
        if row.get(f"{metric}_verdict") in ("worse", "better", "higher", "lower"):
            axis.plot(x + 0.38, y, marker="o", markersize=3, color=_GREY)
    better = METRICS[metric].better
    largest = float(np.nanmax(np.abs(table))) or 1.0
    scale = {
        "lower": ("Reds", 0.0, largest),
        "higher": ("Reds_r", -largest, 0.0),
        "neither": ("RdBu_r", -largest, largest),
    }[better]
    image = axis.imshow(table, cmap=scale[0], vmin=scale[1], vmax=scale[2], aspect="auto")
    for (y, x), value in np.ndenumerate(table):
        if np.isfinite(value):
            shade = sum(image.cmap(image.norm(value))[:3]) / 3
            axis.text(
                x,
                y,
                f"{value:.3g}",
                ha="center",
                va="center",
                fontsize=7,
                color="black" if shade > 0.5 else "white",
            )
    axis.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("amount")
    what = METRICS[metric]
    title = (
        what.title
        + (f" ({what.unit})" if what.unit else "")
        + ("" if what.kind == "distance" else ", change from the original")
    )
    axis.set_title(
        f"{rows[0]['voice']}, one at a time: {title}. Dots: a difference is claimed",
        loc="left",
        fontsize=9,
        color=_GREY,
    )
    return figure


def curves(rows: Rows, metric: str) -> dict[str, list[Mapping[str, Any]]]:
    """The rows that have the metric, by curve (method, scope, parts and options), each sorted by amount.

    Raises:
        InputError: none has it.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    methods, options = {row["method"] for row in rows}, {row.get("options") for row in rows}
    for row in sorted(rows, key=lambda row: row["amount"]):
        if row.get(metric) is not None:
            method = f"{row['method']}, " if len(methods) > 1 else ""
            more = f", {row['options']}" if len(options) > 1 and row.get("options") else ""
            found.setdefault(f"{method}{row['scope']}, {row['parts']}{more}", []).append(row)
    if not found:
        raise InputError(f"There is no value of {str(metric)[:40]} to draw: it was not measured.")
    return found


def knee_of(curve: Rows, metric: str, limit: Limit | None = None) -> Mapping[str, Any] | None:
    """`last_before` the limit is broken, or without a limit, before a difference is found."""
    if limit:
        return last_before(curve, limit.breaks)
    return last_before(
        curve, lambda row: row.get(f"{metric}_verdict") in ("worse", "higher", "lower")
    )


def save_plots(rows: Rows, folder: Path, *, sensitivity: bool = False) -> list[Path]:
    """Draw every metric that was measured, as SVG and as PNG.

    Args:
        rows: of a sweep.
        folder: where to.
        sensitivity: whether to draw heat maps instead of curves.

    Returns:
        The files.
    """
    draw, name = (sensitivity_figure, "sensitivity") if sensitivity else (curve_figure, "curve")
    written = []
    for metric in METRICS:
        if any(row.get(metric) is not None for row in rows):
            figure = draw(rows, metric)
            for kind in ("svg", "png"):
                written.append(folder / f"{name}-{metric}.{kind}")
                # The same rows give the same file.
                with matplotlib.rc_context({"svg.hashsalt": "vits_prune"}):
                    figure.savefig(written[-1], metadata={"Date": None} if kind == "svg" else None)
    return written


def _band(axis: Axes, rows: Rows, metric: str) -> None:
    """Where the original lies with other seeds."""
    row = next((row for row in rows if row.get(f"{metric}_floor_low") is not None), None)
    if row is None:
        return
    base = {
        "voice": row.get(f"{metric}_original"),
        "distance": 0.0,
        "shift": METRICS[metric].neutral,
    }[METRICS[metric].kind]
    if base is not None:
        low, high = base + row[f"{metric}_floor_low"], base + row[f"{metric}_floor_high"]
        axis.axhspan(
            low,
            high,
            color=_GREY,
            alpha=0.25,
            linewidth=0,
            label="noise floor: the original, other seeds",
        )


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=float)


def _figure(height: float) -> Figure:
    """Made without pyplot, whose global list of figures would keep it alive."""
    return Figure(figsize=(8.0, height), dpi=110, layout="constrained", facecolor="none")


def _styled(axis: Axes) -> Axes:
    axis.set_facecolor("none")
    axis.tick_params(colors=_GREY, labelsize=8)
    axis.xaxis.label.set_color(_GREY)
    axis.yaxis.label.set_color(_GREY)
    for spine in axis.spines.values():
        spine.set_color(_GREY)
        spine.set_alpha(0.4)
    return axis
