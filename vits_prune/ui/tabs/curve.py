"""The tab Curve: quality against the amount, and how sensitive each part is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.measure.quality import FAMILIES, METRICS, measured_by
from vits_prune.progress import Progress
from vits_prune.pruning.spec import PruneSpec, in_words
from vits_prune.studio import evidence, plots
from vits_prune.studio.request import PRUNING, SPEAKING, request_of, values_of
from vits_prune.study.comparison import PART_NAMES
from vits_prune.study.knee import KNEE_RULE, Limit, likely_limits, usual_limits
from vits_prune.study.sweep_grid import DEFAULT_AMOUNTS
from vits_prune.ui import tables
from vits_prune.ui.events import QUIET, Page, sentences
from vits_prune.ui.widgets import Made, widget
from vits_prune.voices.voice import PARTS

Values = dict[str, Any]
Shown = Iterator[dict[str, Any]]

_MOST_TEXTS = 20
_CURVE = ("curve_texts", "curve_step", "curve_last", "curve_metrics")
_HEAT = ("heat_by", "heat_texts", "heat_amounts", "heat_metrics")
_LIMITS = {
    "intelligibility": ("knee_cer", "Character errors: points that may be lost", 0.5),
    "naturalness": ("knee_naturalness", "{}: how much may be lost", 0.05),
    "closeness": ("knee_closeness", "{}: how far below another seed of the original", 0.05),
}
"""Family of a limit -> its control, the label, where {} is the predictor, and the step."""
_KNEE = ("curve_texts", *(name for name, *_ in _LIMITS.values()))
_TRIED = ("Amount", "Metric", "Change (95% interval)", "Limit", "Limit is")


# Components


def curve_tab() -> Made:
    """Make the tab's components: the curve with its knee, and the sensitivity."""
    made = Made()
    with gr.Row(elem_classes="halves"):
        with gr.Column(min_width=440):
            _add_curve(made)
        with gr.Column(min_width=440):
            _add_sensitivity(made)
    return made


def _add_curve(made: Made) -> None:
    gr.Markdown(
        "### Quality against amount\n\nThe voice is pruned by the method above at a row of amounts;"
        " a speech recogniser and other predictors measure it on held-out sentences, against"
        " the original and against the original with other seeds."
    )
    with gr.Row():
        steps = [("every 10%", 0.1), ("every 20%", 0.2), ("every 5%", 0.05)]
        made.add("curve_step", gr.Dropdown, 0.1, "Amounts", choices=steps, min_width=120)
        limits = {"minimum": 0.2, "maximum": 0.9, "step": 0.1}
        made.add("curve_last", gr.Slider, 0.6, "Up to", min_width=120, **limits)
        _add_texts(made, "curve", 5)
    _add_measures(made, "curve", "Measure the curve", "closeness")
    made.download("curve")
    gr.Markdown(
        "### The knee\n\nThe largest amount within limits, by bisection on as many sentences."
    )
    known = {METRICS[one.metric].family: one for one in likely_limits()}
    with gr.Row():
        for family, (name, label, step) in _LIMITS.items():
            one = known.get(family)
            lost = abs(one.change) * _scale(one) if one else None
            label = label.format(measured_by(one.metric) if one else "")
            made.add(name, gr.Number, lost, label, minimum=0, step=step, visible=bool(one))
    made.add("knee_start", gr.Button, "Find the knee", variant="primary")
    made.add("knee_words", gr.Markdown, "")
    tables.add_grid(made, "knee", "knee")


def _add_sensitivity(made: Made) -> None:
    gr.Markdown(
        "### Sensitivity\n\nWhich part of the voice breaks first, which layer of a part? Each is"
        " pruned **alone** at a few amounts, by the method above, and measured against the"
        " original."
    )
    with gr.Row():
        by = [("Parts", ""), *((f"Layers of the {PART_NAMES[part]}", part) for part in PARTS)]
        made.add("heat_by", gr.Dropdown, "", "Alone", choices=by, filterable=False, min_width=120)
        amounts = [(f"{amount:.0%}", amount) for amount in (0.1, 0.3, 0.5, 0.7, 0.9)]
        usual = list(DEFAULT_AMOUNTS)
        made.add("heat_amounts", gr.CheckboxGroup, usual, "Amounts", choices=amounts, min_width=120)
        _add_texts(made, "heat", 4)
    _add_measures(made, "heat", "Measure the sensitivity")
    made.download("heat", "sensitivity")


def _add_texts(made: Made, of: str, count: int) -> None:
    limits = {"minimum": 2, "maximum": _MOST_TEXTS, "step": 1}
    made.add(f"{of}_texts", gr.Slider, count, "Sentences", min_width=120, **limits)


def _scale(limit: Limit) -> float:
    """Return the factor to what the control of a limit shows: errors are in points."""
    return 100.0 if limit.metric == "cer" else 1.0


def _add_measures(made: Made, of: str, start: str, *more: str) -> None:
    usual = ["intelligibility", "naturalness", "rhythm", *more]
    made.add(f"{of}_metrics", gr.CheckboxGroup, usual, "Measures", choices=list(FAMILIES))
    made.add(f"{of}_start", gr.Button, start, variant="primary")
    made[of] = widget(of)


# Work


def measure_curve(values: Values, token: str | None, progress: Progress) -> Shown:
    """Measure point after point; each update shows all so far."""
    texts, step, last, families = (values[name] for name in _CURVE)
    request = request_of(values)
    wanted = evidence.amount_row(request.spec, step, last)
    for found in evidence.measure_points(request, token, wanted, int(texts), families, progress):
        drawn = tables.grid_shown("curve", plots.curve_value(found), found.table(), "curve")
        yield {**drawn, "status": _status(found, "point")}


def measure_alone(values: Values, token: str | None, progress: Progress) -> Shown:
    """Measure cell after cell; each update shows all so far."""
    by, texts, amounts, families = (values[name] for name in _HEAT)
    amounts, request = evidence.sensitivity_amounts(amounts), request_of(values)
    wanted: Any = evidence.parts_alone(request.spec, amounts)
    if by:
        wanted = evidence.layers_alone(request, token, by, amounts)
    asked = (request, token, wanted, int(texts), families, progress, "cell")
    for found in evidence.measure_points(*asked):
        table, value = found.table(parts="part"), plots.heat_value(found, amounts)
        drawn = tables.grid_shown("heat", value, table, "sensitivity")
        yield {**drawn, "status": _status(found, "" if by else "cell")}


def _status(found: evidence.Points, what: str) -> str:
    if found.complete:
        return f"Done. Press a {what} to hear it." if what else "Done."
    return f"{len(found.points)} {what or 'cell'}s measured …"


def find_knee(values: Values, token: str | None, progress: Progress) -> Shown:
    """Bisect the amount within the limits; show what was tried."""
    limits = []
    for one in usual_limits():
        lost = values[_LIMITS[METRICS[one.metric].family][0]]
        if lost is not None:
            change = math.copysign(float(lost) / _scale(one), one.change)
            limits.append(Limit(one.metric, change))
    texts = int(values["curve_texts"])
    found, note = evidence.find_knee(request_of(values), token, texts, limits, progress)
    amount, rows, words = f"{found.amount:.0%}", found.rows(), in_words(found.spec, amount=False)
    rule = KNEE_RULE.replace(" (with --strict: its whole 95% interval)", "")
    signature = f"Signature: `{found.signature}`"
    drawn = tables.grid("Amounts that were tried", _TRIED, plots.tried_rows(rows))
    yield {
        "knee_words": f"**Knee: {amount}** ({words}, {note}). {rule} {signature}",
        **tables.grid_shown("knee", drawn, pd.DataFrame(rows), "knee"),
        "status": f"Done. The largest amount within the limits is {amount}.",
    }


# Events


def wire_evidence(page: Page) -> list[Any]:
    """Wire the four buttons, and the points and cells; return the events that Stop may cancel.

    A pressed point or cell sets the controls as it was measured, and speaks.
    """
    wired = []
    for name, work, chosen, fills, lane in (
        ("curve", measure_curve, _CURVE, ("curve", "curve_csv"), "measure"),
        ("knee", find_knee, _KNEE, ("knee_words", "knee", "knee_csv"), "measure"),
        ("heat", measure_alone, _HEAT, ("heat", "heat_csv"), "measure"),
    ):
        event = page.event(work, (*SPEAKING, *chosen), ("status", *fills), lane)
        wired.append(page[f"{name}_start"].click(**event))

    def take_over(event: gr.EventData) -> dict[Any, Any]:
        with sentences():
            spec = PruneSpec.from_dict(dict(event._data).get("spec"))
            return {page[name]: value for name, value in values_of(spec).items()}

    settings = [page[name] for name in PRUNING]
    for name in ("curve", "heat"):
        pressed = page[name].click(take_over, None, settings, queue=False, **QUIET)
        pressed.success(None, js="() => document.querySelector('#speak').click()")
    return wired
