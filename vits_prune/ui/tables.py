"""The tables Sparsity, Size, Latency and Quality as HTML, each with its CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd

from vits_prune.measure.predictors import deaf_words
from vits_prune.measure.quality import METRICS
from vits_prune.progress import Progress
from vits_prune.studio import evidence
from vits_prune.studio.descriptions import LABELS
from vits_prune.studio.renditions import csv
from vits_prune.studio.request import SPEAKING, request_of
from vits_prune.study import comparison
from vits_prune.study.evaluation import Evaluation
from vits_prune.ui.events import Page
from vits_prune.ui.widgets import Made

NONE = "–"


class _Row(NamedTuple):
    """How a row of a table of pairs is shown."""

    label: str
    unit: str
    less: str
    """What a smaller number is called."""
    more: str


def _rows(unit: str, less: str, more: str, labels: dict[str, str]) -> dict[str, _Row]:
    return {what: _Row(label, unit, less, more) for what, label in labels.items()}


SIZE_ROWS = {
    **_rows("MB", "smaller", "larger", {
        "file, dense fp32 (MB)": "File, dense fp32",
        "file, dense fp16 (MB)": "File, dense fp16",
        "file, sparse fp32, lossless (MB)": "File, sparse fp32",
        "memory, ready to speak (MB)": "Memory",
    }),
    **_rows("M", "fewer", "more", {
        "parameters (M)": "Weights",
        "parameters that are not zero (M)": "Weights not zero",
    }),
}  # fmt: skip
_STAGES = [f"{name} (ms)" for name in reversed(comparison.STAGE_NAMES.values())]
STAGES = _rows("ms", "faster", "slower", {
    name: name.partition(" (")[0].capitalize()
    for name in (_STAGES[0], comparison.DENSE_TOTAL, *_STAGES[1:])
})  # fmt: skip
_RTF = "real-time factor (s per s of speech)"
_DENSE = (comparison.DENSE_TOTAL, "text encoder (ms)", "durations (ms)")
"""What no sparse kernel makes faster."""
_MEMORY_NOISE = 0.1
"""Share by which the peak of one voice differs from run to run."""
LATENCY_ROWS = {
    **STAGES,
    **_rows("", "faster", "slower", {_RTF: "Real-time factor"}),
    **_rows("ms", "sooner", "later", {comparison.FIRST_SOUND: "First sound"}),
    **_rows("MB", "less", "more", {comparison.PEAK_MEMORY: "Peak memory"}),
}
COSTS = {
    **_rows("s/s", "less", "more", {"processor time (CPU-s per s of speech)": "Processor time"}),
    **_rows("G", "fewer", "more", {
        "multiply-accumulates, dense (G)": "Multiply-adds",
        "multiply-accumulates with a non-zero weight (G)": "… by non-zero weights",
    }),
}  # fmt: skip


# Cells


def number(value: float, unit: str = "") -> str:
    """Return three significant digits with thousands separators and the unit."""
    if not math.isfinite(value):
        return NONE
    rounded = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    sign = "−" if rounded < 0 else ""
    return f"{sign}{abs(rounded):,.{decimals}f} {unit}".rstrip()


def change(ratio: float, row: _Row, claimed: bool) -> tuple[str, str]:
    """Return a change as words with a sign, and the class that colours it.

    A change that is not claimed gets the words alone, such as "no smaller".
    """
    if not claimed:
        return f"{'not' if row.less == 'faster' else 'no'} {row.less}", "bad"
    less = ratio < 1
    share = number(100 * abs(ratio - 1))
    return f"{'−' if less else '+'}{share}% {row.less if less else row.more}", (
        "good" if less else "bad"
    )


def _bar(share: float) -> str:
    width = 100 * min(1.0, max(0.0, share))
    return f"<span class='bar' aria-hidden='true'><i style='width:{width:.1f}%'></i></span>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table; the first cell of a row names it, cells are HTML."""
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    body = "".join(
        f"<tr><th scope='row'>{first}</th>{''.join(cells)}</tr>" for first, *cells in rows
    )
    return (
        f"<div class='wide'><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str, kind: str = "", more: str = "") -> str:
    named = f" class='{kind}'" if kind else ""
    return f"<td{named}>{escape(text)}{more}</td>"


def _note(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _details(summary: str, inside: str) -> str:
    return f"<details><summary>{summary}</summary>{inside}</details>"


# Tables


def _sparsity(frame: pd.DataFrame | None) -> str:
    rows, note = [], ""
    if frame is None:
        names = ["whole voice", *list(comparison.PART_NAMES.values())[:4]]
        rows = [
            (name.capitalize(), *[_cell(NONE)] * 2, _cell(NONE, more=_bar(0))) for name in names
        ]
    else:
        for name, weights, _, zeros, _, removed in frame.itertuples(index=False):
            whole = max(1, weights + removed)
            said = [f"{100 * zeros / whole:.1f}% zero"] * bool(zeros or not removed)
            said += [f"{100 * removed / whole:.1f}% gone"] * bool(removed)
            millions = [number(n / 1e6, "M") for n in (weights + removed, weights - zeros)]
            share = _cell(", ".join(said), more=_bar((zeros + removed) / whole))
            rows.append((escape(name.capitalize()), *map(_cell, millions), share))
        _, weights, _, zeros, _, removed = next(frame.itertuples(index=False))
        note = f"{zeros:,} of {weights:,} weights are zero."
        if removed:
            gone = f"{removed:,} of {weights + removed:,} weights are gone"
            note = f"{gone}. Of the rest, {zeros:,} are zero."
    heads = ("Part", "Weights", "Left", "Zero or gone")
    return _table("Sparsity", heads, rows) + _note(note)


def _pairs(
    caption: str, frame: pd.DataFrame | None, known: dict[str, _Row], claims: Any
) -> tuple[str, dict[str, str]]:
    """Return a table of originals and pruned, and the words of its rows by label."""
    found = {} if frame is None else {row["what"]: row for row in frame.to_dict("records")}
    rows, words = [], {}
    for what, row in known.items():
        one = found.get(what)
        if one is None:
            rows.append((row.label, _cell(NONE), _cell(NONE, more=_bar(0)), _cell(NONE)))
            continue
        ratio = one["pruned / original"]
        known_ratio = ratio is not None and math.isfinite(ratio)
        said, kind = change(ratio, row, claims(one)) if known_ratio else (NONE, "")
        before, after = (number(one[name], row.unit) for name in ("original", "pruned"))
        bar = _bar(ratio if known_ratio else 0)
        rows.append((row.label, _cell(before), _cell(after, more=bar), _cell(said, kind)))
        if one["in words"]:
            words[row.label] = one["in words"]
    return _table(caption, ("", "Original", "Pruned", "Change"), rows), words


def _listed(words: dict[str, str]) -> str:
    items = "".join(f"<li><b>{label}</b>: {escape(said)}.</li>" for label, said in words.items())
    return f"<ul>{items}</ul>" if items else _note(NONE)


def _size(frame: pd.DataFrame | None) -> str:
    def smaller(row: dict[str, Any]) -> bool:
        return not row["in words"].startswith("no smaller")

    table, words = _pairs("Size", frame, SIZE_ROWS, smaller)
    first = words.get("File, dense fp32", "")
    note = f"Dense file: {first}." if first else ""
    return table + _note(note) + _details("Why, row by row", _listed(words))


def _latency(frame: pd.DataFrame | None) -> str:
    speed = "" if frame is None else frame.set_index("what")["in words"][_RTF]
    total = f"{comparison.STAGE_NAMES['total']} (ms)"

    same = comparison.ZEROS_COST in speed
    said = {} if frame is None else dict(frame.set_index("what")["in words"])
    zeros_alone = said.get(comparison.DENSE_TOTAL) == comparison.ZEROS_COST

    def apart(row: dict[str, Any]) -> bool:
        """Return whether the change is claimed: by all runs, for the sum by the table's words.

        Of times none is where the same kernels compute the same.
        """
        if row["what"] in (total, _RTF):
            return speed.startswith("faster")
        if (same and row["what"] in LATENCY_ROWS) or (zeros_alone and row["what"] in _DENSE):
            return False
        if math.isnan(row.get("pruned, lowest run", math.nan)):
            noise = _MEMORY_NOISE if row["what"] == comparison.PEAK_MEMORY else 0.005
            return abs(row["pruned / original"] - 1) >= noise
        before, after = (
            [row[f"{name}, {end} run"] for end in ("lowest", "highest")]
            for name in ("original", "pruned")
        )
        return after[1] < before[0] or before[1] < after[0]

    table, _ = _pairs("Latency", frame, LATENCY_ROWS, apart)
    costs, words = _pairs("Processor time and arithmetic", frame, COSTS, apart)
    note = f"{speed[:1].upper()}{speed[1:]}." if speed else ""
    table += _note(note) + _details("Processor time and arithmetic", costs + _listed(words))
    ends = comparison.PREDICTED
    parts = {what: what.removesuffix(ends).capitalize() for what in said if what.endswith(ends)}
    if parts:
        rows = _rows("ms", "faster", "slower", parts)
        kernels, words = _pairs("Kernels, part by part: predicted times", frame, rows, apart)
        table += _details("Kernels, part by part", kernels + _listed(words))
    return table


def _quality(found: Evaluation | None) -> str:
    frame = None if found is None else evidence.quality_table(found)
    said = {} if frame is None else {row["metric"]: row for row in frame.to_dict("records")}
    rows = []
    for name, (label, scale) in LABELS.items():
        row = said.get(METRICS[name].title)
        if row is None:
            rows.append((label, *[_cell(NONE)] * 4))
            continue
        low, high = (number(scale * row[f"change, {end}"]) for end in ("low", "high"))
        floor = [number(scale * row[f"noise floor, {end}"]) for end in ("low", "high")]
        noise = f"±{floor[1]}" if floor[0].startswith("−") else " to ".join(dict.fromkeys(floor))
        moved = f"{'+' * (row['change'] > 0)}{number(scale * row['change'])} ({low} to {high})"
        kind = {"worse": "bad", "better": "good"}.get(row["verdict"], "")
        both = (_cell(number(scale * row[end])) for end in ("original", "pruned"))
        rows.append((label, *both, _cell(moved, kind), _cell(noise)))
    heads = ("Metric", "Original", "Pruned", "Change (95% interval)", "Noise floor")
    table = _table("Quality: the numbers", heads, rows)
    words = [NONE] * len(rows) if frame is None else frame["in words"]
    items = "".join(f"<li>{escape(one)}</li>" for one in words)
    claim, notes = NONE, [""]
    if found:
        claim = found.claim.sentence(len(found.texts))
        about = " ".join(deaf_words(found.figures)), evidence.gaps(found)
        notes = [*filter(None, about), f"Signature: {found.signature}"]
    more = "".join(_note(one) for one in notes)
    return f"{_CLAIM}{escape(claim)}</p><ul class='said'>{items}</ul>{table}{more}"


_CLAIM = "<p style='padding-right:172px;font-size:var(--t3,16px);line-height:24px;color:inherit'>"
"""Beside it is the button for the CSV."""
_DRAWN = {"sparsity": _sparsity, "size": _size, "latency": _latency, "quality": _quality}


def html(name: str, found: Any = None) -> str:
    """Return a table by name, with dashes where nothing was measured.

    `found` is its DataFrame, of quality the Evaluation.
    """
    return f"<div class='measures'>{_DRAWN[name](found)}</div>"


def savings() -> str:
    """Return what saves what, as a table."""
    rows = [
        (f"<b>{what}</b>: {happens}", _cell(size), _cell(speed))
        for what, happens, size, speed in comparison.SAVINGS.itertuples(index=False)
    ]
    table = _table("What saves what", ("What goes", "Saves bytes", "Saves time"), rows)
    return f"<div class='measures prose-cells'>{table}</div>"


def grid(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    words: dict[str, str] | None = None,
) -> str:
    """Return a table of plain text.

    Args:
        caption: of the table.
        heads: of the columns.
        rows: cells; the first names its row.
        words: more about rows, by name.
    """
    cells = [(escape(first), *map(_cell, rest)) for first, *rest in rows]
    more = _details("Row by row, in words", _listed(words)) if words else ""
    return f"<div class='measures'>{_table(caption, heads, cells)}{more}</div>"


# Components and events


def add_grid(made: Made, name: str, file: str) -> None:
    """Make a place for a table that is measured on demand, with the button for its CSV."""
    with gr.Column(elem_classes="tables"), gr.Row(), gr.Column(min_width=280):
        made.add(name, gr.HTML, "")
        made.download(name, file, visible=False)


def grid_shown(name: str, drawn: Any, frame: pd.DataFrame, file: str) -> dict[str, Any]:
    """Return the updates that show such a table, with its numbers as CSV."""
    button = gr.DownloadButton(value=csv(frame, file), interactive=True, visible=True)
    return {name: drawn, f"{name}_csv": button}


def grid_cleared(name: str) -> dict[str, Any]:
    """Return the updates that empty its place."""
    return {name: "", f"{name}_csv": gr.DownloadButton(visible=False)}


def tables_components() -> Made:
    """Make the three tables, and below them quality with its button; each has NAME_csv."""
    made = Made()
    with gr.Column(elem_classes="tables"):
        with gr.Row(elem_classes="three"):
            for name in ("sparsity", "size", "latency"):
                with gr.Column(min_width=280):
                    made.add(name, gr.HTML, html(name))
                    made.download(name)
        title = "Quality: words, naturalness, closeness, speaker (measured when you open it)"
        with gr.Accordion(title, open=False, elem_id="quality-box") as made["quality_box"]:
            with gr.Row():
                limits = {"minimum": 2, "maximum": 20, "step": 1}
                made.add("quality_texts", gr.Slider, 5, "Sentences", **limits)
                made.add("quality_start", gr.Button, "Measure again")
            with gr.Row(), gr.Column():
                made.add("quality", gr.HTML, html("quality"))
                made.download("quality")
    return made


def shown(name: str, found: Any, who: str = "Pruned") -> dict[str, Any]:
    """Return the updates that show a table and offer it as CSV; `who` is compared."""
    frame = evidence.quality_table(found) if name == "quality" else found
    button = gr.DownloadButton(value=csv(frame, name), interactive=True)
    drawn = html(name, found).replace("<th scope='col'>Pruned</th>", f"<th scope='col'>{who}</th>")
    return {name: drawn, f"{name}_csv": button}


def cleared(*names: str) -> dict[str, Any]:
    """Return the updates that put dashes into tables."""
    buttons = {f"{name}_csv": gr.DownloadButton(interactive=False) for name in names}
    return {name: html(name) for name in names} | buttons


def measure_quality(
    values: dict[str, Any], token: str | None, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Measure the pruned voice that is on the stage, or what the controls ask for."""
    request, texts = values["asked"] or request_of(values), int(values["quality_texts"])
    wanted, families = [request.spec], evidence.FAMILIES
    for found in evidence.measure_points(request, token, wanted, texts, families, progress):
        evaluation, who = found.points[0].evaluation, "Healed" if request.healed else "Pruned"
        status = f"Done. Quality: {found.note}. {evaluation.claim.sentence(len(evaluation.texts))}"
        yield {"status": status, **shown("quality", evaluation, who)}


def wire_quality(page: Page) -> list[Any]:
    """Measure when the box is opened or the button pressed; return what Stop may cancel."""
    reads = ("asked", *SPEAKING, "quality_texts")
    event = page.event(measure_quality, reads, ("status", "quality", "quality_csv"), "measure")
    return [page["quality_box"].expand(**event), page["quality_start"].click(**event)]
