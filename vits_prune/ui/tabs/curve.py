"""The tabs Curve, Sensitivity and Fader: quality against the amount, and pruning as one motion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.measure.quality import FAMILIES
from vits_prune.progress import Progress
from vits_prune.pruning.spec import PruneSpec, in_words
from vits_prune.studio import evidence, plots
from vits_prune.studio.request import PRUNING, SPEAKING, request_of, values_of
from vits_prune.studio.speaking import csv
from vits_prune.study.knee import RULE, Limit
from vits_prune.study.sweep_grid import DEFAULT_AMOUNTS
from vits_prune.ui.events import QUIET, Page, sentences
from vits_prune.ui.widgets import widget

Values = dict[str, Any]
Shown = Iterator[dict[str, Any]]

_MOST_TEXTS = 20
_WIDTHS = ["90px", "200px", "90px", "220px", "200px"]


# Components


def curve_tab() -> dict[str, Any]:
    """Make the Curve tab's components."""
    made: dict[str, Any] = {}
    gr.Markdown(
        "How quality falls as weights go: the voice is pruned by the method on the left at a row of"
        " amounts, and measured on held-out sentences by a speech recogniser and a naturalness"
        " predictor, against the original and against the original with other seeds."
    )
    with gr.Row():
        made["curve_texts"] = _texts(5, "curve")
        made["curve_step"] = gr.Dropdown(
            [("every 10%", 0.1), ("every 20%", 0.2), ("every 5%", 0.05)], value=0.1, label="Amounts"
        )
        made["curve_last"] = gr.Slider(
            0.2, 0.9, value=0.6, step=0.1, label="Up to", elem_id="curve-last"
        )
    made["curve_metrics"] = _families("curve")
    made["curve_start"] = gr.Button("Measure the curve", elem_id="curve-start")
    made["curve"] = widget("curve")
    made["curve_csv"] = _download("curve")
    gr.Markdown(
        "**Knee finder**: the largest amount that stays within limits, by bisection on as many"
        " sentences as above."
    )
    with gr.Row():
        for name, value, step, label in (
            ("cer", 2.0, 0.5, "Character errors: points that may be lost"),
            ("dnsmos", 0.1, 0.05, "DNSMOS, overall: how much may be lost"),
        ):
            made[f"knee_{name}"] = gr.Number(
                value, label=label, minimum=0, step=step, elem_id=f"knee-{name}"
            )
    made["knee_start"] = gr.Button("Find the knee", elem_id="knee-start")
    made["knee_words"] = gr.Markdown("", elem_id="knee-words")
    made["knee"] = gr.Dataframe(
        visible=False, interactive=False, label="Amounts that were tried", elem_id="knee-table"
    )
    made["knee_csv"] = _download("knee", visible=False)
    return made


def sensitivity_tab() -> dict[str, Any]:
    """Make the Sensitivity tab's components."""
    made: dict[str, Any] = {}
    gr.Markdown(
        "Which part of the voice breaks first? Each part is pruned **alone** at a few amounts, as"
        " chosen on the left, and measured against the original on held-out sentences. Press a cell"
        " to hear it."
    )
    with gr.Row():
        made["heat_texts"] = _texts(4, "heat")
        made["heat_amounts"] = gr.CheckboxGroup(
            [(f"{amount:.0%}", amount) for amount in (0.1, 0.3, 0.5, 0.7, 0.9)],
            value=list(DEFAULT_AMOUNTS),
            label="Amounts",
            elem_id="heat-amounts",
        )
    made["heat_metrics"] = _families("heat")
    made["heat_start"] = gr.Button("Prune one part at a time", elem_id="heat-start")
    made["heat"] = widget("heat")
    made["heat_csv"] = _download("heat", "sensitivity")
    return made


def fader_tab() -> dict[str, Any]:
    """Make the Fader tab's components."""
    gr.Markdown(
        "One sentence, spoken at a row of amounts with the original's durations, so that all"
        " renditions are sample-aligned: it loops, and as you drag, one fades into the next."
    )
    return {
        "fader_start": gr.Button("Speak at a row of amounts", elem_id="fader-start"),
        "fader": widget("fader"),
    }


def _texts(value: int, of: str) -> gr.Slider:
    return gr.Slider(2, _MOST_TEXTS, value=value, step=1, label="Sentences", elem_id=f"{of}-texts")


def _families(of: str) -> gr.CheckboxGroup:
    return gr.CheckboxGroup(
        list(FAMILIES),
        value=["intelligibility", "naturalness", "rhythm"],
        label="Measures",
        elem_id=f"{of}-metrics",
    )


def _download(of: str, name: str = "", visible: bool = True) -> gr.DownloadButton:
    return gr.DownloadButton(
        f"Download {name or of}.csv",
        size="sm",
        interactive=False,
        visible=visible,
        elem_id=f"{of}-csv",
    )


# Work


def measure_curve(values: Values, token: str | None, progress: Progress) -> Shown:
    """Measure point after point; each update shows all so far."""
    texts, step, last, families = (values[f"curve_{name}"] for name in _CURVE)
    request = request_of(values)
    wanted = evidence.amount_row(request.spec, step, last)
    for found in evidence.measure_points(request, token, wanted, int(texts), families, progress):
        yield {
            "curve": plots.curve_value(found),
            "curve_csv": _filled("curve", found.table()),
            "status": "Done. Press a point to hear it."
            if found.complete
            else f"{len(found.points)} points measured …",
        }


def measure_parts(values: Values, token: str | None, progress: Progress) -> Shown:
    """Measure cell after cell; each update shows all so far."""
    texts, amounts, families = (values[f"heat_{name}"] for name in _HEAT)
    amounts, request = evidence.sensitivity_amounts(amounts), request_of(values)
    wanted = evidence.parts_alone(request.spec, amounts)
    for found in evidence.measure_points(
        request, token, wanted, int(texts), families, progress, "cell"
    ):
        yield {
            "heat": plots.heat_value(found, amounts),
            "heat_csv": _filled("sensitivity", found.table(parts="part")),
            "status": "Done. Press a cell to hear it."
            if found.complete
            else f"{len(found.points)} cells measured …",
        }


def find_knee(values: Values, token: str | None, progress: Progress) -> Shown:
    """Bisect the amount within the limits; show what was tried."""
    cer, dnsmos = values["knee_cer"], values["knee_dnsmos"]
    limits = [Limit("cer", float(cer) / 100)] if cer is not None else []
    limits += [Limit("dnsmos_ovrl", -float(dnsmos))] if dnsmos is not None else []
    found, note = evidence.find_knee(
        request_of(values), token, int(values["curve_texts"]), limits, progress
    )
    amount, rows = f"{found.amount:.2f}", found.rows()
    rule = RULE.replace(" (with --strict: its whole 95% interval)", "")
    tried, words = plots.tried_table(rows), in_words(found.spec, amount=False)
    yield {
        "knee_words": f"**Knee: amount {amount}** ({words}, {note}). {rule}",
        "knee": gr.Dataframe(tried, visible=True, column_widths=_WIDTHS),
        "knee_csv": _filled("knee", pd.DataFrame(rows)),
        "status": f"Done. The largest amount within the limits is {amount}.",
    }


def fade(values: Values, token: str | None, progress: Progress) -> Shown:
    """Speak at a row of amounts; the fader works once all are spoken."""
    yield {
        "fader": evidence.fader_renditions(request_of(values), token, progress),
        "status": "Ready: press play in the fader and drag.",
    }


def _filled(name: str, table: pd.DataFrame) -> gr.DownloadButton:
    return gr.DownloadButton(value=csv(table, name), interactive=True, visible=True)


# Events

_CURVE = ("texts", "step", "last", "metrics")
_HEAT = ("texts", "amounts", "metrics")


def wire_evidence(page: Page) -> list[Any]:
    """Wire the four buttons, and the points and cells; return the events that Stop may cancel.

    A pressed point or cell sets the controls as it was measured, and speaks.
    """
    wired = []
    for button, work, chosen, fills, lane in (
        ("curve_start", measure_curve, [f"curve_{one}" for one in _CURVE], ["curve", "curve_csv"],
         "measure"),
        ("knee_start", find_knee, ["curve_texts", "knee_cer", "knee_dnsmos"],
         ["knee_words", "knee", "knee_csv"], "measure"),
        ("heat_start", measure_parts, [f"heat_{one}" for one in _HEAT], ["heat", "heat_csv"],
         "measure"),
        ("fader_start", fade, [], ["fader"], "work"),
    ):  # fmt: skip
        event = page.event(work, (*SPEAKING, *chosen), ("status", *fills), lane)
        wired.append(page[button].click(**event))

    def take_over(event: gr.EventData) -> dict[Any, Any]:
        with sentences():
            spec = PruneSpec.from_dict(dict(event._data).get("spec"))
            return {page[name]: value for name, value in values_of(spec).items()}

    settings = [page[name] for name in PRUNING]
    for name in ("curve", "heat"):
        pressed = page[name].click(take_over, None, settings, queue=False, **QUIET)
        pressed.success(None, js="() => document.querySelector('#speak').click()")
    return wired
