"""The tab Layers: every layer as a bar, and the weights of the one that is pressed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vits_prune.progress import Progress
from vits_prune.pruning.spec import in_words
from vits_prune.studio import plots, renditions
from vits_prune.studio.descriptions import lesson_words
from vits_prune.study import comparison
from vits_prune.ui.events import QUIET, Page, on_stage
from vits_prune.ui.tables import savings
from vits_prune.ui.widgets import Made, widget

Values = dict[str, Any]
Shown = Iterator[dict[str, Any]]

_PICTURES = {"matrix": "Weights before and after", "histogram": "Weights by absolute value"}
_DRAWN = ("layer_words", *_PICTURES)


def layers_tab() -> Made:
    """Make the Layers tab's components."""
    made = Made()
    with gr.Row(elem_id="layers-row"):
        with gr.Column(scale=5, min_width=300):
            made["layers"] = widget("layers")
            made.download("layers")
        with gr.Column(scale=6, min_width=300, elem_id="layer-weights"):
            words = "Press a layer to see its weights before and after."
            made.add("layer_words", gr.Markdown, words, min_height=120)
            look = {"show_label": False, "format": "png", "elem_classes": "pictures"}
            for name, label in _PICTURES.items():
                made.add(name, gr.Plot, None, label, **look)
    with gr.Accordion("What saves what: zeros, patterns, channels", open=False):
        gr.HTML(savings(), elem_id="savings")
    made.add("layer", gr.Textbox, None, visible="hidden")  # the one whose weights are shown
    return made


def list_layers(values: Values, token: str | None, progress: Progress) -> Shown:
    """Show what pruning did to each layer of the voice on the stage."""
    changes, after = renditions.layer_changes(values["asked"], token, progress)
    first = renditions.telling_layer([one.layer.name for one in changes if one.layer.prunable])
    file = renditions.csv(comparison.layer_table(after), "layers")
    value = plots.layers_value(changes, after.parts, first)
    yield {"layers": value, "layers_csv": gr.DownloadButton(value=file, interactive=True)}


def draw_layer(values: Values, token: str | None, progress: Progress) -> Shown:
    """Draw the matrix and the weights of the layer that was pressed."""
    request, layer = on_stage(values), values["layer"]
    changes, _ = renditions.layer_changes(request, token, progress)
    alone = {one.layer.name: one.layer.reason for one in changes}.get(layer, "")
    if alone:
        words = f"`{layer}` is left alone by every method: {alone}."
        yield {"layer_words": words, **dict.fromkeys(_PICTURES)}
        return
    pair, weights = renditions.layer_weights(request, token, layer, progress)
    tap = f", tap {pair.tap + 1} of {pair.taps}" if pair.taps > 1 else ""
    below = f"Below: a corner of `{layer}`{tap}, before and after {in_words(request.spec)}."
    yield {
        "layer_words": f"{lesson_words(request.spec)}\n\n{below}",
        "matrix": plots.matrices(pair),
        "histogram": plots.weight_histogram(weights),
    }


def wire_layers(page: Page) -> list[Any]:
    """Wire the list, which follows the stage, and its presses; return what Stop may cancel."""

    def take(event: gr.EventData) -> str:
        return str(dict(event._data).get("layer"))[:200]

    told = {"status": "layer_words"}
    fills = ("layer_words", "layers", "layers_csv")
    listed = page["asked"].change(**page.event(list_layers, ("asked",), fills, "look", **told))
    draw = page.event(draw_layer, ("asked", "layer"), _DRAWN, "look", **told)
    pressed = page["layers"].click(take, None, page["layer"], queue=False, **QUIET)
    return [listed, pressed.success(**draw)]
