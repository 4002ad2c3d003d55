"""The Method tab: what the method does, one weight matrix before and after, and what each kind of pruning saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vits_prune.pruning.registry import METHODS, SCOPES
from vits_prune.pruning.spec import PruneSpec, in_words
from vits_prune.studio.jobs import Doing
from vits_prune.studio.workbench import Request
from vits_prune.study import tables
from vits_prune.ui import plots, steps

_PREFERRED = (
    "decoder.resblocks.0.convs",
    "decoder.upsampler.0",
    "text_encoder.encoder.layers.0.feed_forward.conv_1",
)
"""Beginnings of the names of layers that show well what happens, the best first."""

STYLE = """
table { width: 100%; border-collapse: collapse; table-layout: fixed; color: var(--body-text-color); font-size: 0.92em; }
th, td { border: 1px solid var(--border-color-primary); padding: 6px 8px; text-align: left; vertical-align: top; }
th { background: var(--background-fill-secondary); }
"""


def method_tab() -> dict[str, Any]:
    """The tab's components."""
    made: dict[str, Any] = {}
    made["lesson"] = gr.Markdown(
        "Press **Speak with both**: then one weight matrix is shown here, before and after.",
        elem_id="lesson",
    )
    made["matrix_layer"] = gr.Dropdown([], label="Layer", visible=False, elem_id="matrix-layer")
    made["matrix"] = gr.Plot(
        label="Weights before and after",
        show_label=False,
        format="png",
        elem_classes="pictures",
        elem_id="matrix",
    )
    gr.Markdown("**What saves what**")
    made["savings"] = gr.HTML(_savings(), css_template=STYLE, elem_id="savings")
    return made


def _savings() -> str:
    """What saves what, as a table that a phone shows whole."""
    head = "".join(
        f"<th scope='col'>{name}</th>" for name in ("what goes", "saves bytes", "saves time")
    )
    rows = (
        f"<tr><td><b>{row['what goes']}</b>: {row['what happens to it']}</td><td>{row['saves bytes']}</td><td>{row['saves time']}</td></tr>"
        for row in tables.SAVINGS.to_dict("records")
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def lesson_words(spec: PruneSpec) -> str:
    """The method in its two sentences, with what its scope or pattern means."""
    method = METHODS[spec.method]
    if method.structured:
        how = (
            "What is taken out is taken out of its neighbours too, so rows and columns are missing."
        )
    elif spec.pattern:
        keep, of = spec.neighbours
        how = f"At most {keep} of every {of} neighbouring input channels stay."
    else:
        how = f"Scope {spec.scope}: {SCOPES[spec.scope]}."
    return f"### {method.title}\n{method.words} {how}"


def taught(
    request: Request, token: str | None, layer: str | None = None
) -> Iterator[dict[str, Any]]:
    """The tab for what was heard; its findings come in the last update."""
    names = steps.matrix_choices(request, token)
    if layer not in names:
        layer = next(
            (name for begin in _PREFERRED for name in names if name.startswith(begin)), names[0]
        )
    for found in steps.matrix_steps(request, token, layer):
        if isinstance(found, Doing):
            yield {"status": f"{found.what} … {100 * found.share:.0f}%"}
    taps = f" (tap {found.tap + 1} of {found.taps})" if found.taps > 1 else ""
    words = (
        f"{lesson_words(request.spec)}\n\nBelow: a corner of `{layer}`{taps}, before and after "
        f"{in_words(request.spec)}"
    )
    yield {
        "lesson": f"{words}.",
        "matrix_layer": gr.Dropdown(names, value=layer, visible=True),
        "matrix": plots.matrices(found),
    }
