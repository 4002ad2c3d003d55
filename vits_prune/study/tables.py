"""Measures as pandas tables, with a sentence wherever a number did not improve."""

from __future__ import annotations

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
_ZEROS_COST = "same kernels: a zero in a dense tensor costs what any other number costs"
_GONE = "channels or layers are gone, and their {} with them"


def sparsity_table(original: Sparsity, pruned: Sparsity) -> pd.DataFrame:
    """Zeros overall and by part, and the weights that are gone with their channels and layers."""
    rows = []
    for part in (None, *pruned.parts):
        rows.append({
            "part": "whole voice" if part is None else PART_NAMES[part],
            "weights": pruned.weights(part),
            "zeros before": original.zeros(part),
            "zeros after": pruned.zeros(part),
            "sparsity (%)": round(100 * pruned.zeros(part) / max(1, pruned.weights(part)), 2),
            "removed": original.weights(part) - pruned.weights(part),
        })  # fmt: skip
    return pd.DataFrame(rows)


def layer_table(pruned: Sparsity) -> pd.DataFrame:
    """Every layer with its sparsity, or why it was left alone."""
    return pd.DataFrame([
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
    ])  # fmt: skip


def size_table(original: Size, pruned: Size) -> pd.DataFrame:
    """Parameters, file sizes and memory of both voices; file sizes in MB of 1,000,000 bytes."""
    dense, place, held = (
        "every zero is written out in full: only another format makes the file smaller",
        "zeros still have their place in the tensors",
        "zeros are held like other numbers",
    )
    if pruned.parameters < original.parameters:
        dense = held = f"structured: {_GONE.format('bytes')}"
        place = f"structured: {_GONE.format('weights')}"
    rows = [
        _size_row("parameters (M)", original.parameters, pruned.parameters, place),
        _size_row(
            "parameters that are not zero (M)",
            original.nonzero_parameters,
            pruned.nonzero_parameters,
            "",
        ),
        _size_row(
            "file, dense fp32 (MB)", original.dense_fp32_bytes, pruned.dense_fp32_bytes, dense
        ),
        _size_row(
            "file, dense fp16 (MB)", original.dense_fp16_bytes, pruned.dense_fp16_bytes, dense
        ),
        _size_row(
            "file, sparse fp32, lossless (MB)",
            original.sparse_fp32_bytes,
            pruned.sparse_fp32_bytes,
            "bitmask of the zeros, the other values, compressed",
        ),
        _size_row("memory, ready to speak (MB)", original.memory_bytes, pruned.memory_bytes, held),
    ]
    if pruned.sparse_fp32_bytes > pruned.dense_fp16_bytes:
        rows[4]["in words"] = "at this sparsity plain fp16 is smaller still, though not lossless"
    return pd.DataFrame(rows)


def _size_row(what: str, before: int, after: int, words: str) -> dict[str, object]:
    """A row in millions (of bytes, or of parameters); `words` say why the number is what it is."""
    same = after >= 0.995 * before
    return {
        "what": what,
        "original": round(before / 1e6, 3),
        "pruned": round(after / 1e6, 3),
        "pruned / original": round(after / max(1, before), 3),
        "in words": ": ".join(filter(None, ("no smaller" if same else "", words))),
    }


def latency_table(latency: Latency, pattern: str = "") -> pd.DataFrame:
    """Stage by stage, then real-time factor, processor time and arithmetic; a pattern names the hardware that would gain from it."""
    rows = [
        _spread_row(f"{STAGE_NAMES[stage]} (ms)", latency, stage) for stage in (*STAGES, "total")
    ]
    rows.append(_rate_row("real-time factor (s per s of speech)", latency, "real_time_factor"))
    rows.append(
        _rate_row("processor time (CPU-s per s of speech)", latency, "cpu_seconds_per_audio_second")
    )
    rows[-2]["in words"] = _speed_words(latency)
    rows[-1]["in words"] = "all threads together"
    dense = (
        f"structured: {_GONE.format('arithmetic')}, on any hardware"
        if _fewer_macs(latency)
        else _ZEROS_COST
    )
    sparse = "what a perfect sparse kernel would compute"
    if pattern == "2:4":
        sparse += "; sparse tensor cores (NVIDIA Ampere and later) do skip the zeros of 2:4"
    for what, name, words in (
        ("multiply-accumulates, dense (G)", "dense_macs", dense),
        ("multiply-accumulates with a non-zero weight (G)", "nonzero_macs", sparse),
    ):
        before, after = getattr(latency.original, name), getattr(latency.pruned, name)
        rows.append({**_row(what, before / 1e9, after / 1e9), "in words": words})
    return pd.DataFrame(rows, columns=[*_SIZE_COLUMNS, *_RUN_COLUMNS])


def _speed_words(latency: Latency) -> str:
    speed = (
        latency.original.stage_seconds["total"].median
        / latency.pruned.stage_seconds["total"].median
    )
    spread = f"{speed:.2f}× the speed (run by run: {latency.speed_up.low:.2f} to {latency.speed_up.high:.2f})"
    if latency.speed_up.low > 1.0 and speed >= 1.05:
        return f"faster: {spread}"
    return (
        f"not faster: {spread}" if _fewer_macs(latency) else f"not faster: {spread}; {_ZEROS_COST}"
    )


def _fewer_macs(latency: Latency) -> bool:
    """Whether dense kernels have less to do, as they have where channels or layers were removed."""
    return latency.pruned.dense_macs < latency.original.dense_macs


def _row(
    what: str,
    before: float,
    after: float,
    spreads: tuple[Spread, Spread] | None = None,
    factor: float = 1.0,
) -> dict[str, object]:
    """A row; the spreads of the runs, where there are any, follow the words."""
    row: dict[str, object] = {
        "what": what,
        "original": _significant(before),
        "pruned": _significant(after),
        "pruned / original": round(after / before, 3) if before else None,
        "in words": "",
    }
    for name, spread in zip(("original", "pruned"), spreads or (), strict=False):
        row |= {
            f"{name}, lowest run": _significant(factor * spread.low),
            f"{name}, highest run": _significant(factor * spread.high),
        }
    return row


def _significant(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def _spread_row(what: str, latency: Latency, stage: str) -> dict[str, object]:
    before, after = (voice.stage_seconds[stage] for voice in (latency.original, latency.pruned))
    return _row(what, 1e3 * before.median, 1e3 * after.median, (before, after), factor=1e3)


def _rate_row(what: str, latency: Latency, name: str) -> dict[str, object]:
    before, after = getattr(latency.original, name), getattr(latency.pruned, name)
    return _row(what, before.median, after.median, (before, after))


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
"""Which kind of pruning saves what."""
_SIZE_COLUMNS = ["what", "original", "pruned", "pruned / original", "in words"]
_RUN_COLUMNS = [
    f"{name}, {end} run" for name in ("original", "pruned") for end in ("lowest", "highest")
]
EMPTY = {
    "sparsity": pd.DataFrame(
        columns=["part", "weights", "zeros before", "zeros after", "sparsity (%)", "removed"]
    ),
    "size": pd.DataFrame(columns=_SIZE_COLUMNS),
    "latency": pd.DataFrame(columns=[*_SIZE_COLUMNS, *_RUN_COLUMNS]),
    "layers": pd.DataFrame(
        columns=[
            "layer",
            "kind",
            "sparsity (%)",
            "left alone because",
            "shape",
            "weights",
            "zeros",
            "part",
        ]
    ),
}
"""Tables without rows, for a page that has not measured yet."""
