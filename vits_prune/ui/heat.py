"""Sensitivity as a picture: one part pruned at a time by a row of amounts, each cell a number that can be pressed to hear it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from vits_prune.measure.quality import METRICS
from vits_prune.pruning import PruneSpec
from vits_prune.study.evaluation import Evaluation
from vits_prune.study.knee import compared
from vits_prune.study.tables import PART_NAMES
from vits_prune.ui import picture

TEMPLATE = """
<div class="heat measured">
  <label class="pick">Metric <select class="metric" aria-label="Metric of the picture"></select></label>
  <div class="cells"></div>
  <p class="hint">${value.hint}</p>
</div>
"""

STYLE = (
    picture.STYLE
    + """
.cells { overflow-x: auto; }
.cells table { border-collapse: separate; border-spacing: 3px; width: 100%; }
.cells :is(table, tr, th, td) { border: 0 !important; background: none; }
.cells th[scope=row] { width: 1%; white-space: nowrap; }
.cells th { color: var(--body-text-color); font-weight: 500; font-size: 0.85em; text-align: left; padding: 2px 6px; }
.cells thead th { text-align: center; }
.cells td { padding: 0; }
.cells button { width: 100%; min-height: 44px; min-width: 52px; border: 0; border-radius: 6px; cursor: pointer; font-size: 0.9em; }
.cells button:focus-visible { outline: 3px solid #2f7ed8; }
"""
)

SCRIPT = (
    picture.SCRIPT
    + """
let chosen = '';
const value = () => props.value || {rows: [], amounts: [], metrics: {}};
function loss(number, better) {  // how much was lost: what became better is no loss
  return better === 'lower' ? Math.max(0, number) : better === 'higher' ? Math.max(0, -number) : Math.abs(number);
}
function draw() {
  const metric = value().metrics[chosen], cells = find('.cells');
  if (!metric) { cells.innerHTML = ''; return; }
  const losses = value().rows.flatMap((row) => row.cells.map((cell) => cell && cell.changes[chosen]).filter(Number.isFinite))
    .map((number) => loss(number, metric.better));
  const worst = Math.max(1e-9, ...losses);
  let out = '<table><thead><tr><th></th>';
  out += value().amounts.map((amount) => `<th scope="col">${Math.round(100 * amount)}%</th>`).join('') + '</tr></thead><tbody>';
  value().rows.forEach((row) => {
    out += `<tr><th scope="row">${esc(row.name)}</th>`;
    row.cells.forEach((cell, i) => {
      if (!cell) { out += '<td></td>'; return; }
      const number = cell.changes[chosen], share = Number.isFinite(number) ? loss(number, metric.better) / worst : 0;
      const back = `color-mix(in srgb, #d7301f ${Math.round(100 * share)}%, #fff3ec)`;
      const shown = Number.isFinite(number) ? (metric.distance || number <= 0 ? '' : '+') + nice(number) : '-';
      const claimed = ['worse', 'better', 'higher', 'lower'].includes(cell.verdicts[chosen]) ? ' •' : '';
      const what = `${row.name} alone at ${Math.round(100 * value().amounts[i])}%: ${metric.title} ${shown}`;
      const label = `${what}, ${cell.verdicts[chosen] || 'not measured'}. Press to hear.`;
      out += `<td><button style="background:${back};color:${share > 0.55 ? '#fff' : '#3b1a10'}"
        data-spec="${esc(JSON.stringify(cell.spec))}" title="${esc(label)}" aria-label="${esc(label)}">${shown}${claimed}</button></td>`;
    });
    out += '</tr>';
  });
  cells.innerHTML = out + '</tbody></table>';
}
element.addEventListener('click', (event) => {
  const cell = event.target.closest ? event.target.closest('button[data-spec]') : null;
  if (cell) trigger('click', {spec: JSON.parse(cell.dataset.spec)});
});
element.addEventListener('change', (event) => { if (event.target.matches('.metric')) { chosen = event.target.value; draw(); } });
function refresh() { pick(); draw(); }
watch('value', refresh);
refresh();
"""
)

EMPTY: dict[str, Any] = {
    "scope": "",
    "rows": [],
    "amounts": [],
    "metrics": {},
    "hint": "Cells appear as they are measured; press one to hear it.",
}


def heat() -> gr.HTML:
    """The component; its value is EMPTY or what `heat_value` makes. A pressed cell triggers `click` with its spec."""
    return gr.HTML(
        value=EMPTY, html_template=TEMPLATE, css_template=STYLE, js_on_load=SCRIPT, elem_id="heat"
    )


def heat_value(
    points: Sequence[tuple[PruneSpec, Evaluation]], amounts: Sequence[float], hint: str
) -> dict[str, Any]:
    """The measured points as the component draws them.

    Args:
        points: (spec of one part alone, evaluation), all of one scope.
        amounts: the columns.
        hint: the line under the picture.
    """
    metrics: dict[str, dict[str, Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    for spec, evaluation in points:
        (part,) = spec.parts
        changes = {
            name: interval.value
            for name, figure in evaluation.figures.items()
            if (interval := compared(figure))
        }
        for name in changes:
            metric = METRICS[name]
            distance = metric.kind == "distance"
            title = (
                metric.title
                + (f" ({metric.unit})" if metric.unit else "")
                + ("" if distance else ", change from the original")
            )
            metrics.setdefault(
                name, {"title": title, "better": metric.better, "distance": distance}
            )
        row = rows.setdefault(
            part, {"part": part, "name": PART_NAMES[part], "cells": [None] * len(amounts)}
        )
        row["cells"][list(amounts).index(spec.amount)] = {
            "spec": spec.to_dict(),
            "changes": changes,
            "verdicts": {name: evaluation.figures[name].verdict for name in changes},
        }
    return {
        "scope": points[0][0].scope if points else "",
        "rows": list(rows.values()),
        "amounts": list(amounts),
        "metrics": metrics,
        "hint": hint,
    }
