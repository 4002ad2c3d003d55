"""Pictures of measurements. Their backgrounds are transparent and their lines mid-grey, so that
they can be read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vits_prune.measure import quality
from vits_prune.measure.predictors import deaf_words
from vits_prune.measure.weights import MatrixPair, WeightHistogram
from vits_prune.pruning.spec import METHODS, in_words
from vits_prune.studio.descriptions import original_value
from vits_prune.studio.evidence import Points
from vits_prune.studio.heal_jobs import HealJob
from vits_prune.studio.renditions import LayerChange
from vits_prune.study.charts import COLOURS, GREY, empty_figure, set_title, styled, title_of
from vits_prune.study.comparison import PART_NAMES
from vits_prune.study.knee import Limit, compared, usual_limits
from vits_prune.voices.voice import PARTS

ORIGINAL, PRUNED = COLOURS[:2]
"""Blue and orange, which colour-blind eyes tell apart."""
_PART_COLOURS = dict(zip(PARTS, (ORIGINAL, COLOURS[3], COLOURS[2], PRUNED), strict=True))
_SIZES = LinearSegmentedColormap.from_list("sizes", ["#d6e6f7", ORIGINAL, "#0a2a52"])
_GONE = "#8a8f9833"
_ZERO_OR_GONE = LinearSegmentedColormap.from_list("zero or gone", [PRUNED, _GONE])
_SMALL: dict[str, Any] = {"fontsize": 8, "color": GREY}
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": GREY}


def weight_histogram(histogram: WeightHistogram) -> Figure:
    """Draw how many weights have which absolute value, kept and zeroed, and their threshold."""
    figure, (axis,) = _axes(1, height=3.0)
    left, width = histogram.edges[:-1], np.diff(histogram.edges)
    zeroed, kept, largest = histogram.zeroed, histogram.kept, histogram.largest_zeroed
    axis.bar(left, zeroed, width, align="edge", color=PRUNED, label="set to zero")
    axis.bar(left, kept, width, bottom=zeroed, align="edge", color=ORIGINAL, label="kept")
    if 0 < largest <= histogram.smallest_kept:
        axis.axvline(largest, color=GREY, linewidth=1.2, linestyle="--")
        where: dict[str, Any] = {"xy": (largest, 0.92), "xycoords": ("data", "axes fraction")}
        axis.annotate(f" threshold {largest:.3g}", **where, **_SMALL)
    elif largest:
        where = {"xy": (0.5, 0.9), "xycoords": "axes fraction", "ha": "center"}
        axis.annotate("size alone did not decide: no threshold", **where, **_SMALL)
    axis.set(ylabel="weights", xlim=(0, histogram.edges[-1]))
    axis.set_ylim(top=1.2 * max(1, (zeroed + kept).max()))
    axis.set_xlabel("absolute value of the weight (the last bar holds all above)")
    axis.legend(ncols=2, loc="upper right", **_LEGEND)
    return figure


def matrices(pair: MatrixPair) -> Figure:
    """Draw a corner of a weight matrix before and after.

    Darker is larger; zeros and what is gone each have a colour of their own.
    """
    figure, axes = _axes(1, height=4.6, columns=2)
    top = float(np.quantile(pair.before, 0.99)) or 1.0
    corners = (("before", pair.before, pair.layer.shape), ("after", pair.after, pair.shape_after))
    for axis, (name, values, shape) in zip(axes, corners, strict=True):
        shown = np.ma.masked_where(np.isnan(values) | (values == 0), values)
        axis.imshow(np.isnan(values), cmap=_ZERO_OR_GONE, vmin=0, vmax=1, interpolation="nearest")
        axis.imshow(shown, cmap=_SIZES, vmin=0, vmax=top, interpolation="nearest")
        size = "gone" if shape is None else " × ".join(map(str, shape))
        zeros = f", {100 * pair.zeros:.1f}% zeros" if name == "after" and pair.zeros else ""
        set_title(axis, f"{name}: {size}{zeros}")
        axis.set_xlabel("input channel")
    axes[0].set_ylabel("output channel")
    keys = [Patch(color=ORIGINAL, label="weight, darker is larger")]
    if (pair.after == 0).any():
        keys.append(Patch(color=PRUNED, label="zero"))
    if np.isnan(pair.after).any():
        keys.append(Patch(color=_GONE, label="gone"))
    figure.legend(handles=keys, ncols=3, loc="outside lower center", **{**_LEGEND, "fontsize": 9})
    return figure


def _axes(rows: int, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = empty_figure(height)
    return figure, [styled(axis) for axis in figure.subplots(rows, columns, squeeze=False).flat]


# What the page draws itself, as values of its widgets


def layers_value(
    changes: Sequence[LayerChange], parts: Mapping[str, float], first: str
) -> dict[str, Any]:
    """Return the layers as bars, in the order of the model, grouped by part.

    Args:
        changes: of the layers.
        parts: share of zeros by part, 0 to 1.
        first: the layer to show first.
    """
    rows = [
        {
            **{"name": one.layer.name, "part": one.layer.part, "kind": one.layer.kind},
            **{"shape": " × ".join(map(str, one.layer.shape)), "weights": one.layer.weights},
            **{"share": one.share, "word": "gone" if one.cut else "zero", "note": one.note},
        }
        for one in changes
    ]
    groups = {
        part: {"name": name, "colour": _PART_COLOURS.get(part, GREY), "zeros": parts.get(part)}
        for part, name in PART_NAMES.items()
    }
    alone = sum(bool(one.note) for one in changes)
    hint = f"{len(rows)} layers, {alone} left alone. Arrow keys move, Enter shows the weights."
    return {"rows": rows, "groups": groups, "first": first, "hint": hint}


def curve_value(found: Points) -> dict[str, Any]:
    """Return Points as the curve's picture: one line for each method and scope."""
    points, knee = found.points, found.knee
    metrics: dict[str, dict[str, Any]] = {}
    series: dict[str, dict[str, Any]] = {}
    for spec, sparsity, evaluation, _ in points:
        values, figures = {}, evaluation.figures
        for name, one in figures.items():
            what, values[name] = (
                quality.METRICS[name],
                [one.pruned.value, one.pruned.low, one.pruned.high],
            )
            about = {"title": what.title, "unit": what.unit, "floor": _band(one)}
            metrics.setdefault(name, about)
        words = in_words(spec, amount=False)
        line = series.setdefault(words, {"name": words, "points": [], "knee": None})
        point = {"spec": spec.to_dict(), "amount": spec.amount, "sparsity": sparsity}
        verdicts = {name: one.verdict for name, one in figures.items()}
        line["points"].append({**point, "figures": values, "verdicts": verdicts})
    hint = f"Measured on {found.note}; bars are 95% intervals. "
    if knee is not None:
        series[in_words(points[0].spec, amount=False)]["knee"] = knee
        lost = _lost(usual_limits(points[0].evaluation.figures))
        hint = f"Knee: the last point with at most {lost}, at {knee:.0%}. {hint}"
    structured = any(METHODS[one.spec.method].structured for one in points)
    axis = "weights that are zero or gone" if structured else "sparsity"
    value = {"series": list(series.values()), "metrics": metrics}
    hint = " ".join(filter(None, (hint.strip(), *deaf_words(metrics), found.unmeasured)))
    return {**value, "hint": hint, "axis": f"{axis} of the whole voice"}


def _lost(limits: Sequence[Limit]) -> str:
    """Return what limits allow to be lost, in words."""
    said = []
    for one in limits:
        title, lost = quality.METRICS[one.metric].title, f"{abs(one.change):g}"
        if one.metric == "cer":
            said.append(f"{100 * one.change:g} points more character errors")
        elif quality.METRICS[one.metric].kind == "distance":
            said.append(f"{lost} less {title} than another seed of the original")
        else:
            said.append(f"{lost} less {title}")
    return " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))


def heat_value(found: Points, amounts: Sequence[float]) -> dict[str, Any]:
    """Return the heat map: one row a part, or a layer, that was pruned alone; one column an amount.

    The stage can do what a cell of a part did, so that it has a spec.
    """
    metrics: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for spec, _, evaluation, layer in found.points:
        name = layer or PART_NAMES[spec.parts[0]]
        intervals = {name: compared(figure) for name, figure in evaluation.figures.items()}
        changes = {name: one.value for name, one in intervals.items() if one}
        for metric in changes:
            what = quality.METRICS[metric]
            distance = what.limited_by_value
            whose = "another seed of the original" if what.kind == "distance" else "the original"
            title = title_of(what) + f", change from {whose}" * (not distance)
            metrics[metric] = {"title": title, "better": what.better, "distance": distance}
        verdicts = {metric: evaluation.figures[metric].verdict for metric in changes}
        cell = {"changes": changes, "verdicts": verdicts}
        cell["spec"] = None if layer else spec.to_dict()
        row = rows.setdefault(name, {"name": name, "cells": [None] * len(amounts)})
        row["cells"][list(amounts).index(spec.amount)] = cell
    lost = dict.fromkeys(one.layer or PART_NAMES[one.spec.parts[0]] for one in found.left_out)
    more = "; left out where the method protects it or it cannot lose so much: " + ", ".join(lost)
    hint = (
        f"Measured on {found.note}{more if lost else ''}. Darker is worse, within the metric shown;"
        f" a dot: a difference is claimed. {found.unmeasured}"
    )
    value = {"rows": list(rows.values()), "amounts": list(amounts), "metrics": metrics}
    return {**value, "hint": hint.strip()}


def _band(figure: quality.Figure) -> list[float] | None:
    """Return the noise floor on the axis of the metric itself."""
    if figure.floor is None:
        return None
    centre = figure.original.value if figure.original else figure.metric.neutral
    return [centre + figure.floor.low, centre + figure.floor.high]


def tried_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return what a bisection tried, in words: amount, metric, change, and whether it is kept."""
    found: list[tuple[str, ...]] = []
    for row in rows:
        change = "not measurable" if row["value"] is None else f"{row['value']:+.3f}"
        if row["low"] is not None:
            change += f" ({row['low']:+.3f} to {row['high']:+.3f})"
        kept = f"{'kept' if row['kept'] else 'broken'}{'' if row['certain'] else ', not certain'}"
        metric = quality.METRICS[row["metric"]].title
        found.append((f"{row['amount']:.0%}", metric, change, f"{row['limit']:+g}", kept))
    return found


# Healing

COURSE_POINTS = 300
"""Most points of a line of losses."""
_TOPS = {"cer": 1.0}
"""Where a picture ends: a recogniser that hears words in noise may count many times the text."""


def course_value(job: HealJob, hint: str) -> dict[str, Any]:
    """Return the value of the course widget: losses, and what was measured at checkpoints."""
    rows, measured = job.rows, []
    thin = max(1, -(-len(rows) // COURSE_POINTS))
    shown = [*rows[::thin], *(rows[-1:] if len(rows) % thin != 1 % thin else ())]
    names = dict.fromkeys(name for row in rows for name in row)
    points = {
        name: [[row["step"], row[name]] for row in shown if row.get(name, 0) > 0]
        for name in names
        if name not in ("step", "seconds", "total")
    }
    checked = job.checkpoints[0].figures if job.checkpoints else {}
    for name in (*quality.strictest(checked).values(), "duration_ratio"):
        found = [(one.step, one.figures[name]) for one in job.checkpoints if name in one.figures]
        if not found:
            continue
        original = original_value(found[0][1])
        measured.append({
            "title": quality.METRICS[name].title,
            "original": quality.METRICS[name].neutral if original is None else original,
            "top": _TOPS.get(name),
            "points": [
                [step, one.pruned.value, one.pruned.low, one.pruned.high] for step, one in found
            ],
        })  # fmt: skip
    return {
        "losses": [{"name": name, "points": line} for name, line in points.items() if line],
        "checks": measured,
        "of": job.of or 0,
        "kept": job.kept if job.voice else None,
        "hint": hint,
    }
