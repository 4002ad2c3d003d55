"""Draw the README's picture: what L1 pruning does to joe's weights, to the file, and to the speed.

Speed is that of local pruning, which takes the same share of the arithmetic everywhere.

    python benchmarks/picture.py

Writes benchmarks/joe.svg. Sizes are those of written files; speed is the ratio of interleaved runs,
with its range.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from vits_prune import PruneSpec, load_voice, measure_latency, measure_size, prune
from vits_prune.measure import measure_weights
from vits_prune.memory import keep_freed_memory

TEXT = "The birch canoe slid on the smooth planks."
AMOUNTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BLUE, ORANGE, GREY = "#2f7ed8", "#e4572e", "#8a8f98"


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(2)
    voice = load_voice("joe")
    pruned = [prune(voice, PruneSpec(amount=amount)) for amount in AMOUNTS]
    sizes = [measure_size(one) for one in pruned]
    latencies = []
    for amount in AMOUNTS:
        local = prune(voice, PruneSpec(scope="local", amount=amount))
        latencies.append(measure_latency(voice, local, TEXT, runs=7))
    speeds = [one.speed_up for one in latencies]
    dense = [
        one.original.stage_seconds["total"].median / both.median
        for one in latencies
        for both in [one.pruned.dense_seconds or one.pruned.stage_seconds["total"]]
    ]
    for amount, size, speed, same in zip(AMOUNTS, sizes, speeds, dense, strict=True):
        print(
            f"{amount:.0%}: sparse {size.sparse_fp32_bytes / 1e6:.1f} MB, "
            f"{speed.median:.2f}x ({speed.low:.2f} to {speed.high:.2f}), dense {same:.2f}x"
        )

    figure = Figure(figsize=(11, 3.2), layout="constrained", facecolor="none")
    weights, files, speed = figure.subplots(1, 3)
    histogram = measure_weights(voice, pruned[3])
    left, width = histogram.edges[:-1], histogram.edges[1] - histogram.edges[0]
    weights.bar(
        left, histogram.zeroed / 1e6, width, align="edge", color=ORANGE, label="set to zero"
    )
    weights.bar(
        left,
        histogram.kept / 1e6,
        width,
        bottom=histogram.zeroed / 1e6,
        align="edge",
        color=BLUE,
        label="kept",
    )
    weights.set(title="weights at 30%, global L1", xlabel="absolute value", ylabel="millions")

    percent = [100 * amount for amount in AMOUNTS]
    for name, label, colour in (
        ("dense_fp32_bytes", "dense fp32", GREY),
        ("dense_fp16_bytes", "dense fp16", BLUE),
        ("sparse_fp32_bytes", "sparse, lossless", ORANGE),
    ):
        files.plot(
            percent,
            [getattr(size, name) / 1e6 for size in sizes],
            "o-",
            markersize=3,
            label=label,
            color=colour,
        )
    files.set(title="smaller: in a sparse file", xlabel="zeros (%)", ylabel="MB", ylim=(0, None))

    middle = [one.median for one in speeds]
    spread = [
        [m - one.low for m, one in zip(middle, speeds, strict=True)],
        [one.high - m for m, one in zip(middle, speeds, strict=True)],
    ]
    speed.errorbar(
        percent,
        middle,
        spread,
        fmt="o-",
        markersize=3,
        capsize=2,
        color=ORANGE,
        label="best kernels for each voice",
    )
    speed.plot(percent, dense, "o-", markersize=3, color=BLUE, label="dense kernels")
    speed.axhline(1.0, color=GREY, linewidth=0.8, linestyle="--")
    speed.set(
        title="faster: with sparse kernels",
        xlabel="zeros (%)",
        ylabel="times the original's speed",
        ylim=(0, None),
    )

    for axis in (weights, files, speed):
        axis.set_facecolor("none")
        axis.title.set(color=GREY, fontsize=10)
        axis.tick_params(colors=GREY, labelsize=8)
        axis.xaxis.label.set_color(GREY)
        axis.yaxis.label.set_color(GREY)
        axis.legend(frameon=False, fontsize=8, labelcolor=GREY)
        for spine in axis.spines.values():
            spine.set(color=GREY, alpha=0.4)
    figure.savefig(Path(__file__).parent / "joe.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
