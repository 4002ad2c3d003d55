"""The Sensitivity tab: one part pruned at a time, as a picture whose cells can be heard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.measure.quality import FAMILIES
from vits_prune.studio.forecast import reachable
from vits_prune.studio.workbench import Request
from vits_prune.study.sweep_grid import DEFAULT_AMOUNTS, part_points
from vits_prune.study.tables import PART_NAMES
from vits_prune.ui import steps
from vits_prune.ui.controls import at_amount
from vits_prune.ui.evidence import MAX_CURVE_TEXTS, Point, measured_points
from vits_prune.ui.heat import heat, heat_value
from vits_prune.voices.voice import PARTS


def sensitivity_tab() -> dict[str, Any]:
    """The tab's components."""
    made: dict[str, Any] = {}
    gr.Markdown(
        "Which part of the voice breaks first? Each part is pruned **alone** at a few amounts, as chosen on the left, and "
        "measured against the original on held-out sentences. Press a cell to hear it."
    )
    with gr.Row():
        made["heat_texts"] = gr.Slider(
            2, MAX_CURVE_TEXTS, value=4, step=1, label="Sentences", elem_id="heat-texts"
        )
        made["heat_amounts"] = gr.CheckboxGroup(
            [(f"{amount:.0%}", amount) for amount in (0.1, 0.3, 0.5, 0.7, 0.9)],
            value=list(DEFAULT_AMOUNTS),
            label="Amounts",
            elem_id="heat-amounts",
        )
    made["heat_metrics"] = gr.CheckboxGroup(
        list(FAMILIES),
        value=["intelligibility", "naturalness", "rhythm"],
        label="Measures",
        elem_id="heat-metrics",
    )
    made["heat_start"] = gr.Button("Prune one part at a time", elem_id="heat-start")
    made["heat"] = heat()
    made["heat_csv"] = gr.DownloadButton(
        "Download sensitivity.csv", size="sm", interactive=False, elem_id="heat-csv"
    )
    return made


def sensitivity_steps(
    request: Request, token: str | None, texts: float, amounts: list[float], families: list[str]
) -> Iterator[dict[str, Any]]:
    """Measure cell after cell; each update shows all so far."""
    amounts = sorted(float(amount) for amount in amounts) or list(DEFAULT_AMOUNTS)
    wanted = [
        at_amount(request.spec, point.spec.amount, point.spec.parts)
        for point in part_points(amounts)
    ]
    specs = reachable(
        steps.bench.voice(request.reference, request.speaker, token, device="cpu"), wanted
    )
    lost = [
        PART_NAMES[part]
        for part in PARTS
        if sum(spec.parts == (part,) for spec in specs) < len(amounts)
    ]
    refused = (
        f"; left out where the method protects it or it cannot lose so much: {', '.join(lost)}"
        if lost
        else ""
    )
    for found, note, what in measured_points(request, token, specs, int(texts), families, "cell"):
        yield (
            {"status": what}
            if what
            else _shown(found, amounts, f"{note}{refused}", done=len(found) == len(specs))
        )


def _shown(points: list[Point], amounts: list[float], note: str, done: bool) -> dict[str, Any]:
    left_out = " ".join(points[0][2].unmeasured.values())
    hint = f"Measured on {note}. Darker is worse, within the metric shown; a dot: a difference is claimed. {left_out}".strip()
    rows = [
        {
            "method": s.method,
            "scope": s.scope,
            "part": s.parts[0],
            "amount": s.amount,
            "sparsity": found,
            **e.to_row(),
        }
        for s, found, e in points
    ]
    return {
        "heat": heat_value([(spec, evaluation) for spec, _, evaluation in points], amounts, hint),
        "heat_csv": gr.DownloadButton(
            value=steps.csv(pd.DataFrame(rows), "sensitivity"), interactive=True
        ),
        "status": "Done. Press a cell to hear it." if done else f"{len(points)} cells measured …",
    }
