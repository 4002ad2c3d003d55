"""The course of a healing as a picture that grows: losses, and below them what was measured at checkpoints beside the original's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vits_prune.measure.quality import METRICS, Figure

MAX_POINTS = 300
"""Points of a line: a picture shows no more."""
MEASURED = ("cer", "dnsmos_ovrl", "duration_ratio")
_TOPS = {"cer": 1.0}
"""Where a picture ends: a recogniser that hears words in noise invents many times what was said."""
_NOT_LOSSES = ("step", "seconds", "total")


def course_value(
    rows: Sequence[Mapping[str, Any]],
    checks: Sequence[tuple[int, Mapping[str, Figure]]],
    of: int | None,
    kept: int | None,
    hint: str,
) -> dict[str, Any]:
    """What is known so far, as the component draws it.

    Args:
        rows: of heal.curve.Curve.
        checks: (step, figures by metric) of each checkpoint that was measured.
        of: steps in all, None while that is not known.
        kept: step of the voice that was kept, None while that is open.
        hint: the line under the picture.
    """
    thin = max(1, math.ceil(len(rows) / MAX_POINTS))
    shown = [*rows[::thin], *(rows[-1:] if len(rows) % thin != 1 % thin else ())]
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in _NOT_LOSSES
    ]
    losses = [
        {
            "name": name,
            "points": [[row["step"], row[name]] for row in shown if row.get(name, 0) > 0],
        }
        for name in names
    ]
    measured = []
    for name in MEASURED:
        found = [(step, figures[name]) for step, figures in checks if name in figures]
        if found:
            first = found[0][1]
            measured.append({
                "title": METRICS[name].title,
                "original": first.original.value if first.original else first.metric.neutral,
                "top": _TOPS.get(name),
                "points": [[step, one.pruned.value, one.pruned.low, one.pruned.high] for step, one in found],
            })  # fmt: skip
    return {
        "losses": [one for one in losses if one["points"]],
        "checks": measured,
        "of": of or 0,
        "kept": kept,
        "hint": hint,
    }
