"""What was measured of the pruned voice's quality, as a table with a sentence for each metric."""

from __future__ import annotations

import math

import pandas as pd

from vits_prune.measure.quality import NO_DIFFERENCE, Figure
from vits_prune.study.evaluation import Evaluation

FAMILIES = ("intelligibility", "naturalness", "closeness")
LABELS = {
    "cer": ("Letters misheard, of 100", 100.0),
    "wer": ("Words misheard, of 100", 100.0),
    "dnsmos_ovrl": ("DNSMOS, 1 to 5", 1.0),
    "mcd_db": ("Mel-cepstral distortion, dB", 1.0),
    "f0_rmse_cents": ("Pitch error, cents", 1.0),
}
"""Metrics of the table: what the page calls each, and the factor to that unit."""
COLUMNS = [
    *("metric", "unit", "original", "pruned", "change", "change, low", "change, high"),
    *("noise floor, low", "noise floor, high", "verdict", "in words", "sentences"),
]
DEAF = {
    "words": "the recogniser guesses from context, and a flat or robotic voice is no error to it",
    "naturalness": "DNSMOS was trained on noisy calls and hardly hears what pruning does",
    "closeness": "it counts every difference, whether or not anyone can hear it",
}
"""What each family of metrics does not hear."""


def quality_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return a row a metric: both voices, the change with its 95% interval, the noise floor.

    A distance has no value of its own for the original. Its change is from the original's farthest
    other seed.
    """
    figures = [evaluation.figures[name] for name in LABELS if name in evaluation.figures]
    rows = [(*_numbers(one), figure_words(one), len(evaluation.texts)) for one in figures]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype(dict.fromkeys(COLUMNS[2:9], float))


def _numbers(one: Figure) -> tuple[str | float | None, ...]:
    change, floor, original = one.difference, one.floor, one.original
    return (
        *(one.metric.title, one.metric.unit, original.value if original else None),
        one.pruned.value,
        *(getattr(change, field, None) for field in ("value", "low", "high")),
        *(getattr(floor, field, None) for field in ("low", "high")),
        one.verdict,
    )


def figure_words(one: Figure) -> str:
    """Return what one figure means, as a sentence with its verdict."""
    value, name = one.pruned.value, one.metric.name
    change = one.difference.value if one.difference else 0.0
    limit = one.floor.high if one.floor else math.inf
    if one.metric.kind == "distance":
        what = "Pitch" if name == "f0_rmse_cents" else "Closeness"
        said = f"{what}: {value:.3g} {one.metric.unit} away from the original"
        seed = f"another seed of the original is {limit:.3g} away"
        within = value <= limit
    else:
        digits, points = (2, "of 5 points predicted") if name == "dnsmos_ovrl" else (1, "")
        what = "Naturalness" if points else "Words"
        scale = LABELS[name][1]
        more, less = ("above", "below") if points else ("more than", "fewer than")
        misheard = f"of 100 {'letters' if name == 'cer' else 'words'} are misheard"
        said = f"{what}: {scale * value:.{digits}f} {points or misheard}"
        moved = f"{scale * abs(change):.{digits}f}"
        same = not float(moved)
        said += (
            ", as with the original" if same
            else f", {moved} {more if change > 0 else less} the original"
        )  # fmt: skip
        seed = f"another seed changes it by {scale * limit:.{digits}f}"
        within = abs(change) <= limit
    if not one.floor:
        return f"{said}: {one.verdict}."
    if one.verdict == NO_DIFFERENCE and not within:
        seed += ", and the interval leaves room for chance"
    return f"{said}; {seed}: {one.verdict}."
