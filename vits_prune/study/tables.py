"""Measures as pandas tables, with a sentence wherever a number did not improve."""

from __future__ import annotations

from typing import Any

import pandas as pd

from vits_prune.measure import Latency, Size, Sparsity, Spread
from vits_prune.synthesis.speak import STAGES

PART_NAMES = {
    "text_encoder": "text encoder",
    "duration_predictor": "duration predictor",
    "flow": "flow",
    "decoder": "decoder",
    "speaker": "speaker table",
}
STAGE_NAMES = {
    "text": "text encoder",
    "durations": "durations",
    "flow": "flow",
    "decoder": "decoder",
    "total": "all stages",
}
_SIZE_COLUMNS = ["what", "original", "pruned", "pruned / original", "in words"]
_RUN_COLUMNS = [
    f"{name}, {end} run" for name in ("original", "pruned") for end in ("lowest", "highest")
]
_LAYER_COLUMNS = ["layer", "kind", "sparsity (%)", "left alone because", "shape"]
_SPARSITY_COLUMNS = ["part", "weights", "zeros before", "zeros after", "sparsity (%)", "removed"]
EMPTY = {
    "sparsity": pd.DataFrame(columns=_SPARSITY_COLUMNS),
    "size": pd.DataFrame(columns=_SIZE_COLUMNS),
    "latency": pd.DataFrame(columns=[*_SIZE_COLUMNS, *_RUN_COLUMNS]),
    "layers": pd.DataFrame(columns=[*_LAYER_COLUMNS, "weights", "zeros", "part"]),
}
"""Tables without rows, for a page that has not measured yet."""
SAVINGS = pd.DataFrame(
    [
        (
            "single weights (magnitude, random, activation, second order)",
            "become zero in their place; every tensor keeps its shape",
            "only in the sparse file; dense files and memory stay as they are",
            "no: a zero costs what any other number costs",
        ),
        (
            "a 2:4 pattern of them",
            "2 of every 4 neighbours become zero",
            "in the sparse file, and in the GPU's own 2:4 format",
            "only on sparse tensor cores (NVIDIA Ampere and later)",
        ),
        (
            "channels and layers (structured)",
            "are taken out; tensors get smaller",
            "yes: in every file and in memory",
            "yes: on any hardware",
        ),
    ],
    columns=["what goes", "what happens to it", "saves bytes", "saves time"],
)
"""What each kind of pruning saves."""
_ZEROS_COST = "same kernels: a zero in a dense tensor costs what any other number costs"
_GONE = "channels or layers are gone, and their {} with them"


def sparsity_table(original: Sparsity, pruned: Sparsity) -> pd.DataFrame:
    """Return zeros overall and by part, and how many weights were removed."""
    rows = [
        {
            "part": "whole voice" if part is None else PART_NAMES[part],
            "weights": pruned.weights(part),
            "zeros before": original.zeros(part),
            "zeros after": pruned.zeros(part),
            "sparsity (%)": round(100 * pruned.zeros(part) / max(1, pruned.weights(part)), 2),
            "removed": original.weights(part) - pruned.weights(part),
        }
        for part in (None, *pruned.parts)
    ]
    return pd.DataFrame(rows)


def layer_table(pruned: Sparsity) -> pd.DataFrame:
    """Return each layer's sparsity, or why the layer was left alone."""
    rows = [
        {
            "layer": row.layer.name,
            "kind": row.layer.kind,
            "sparsity (%)": round(100 * row.sparsity, 2),
            "left alone because": row.note,
            "shape": " × ".join(str(side) for side in row.layer.shape),
            "weights": row.layer.weights,
            "zeros": row.zeros,
            "part": PART_NAMES[row.layer.part],
        }
        for row in pruned.layers
    ]
    return pd.DataFrame(rows)


def size_table(original: Size, pruned: Size) -> pd.DataFrame:
    """Return parameters, file sizes and memory; sizes in MB of 1,000,000 bytes."""
    dense = "every zero is written out in full: only another format makes the file smaller"
    held, place = "zeros are held like other numbers", "zeros still have their place in the tensors"
    if pruned.parameters < original.parameters:
        dense = held = f"structured: {_GONE.format('bytes')}"
        place = f"structured: {_GONE.format('weights')}"
    sparse = "bitmask of the zeros, the other values, compressed"
    if pruned.sparse_fp32_bytes > pruned.dense_fp16_bytes:
        sparse = "at this sparsity plain fp16 is smaller still, though not lossless"
    rows = []
    for what, field, words in (
        ("parameters (M)", "parameters", place),
        ("parameters that are not zero (M)", "nonzero_parameters", ""),
        ("file, dense fp32 (MB)", "dense_fp32_bytes", dense),
        ("file, dense fp16 (MB)", "dense_fp16_bytes", dense),
        ("file, sparse fp32, lossless (MB)", "sparse_fp32_bytes", sparse),
        ("memory, ready to speak (MB)", "memory_bytes", held),
    ):
        before, after = getattr(original, field), getattr(pruned, field)
        same = after >= 0.995 * before and not words.startswith("at this sparsity")
        rows.append({
            "what": what,
            "original": round(before / 1e6, 3),
            "pruned": round(after / 1e6, 3),
            "pruned / original": round(after / max(1, before), 3),
            "in words": ": ".join(filter(None, ("no smaller" if same else "", words))),
        })  # fmt: skip
    return pd.DataFrame(rows)


def latency_table(latency: Latency, pattern: str = "") -> pd.DataFrame:
    """Return times by stage, real-time factor, processor time and arithmetic.

    Args:
        latency: of the two voices.
        pattern: of the zeros; the table names the hardware that would gain from it.
    """
    before, after = latency.original, latency.pruned
    rows = [
        _row(
            f"{STAGE_NAMES[stage]} (ms)",
            before.stage_seconds[stage],
            after.stage_seconds[stage],
            1e3,
        )
        for stage in (*STAGES, "total")
    ]
    for what, field, words in (
        ("real-time factor (s per s of speech)", "real_time_factor", _speed_words(latency)),
        (
            "processor time (CPU-s per s of speech)",
            "cpu_seconds_per_audio_second",
            "all threads together",
        ),
    ):
        rows.append(_row(what, getattr(before, field), getattr(after, field), words=words))
    fewer = f"structured: {_GONE.format('arithmetic')}, on any hardware"
    sparse = "what a perfect sparse kernel would compute"
    if pattern == "2:4":
        sparse += "; sparse tensor cores (NVIDIA Ampere and later) do skip the zeros of 2:4"
    for what, field, words in (
        (
            "multiply-accumulates, dense (G)",
            "dense_macs",
            fewer if _fewer_macs(latency) else _ZEROS_COST,
        ),
        ("multiply-accumulates with a non-zero weight (G)", "nonzero_macs", sparse),
    ):
        rows.append(_row(what, getattr(before, field), getattr(after, field), 1e-9, words))
    return pd.DataFrame(rows, columns=[*_SIZE_COLUMNS, *_RUN_COLUMNS])


def _speed_words(latency: Latency) -> str:
    """Return whether the pruned voice is faster: only if it was in every run."""
    totals = [one.stage_seconds["total"].median for one in (latency.original, latency.pruned)]
    speed, runs = totals[0] / totals[1], latency.speed_up
    spread = f"{speed:.2f}× the speed (run by run: {runs.low:.2f} to {runs.high:.2f})"
    if runs.low > 1.0 and speed >= 1.05:
        return f"faster: {spread}"
    return f"not faster: {spread}" + ("" if _fewer_macs(latency) else f"; {_ZEROS_COST}")


def _fewer_macs(latency: Latency) -> bool:
    """Return whether dense kernels have less to do, as without channels that were removed."""
    return latency.pruned.dense_macs < latency.original.dense_macs


def _row(
    what: str, before: Spread | int, after: Spread | int, factor: float = 1.0, words: str = ""
) -> dict[str, Any]:
    """Return a row of two values; those of several runs have their lowest and highest too."""
    values = [one.median if isinstance(one, Spread) else one for one in (before, after)]
    row: dict[str, Any] = {
        "what": what,
        "original": _significant(factor * values[0]),
        "pruned": _significant(factor * values[1]),
        "pruned / original": round(values[1] / values[0], 3) if values[0] else None,
        "in words": words,
    }
    for name, spread in (("original", before), ("pruned", after)):
        if isinstance(spread, Spread):
            row[f"{name}, lowest run"] = _significant(factor * spread.low)
            row[f"{name}, highest run"] = _significant(factor * spread.high)
    return row


def _significant(value: float) -> float:
    """Return four significant digits."""
    return float(f"{value:.4g}")
