"""Draw the frontier: speed and bytes against Distill-MOS, every method and lever a point.

    python benchmarks/frontier.py [--texts 10] [--runs 5] [--healed NAME=DIR ...]

Prints a table and writes benchmarks/frontier.svg. Distill-MOS (held-out sentences, the original's
durations) is a change against the original; the interval is a bootstrap over sentences. Speed is
best kernels against best kernels, on two threads; bytes are the lossless sparse file's. The line
is the Pareto front: no point is both faster (smaller) and more natural.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from vits_prune import PruneSpec, load_voice, measure_latency, measure_size, prune, speak
from vits_prune.measure.predictors import measure_distillmos
from vits_prune.memory import keep_freed_memory
from vits_prune.pruning import Shape
from vits_prune.synthesis.texts import load_texts

TEXT = "The birch canoe slid on the smooth planks, and the boy was there when the sun rose."
SECOND = {"method": "second_order", "scope": "sensitivity"}
POINTS = {
    "L1 local": [PruneSpec(scope="local", amount=one) for one in (0.2, 0.3, 0.4)],
    "second order, local": [
        PruneSpec("second_order", "local", one) for one in (0.4, 0.5, 0.6, 0.7, 0.8)
    ],
    "second order, by weights": [PruneSpec(**SECOND, amount=one) for one in (0.5, 0.75, 0.8)],
    "second order, by arithmetic": [
        PruneSpec(**SECOND, amount=one, cost="macs") for one in (0.4, 0.5, 0.6, 0.7, 0.8)
    ],
    "decoder width": [
        PruneSpec("structured", shape=Shape(decoder_width=one)) for one in (0.75, 0.5)
    ],
}
COLOURS = ("#8a8f98", "#2f7ed8", "#58a55c", "#e4572e", "#9b59b6", "#d4a017")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--healed", nargs="*", default=[], metavar="NAME=DIR")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(2)
    voice = load_voice("joe")
    texts = load_texts(options.texts)
    originals = [speak(voice, text, kernels="dense") for text in texts]
    before = [measure_distillmos(one.waveform, one.sampling_rate) for one in originals]
    print(f"joe, {len(texts)} held-out sentences, Distill-MOS {np.mean(before):.2f}")
    found: dict[str, list[tuple[float, float, float]]] = {}
    named = [
        (name, f"{name} {_label(spec)}", spec) for name, group in POINTS.items() for spec in group
    ]
    healed = [("healed", *one.split("=", 1)) for one in options.healed]
    for group, name, source in (*named, *healed):
        pruned = prune(voice, source) if isinstance(source, PruneSpec) else load_voice(source)
        changes = []
        for text, original, score in zip(texts, originals, before, strict=True):
            said = speak(pruned, text, timing=original, kernels="dense")
            changes.append(measure_distillmos(said.waveform, said.sampling_rate) - score)
        speed = measure_latency(voice, pruned, TEXT, runs=options.runs).speed_up
        megabytes = measure_size(pruned).sparse_fp32_bytes / 1e6
        low, high = _interval(changes)
        print(
            f"{name}: {np.mean(changes):+.2f} [{low:+.2f}, {high:+.2f}], "
            f"{speed.median:.2f} times as fast ({speed.low:.2f} to {speed.high:.2f}), "
            f"{megabytes:.1f} MB",
            flush=True,
        )
        found.setdefault(group, []).append((float(np.mean(changes)), speed.median, megabytes))
    draw(found)


def _label(spec: PruneSpec) -> str:
    return f"{spec.shape.decoder_width:g}" if spec.shape else f"{spec.amount:.0%}"


def _interval(changes: list[float]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).choice(changes, (2000, len(changes))).mean(1)
    return tuple(np.quantile(drawn, (0.025, 0.975)))


def draw(found: dict[str, list[tuple[float, float, float]]]) -> None:
    figure = Figure(figsize=(10, 3.8), layout="constrained", facecolor="white")
    for axis, place, label, better in zip(
        figure.subplots(1, 2),
        (1, 2),
        ("times as fast (best kernels against best)", "lossless sparse file (MB)"),
        (1, -1),
        strict=True,
    ):
        points = [(one[place], one[0]) for group in found.values() for one in group]
        points.sort(key=lambda one: (-better * one[0], -one[1]))
        front: list[tuple[float, float]] = []
        for point in points:
            if not front or point[1] > front[-1][1]:
                front.append(point)
        axis.plot(*zip(*front, strict=True), color="#cccccc", linewidth=3, zorder=0)
        for (group, ones), colour in zip(found.items(), COLOURS, strict=False):
            axis.plot(
                [one[place] for one in ones],
                [one[0] for one in ones],
                "o",
                color=colour,
                label=group,
            )
        axis.set(xlabel=label, ylabel="Distill-MOS, change")
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(Path(__file__).with_name("frontier.svg"))


if __name__ == "__main__":
    main()
