"""Pictures of measures. Backgrounds are transparent and lines mid-grey, so they read on a light and on a dark page."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch

from vits_prune.measure import Sparsity
from vits_prune.measure.signals import Spectrogram
from vits_prune.measure.weights import MatrixPair, WeightHistogram
from vits_prune.study.tables import PART_NAMES
from vits_prune.ui.theme import NEUTRAL, ORIGINAL, PRUNED
from vits_prune.voices.voice import PARTS

_PART_COLOURS = dict(zip(PARTS, ("#2f7ed8", "#8d6cc9", "#2a9d6f", "#e4572e"), strict=True))


def spectrograms(original: Spectrogram, pruned: Spectrogram, aligned: bool) -> Figure:
    """Both spectrograms, and where the two are sample-aligned their difference."""
    rows = 3 if aligned else 2
    figure, axes = _figure(rows, height=1.9 * rows)
    longest = max(original.seconds, pruned.seconds)
    for axis, picture, name in zip(axes, (original, pruned), ("original", "pruned"), strict=False):
        image = axis.imshow(picture.decibels, **_extent(picture), cmap="magma", vmin=-90, vmax=-20)
        _label(axis, name, longest)
        _scale(figure, axis, image)
    if aligned:
        difference = np.clip(pruned.decibels, -80, 0) - np.clip(original.decibels, -80, 0)
        image = axes[2].imshow(difference, **_extent(original), cmap="RdBu_r", vmin=-30, vmax=30)
        _label(axes[2], "pruned minus original, levels under -80 dB counted as -80", longest)
        _scale(figure, axes[2], image)
    axes[-1].set_xlabel("seconds")
    return figure


def _extent(picture: Spectrogram) -> dict[str, object]:
    return {
        "extent": (0, picture.seconds, 0, picture.highest_hz / 1000),
        "origin": "lower",
        "aspect": "auto",
        "interpolation": "nearest",
    }


def _scale(figure: Figure, axis: Axes, image: AxesImage) -> None:
    bar = figure.colorbar(image, ax=axis, pad=0.01)
    bar.set_label("dB", color=NEUTRAL)
    bar.ax.tick_params(labelsize=7, colors=NEUTRAL)


def _label(axis: Axes, name: str, seconds: float) -> None:
    axis.set_title(name, loc="left", color=NEUTRAL, fontsize=9)
    axis.set_ylabel("kHz")
    axis.set_xlim(0, seconds)


def layer_bars(sparsity: Sparsity) -> Figure:
    """Sparsity of each prunable layer, coloured by part, in the order in which they run."""
    rows = [row for row in sparsity.layers if row.layer.prunable]
    figure, (axis,) = _figure(1, height=3.0)
    start = 0
    for part in PARTS:
        mine = [100 * row.sparsity for row in rows if row.layer.part == part]
        axis.bar(
            range(start, start + len(mine)),
            mine,
            width=0.9,
            color=_PART_COLOURS[part],
            label=PART_NAMES[part],
        )
        start += len(mine)
    axis.axhline(100 * sparsity.overall, color=NEUTRAL, linewidth=1, linestyle="--")
    axis.text(start, 100 * sparsity.overall + 1, "overall", va="bottom", fontsize=8, color=NEUTRAL)
    axis.set(
        xlabel="layer, in the order of the model",
        ylabel="zeros (%)",
        ylim=(0, 100),
        xlim=(-1, start + 0.06 * start),
    )
    axis.legend(
        ncols=4,
        loc="upper left",
        frameon=False,
        fontsize=8,
        bbox_to_anchor=(0, 1.14),
        borderpad=0,
        labelcolor=NEUTRAL,
    )
    return figure


def weight_histogram(histogram: WeightHistogram) -> Figure:
    """How many weights have which absolute value, kept and zeroed, with the threshold where there is one."""
    figure, (axis,) = _figure(1, height=3.0)
    left, width = histogram.edges[:-1], np.diff(histogram.edges)
    axis.bar(left, histogram.zeroed, width, align="edge", color=PRUNED, label="set to zero")
    axis.bar(
        left,
        histogram.kept,
        width,
        bottom=histogram.zeroed,
        align="edge",
        color=ORIGINAL,
        label="kept",
    )
    one_threshold = 0 < histogram.largest_zeroed <= histogram.smallest_kept
    if one_threshold:
        axis.axvline(histogram.largest_zeroed, color=NEUTRAL, linewidth=1.2, linestyle="--")
        axis.annotate(
            f" threshold {histogram.largest_zeroed:.3g}",
            (histogram.largest_zeroed, 0.92),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color=NEUTRAL,
        )
    elif histogram.largest_zeroed:
        axis.annotate(
            "each layer has its own threshold",
            (0.5, 0.9),
            xycoords="axes fraction",
            fontsize=8,
            color=NEUTRAL,
            horizontalalignment="center",
        )
    axis.set(
        xlabel="absolute value of the weight (the last bar holds all above)",
        ylabel="weights",
        xlim=(0, histogram.edges[-1]),
    )
    axis.legend(ncols=2, loc="upper right", frameon=False, fontsize=8, labelcolor=NEUTRAL)
    return figure


_SIZES = LinearSegmentedColormap.from_list("sizes", ["#d6e6f7", ORIGINAL, "#0a2a52"])
_GONE = "#8a8f9833"
_ZERO_OR_GONE = LinearSegmentedColormap.from_list("zero or gone", [PRUNED, _GONE])


def matrices(pair: MatrixPair) -> Figure:
    """A corner of a weight matrix before and after: darker is larger, zeros and what is gone each in a colour of its own."""
    figure, axes = _figure(1, height=4.6, columns=2)
    top = float(np.quantile(pair.before, 0.99)) or 1.0
    shapes = (pair.layer.shape, pair.shape_after)
    for axis, values, name, shape in zip(
        axes, (pair.before, pair.after), ("before", "after"), shapes, strict=True
    ):
        shown = np.ma.masked_where(np.isnan(values) | (values == 0), values)
        axis.imshow(np.isnan(values), cmap=_ZERO_OR_GONE, vmin=0, vmax=1, interpolation="nearest")
        axis.imshow(shown, cmap=_SIZES, vmin=0, vmax=top, interpolation="nearest")
        size = "gone" if shape is None else " × ".join(map(str, shape))
        zeros = f", {100 * pair.zeros:.1f}% zeros" if name == "after" and pair.zeros else ""
        axis.set_title(f"{name}: {size}{zeros}", loc="left", color=NEUTRAL, fontsize=9)
        axis.set_xlabel("input channel")
    axes[0].set_ylabel("output channel")
    keys = [Patch(color=ORIGINAL, label="weight, darker is larger")]
    if (pair.after == 0).any():
        keys.append(Patch(color=PRUNED, label="zero"))
    if np.isnan(pair.after).any():
        keys.append(Patch(color=_GONE, label="gone"))
    figure.legend(
        handles=keys,
        ncols=3,
        loc="outside lower center",
        frameon=False,
        fontsize=9,
        labelcolor=NEUTRAL,
    )
    return figure


def _figure(rows: int, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A transparent figure with its axes; made without pyplot, whose global list of figures would keep it alive."""
    figure = Figure(figsize=(8.0, height), dpi=110, layout="constrained", facecolor="none")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(colors=NEUTRAL, labelsize=8)
        axis.xaxis.label.set_color(NEUTRAL)
        axis.yaxis.label.set_color(NEUTRAL)
        for spine in axis.spines.values():
            spine.set_color(NEUTRAL)
            spine.set_alpha(0.4)
    return figure, axes
