"""Draw the frontier: speed and bytes against Distill-MOS, every method and lever a point.

    python benchmarks/frontier.py [--out frontier] [--rungs NAME ...] [--healed NAME=DIR ...]
        [--texts 20] [--runs 9] [--threads 2] [--precision fp16]

The rungs are those of agreement.py, more of second order, and voices from folders that `heal` or
`prune` wrote; names that differ in the last word alone get one colour. Each is written as a sparse
file, and what that file holds is measured: its bytes; Distill-MOS and CER on held-out sentences,
with the voice's own durations, as changes against the original's, with bootstrap intervals; and the
speed from text to waveform, best kernels against the original's best, in one process. The rung
"original" is the original itself: the spread of its speed is what the machine adds.

Every rung becomes a row of frontier.csv in --out at once. A rung that is there is not measured
again, so a long run can be done in pieces; `--rungs` without names only draws frontier.svg anew.
The lines are the Pareto fronts: no other voice is both faster (or smaller) and better.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from agreement import LADDER
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vits_prune import InputError, PruneSpec, Voice, load_voice, measure_latency, prune
from vits_prune.files import write_file
from vits_prune.memory import keep_freed_memory
from vits_prune.ship.formats import FORMATS, export_voice
from vits_prune.study.evaluation import Reference, Settings, evaluate_against, prepare_reference
from vits_prune.synthesis.texts import load_texts

SECOND_ORDER = {"method": "second_order", "scope": "sensitivity"}
RUNGS: dict[str, PruneSpec | None] = {
    "original": None,
    **LADDER,
    **{
        f"second order, local {amount}": PruneSpec("second_order", "local", amount)
        for amount in (0.5, 0.65, 0.75, 0.8)
    },
    **{
        f"second order, arithmetic {amount}": PruneSpec(**SECOND_ORDER, amount=amount, cost="macs")
        for amount in (0.4, 0.5, 0.6, 0.7, 0.8)
    },
}
TEXT = "The birch canoe slid on the smooth planks, and the boy was there when the sun rose."
COLOURS = ("#8a8f98", "#2f7ed8", "#e4572e", "#58a55c", "#9b59b6", "#d4a017", "#17a2a2")
MARKERS = "os^Dv"
PANELS = (
    ("speed", "times as fast, best kernels against best", 1),
    ("megabytes", "sparse file (MB)", -1),
)
"""Column, its words, and 1 where more is better, else -1."""
MEGABYTES = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)
QUALITY = "distillmos"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voice", default="joe")
    parser.add_argument("--out", type=Path, default=Path("frontier"), metavar="DIR")
    parser.add_argument("--rungs", nargs="*", default=[*RUNGS], choices=RUNGS, metavar="NAME")
    parser.add_argument("--healed", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp16", choices=FORMATS["sparse"].precisions)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "frontier.csv"
    none = pd.DataFrame({"rung": [], QUALITY: [], "signature": []})
    table = pd.read_csv(path) if path.is_file() else none
    folders = dict(one.split("=", 1) for one in options.healed)
    missing = [name for name in (*options.rungs, *folders) if name not in set(table["rung"])]
    if missing:
        keep_freed_memory()
        torch.set_num_threads(options.threads)
        voice = load_voice(options.voice)
        settings = Settings(metrics=("naturalness", "intelligibility"), noise_seeds=0)
        reference = prepare_reference(voice, load_texts(options.texts), settings)
        if set(table["signature"]) - {reference.signature}:
            raise SystemExit(f"{path} was measured in another way: give another --out.")
    for name in missing:
        try:
            if name in folders:
                pruned = load_voice(folders[name])
            else:
                spec = RUNGS[name]
                pruned = prune(voice, spec) if spec else voice
            row = measured(reference, voice, pruned, options.precision, options.runs)
        except InputError as error:
            print(f"{name}: {error}\n", flush=True)
            continue
        row = {"rung": name, **row}
        table = pd.DataFrame([*table.to_dict("records"), row])
        write_file(path, table.to_csv(index=False))
        print(pd.Series(row).drop("signature").to_string(), "\n", flush=True)
    draw(table.dropna(subset=[QUALITY]), options.out / "frontier.svg")


def measured(
    reference: Reference, voice: Voice, pruned: Voice, precision: str, runs: int
) -> dict[str, Any]:
    """Return the columns of a voice, as its sparse file holds it."""
    with tempfile.TemporaryDirectory() as folder:
        export = export_voice(pruned, Path(folder) / "sparse", "sparse", precision)
    latency = measure_latency(voice, export.shipped, TEXT, runs=runs)
    speed, figures = latency.speed_up, evaluate_against(reference, export.shipped).figures
    row: dict[str, Any] = {"megabytes": export.bytes / 1e6}
    row |= {"speed": speed.median, "speed_low": speed.low, "speed_high": speed.high}
    for metric in (QUALITY, "cer"):
        change = getattr(figures.get(metric), "difference", None)
        for column, end in (
            (metric, "value"),
            (f"{metric}_low", "low"),
            (f"{metric}_high", "high"),
        ):
            row[column] = getattr(change, end, None)
    row["arithmetic"] = latency.pruned.nonzero_macs / latency.original.nonzero_macs
    row |= {"precision": precision, "texts": len(reference.texts), "runs": runs}
    return {**row, "threads": latency.threads, "signature": reference.signature}


def front(table: pd.DataFrame, column: str, better: int) -> pd.DataFrame:
    """Return the rows that no other beats in both the column and Distill-MOS, the extreme first."""
    ordered = table.assign(key=-better * table[column]).sort_values(
        ["key", QUALITY], ascending=[True, False]
    )
    before = ordered[QUALITY].cummax().shift(fill_value=float("-inf"))
    return ordered[ordered[QUALITY] > before]


def draw(table: pd.DataFrame, path: Path) -> None:
    """Write the picture: a panel for speed and one for bytes, each with its front."""
    if table.empty:
        raise SystemExit("There is nothing to draw: no row has a Distill-MOS.")
    figure = Figure(figsize=(13, 5.5), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (column, words, better) in zip(axes, PANELS, strict=True):
        draw_panel(axis, table, column, better)
        axis.set_xlabel(words)
    axes[0].set_ylabel("Distill-MOS, change against the original")
    axes[1].set_xscale("log")
    low, high = axes[1].get_xlim()
    ticks = [one for one in MEGABYTES if low <= one <= high]
    axes[1].set_xticks(ticks, map(str, ticks))
    axes[1].minorticks_off()
    shown = axes[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    print(f"Written to {path}")


def draw_panel(axis: Axes, table: pd.DataFrame, column: str, better: int) -> None:
    """Draw every row with its intervals, and the front with the names of its rungs."""
    groups = (
        table["rung"]
        .str.rpartition(" ")[0]
        .where(lambda one: one != "", table["rung"])
        .str.rstrip(",")
    )
    for number, (group, rows) in enumerate(table.groupby(groups, sort=False)):
        look = {"color": COLOURS[number % len(COLOURS)], "label": group, "markersize": 5}
        look["marker"] = MARKERS[number // len(COLOURS) % len(MARKERS)]
        errors = [_reach(rows, QUALITY), _reach(rows, column)]
        axis.errorbar(rows[column], rows[QUALITY], *errors, linestyle="", elinewidth=0.6, **look)
    best = front(table, column, better)
    axis.plot(
        best[column], best[QUALITY], color="#cccccc", linewidth=4, zorder=0, label="Pareto front"
    )
    for name, x, y in zip(best["rung"], best[column], best[QUALITY], strict=True):
        place = {"xytext": (5 * better, 5), "ha": "left" if better > 0 else "right"}
        axis.annotate(name, (x, y), textcoords="offset points", fontsize=7, **place)
    axis.axhline(0, color=COLOURS[0], linewidth=0.8, linestyle="--")
    axis.grid(alpha=0.3)
    axis.margins(x=0.2)


def _reach(rows: pd.DataFrame, column: str) -> list[pd.Series] | None:
    """Return how far the intervals reach below and above the values; None where there are none."""
    if f"{column}_low" not in rows:
        return None
    low, high = (rows[f"{column}_{end}"].fillna(rows[column]) for end in ("low", "high"))
    return [rows[column] - low, high - rows[column]]


if __name__ == "__main__":
    main()
