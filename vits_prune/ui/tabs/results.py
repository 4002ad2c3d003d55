"""What "Speak with both" fills: the players, the tables, the method and the pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.pruning.registry import METHODS
from vits_prune.pruning.spec import in_words
from vits_prune.studio import plots, renditions, workbench
from vits_prune.studio.descriptions import heard_words, lesson_words
from vits_prune.studio.request import SPEAKING, Request, request_of
from vits_prune.study import comparison as tables
from vits_prune.ui.controls import LOADED, VOICE_SHOWN, load_voice
from vits_prune.ui.events import LANES, QUIET, Page, tickets
from vits_prune.ui.widgets import Made, source, widget

Values = dict[str, Any]
Shown = Iterator[dict[str, Any]]

_HINTS = {
    True: "Both play in step: flip with the switch (Tab, then Space), move with the arrow keys.",
    False: "Each voice has its own durations. Set timing to “locked” to flip between the two.",
}
_TABLES = ("sparsity", "size", "latency", "layers")
_WIDTHS = {
    "sparsity": ["170px", "110px", "90px", "110px", "90px", "110px"],
    "size": ["200px", "85px", "85px", "85px", "300px"],
    "latency": ["200px", "85px", "85px", "85px", "300px", "110px", "110px", "110px", "110px"],
    "layers": ["250px", "130px", "100px", "240px", "130px", "100px", "100px", "150px"],
}
"""Widths of the columns: the words beside a number must be in sight before its spread."""


_PICTURES = {
    "spectrograms": "Spectrograms",
    "bars": "Sparsity by layer",
    "histogram": "Weights by absolute value",
}


# Components


def player(label: str, elem_id: str, colour: str, **options: Any) -> gr.Audio:
    """Return a player with a download button, and a waveform of one colour."""
    waves = gr.WaveformOptions(waveform_color="#b8c0cc", waveform_progress_color=colour)
    options |= {"interactive": False, "buttons": ["download"], "waveform_options": waves}
    return gr.Audio(label=label, elem_id=elem_id, **options)


def player_components() -> Made:
    """Make the status line, the two players, and the switch between them."""
    made = Made()
    made.add("status", gr.Markdown, "Press **Speak with both**.", min_height=56)
    made.add("summary", gr.Markdown, "")
    made["asked"] = gr.State()
    with gr.Row():
        made["original"] = player("Original", "original-audio", plots.ORIGINAL)
        made["pruned"] = player("Pruned", "pruned-audio", plots.PRUNED)
    made["flip"] = widget("flip")
    label = "Steps of gradual pruning: choose one to hear it"
    made.add("rendition", gr.Radio, None, label, choices=[], visible=False)
    label, options = "Step, with the original's durations", {"visible": False, "autoplay": True}
    made["rendition_audio"] = player(label, "rendition-audio", "#8d6cc9", **options)
    return made


def result_tabs() -> Made:
    """Make the tabs Sparsity, Size, Latency, Layers, Method and Pictures."""
    made = Made()
    for name in _TABLES:
        with gr.Tab(name.capitalize(), id=name):
            search = "filter" if name == "layers" else "none"
            look = {"wrap": True, "max_height": 620, "buttons": ["copy", "fullscreen"]}
            named = {"label": name.capitalize(), "show_label": False, "elem_id": f"{name}-table"}
            how = {"interactive": False, "column_widths": _WIDTHS[name], "show_search": search}
            made[name] = gr.Dataframe(tables.EMPTY[name], **named, **look, **how)
            made.download(name)
    picture = {"show_label": False, "format": "png", "elem_classes": "pictures"}
    with gr.Tab("Method", id="method-tab"):
        words = "Press **Speak with both** to see one weight matrix here, before and after."
        made.add("lesson", gr.Markdown, words)
        made.add("matrix_layer", gr.Dropdown, None, "Layer", choices=[], visible=False)
        made.add("matrix", gr.Plot, None, "Weights before and after", **picture)
        gr.Markdown("**What saves what**")
        gr.HTML(_savings(), css_template=source("savings.css"), elem_id="savings")
    with gr.Tab("Pictures", id="pictures"):
        for name, label in _PICTURES.items():
            made.add(name, gr.Plot, None, label, **picture)
    return made


def _savings() -> str:
    """Return what saves what as an HTML table, which a phone shows whole."""
    heads = ("what goes", "saves bytes", "saves time")
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    rows = "".join(
        f"<tr><td><b>{what}</b>: {happens}</td><td>{size}</td><td>{speed}</td></tr>"
        for what, happens, size, speed in tables.SAVINGS.itertuples(index=False)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


# Work


def prune(values: Values, token: str | None, progress: Progress) -> Shown:
    """Prune in the page's own process, so that all that follows finds the voice."""
    request = request_of(values)
    part = progress.part(0.0, 1.0, f"{in_words(request.spec)}: ")
    workbench.bench.pruned(request, token, part)
    yield {"status": "pruned; speaking comes next …", "asked": request}


def hear(values: Values, token: str | None, progress: Progress) -> Shown:
    """Show the sound and its sparsity; clear what was measured for other settings."""
    request = values["asked"]
    spoken = renditions.hear(request, token, progress)
    yield {
        "status": "Both have spoken; measuring comes next.",
        "summary": heard_words(request, spoken),
        "original": renditions.wav(spoken.original, "original"),
        "pruned": renditions.wav(spoken.pruned, "pruned"),
        "flip": {"aligned": spoken.aligned, "hint": _HINTS[spoken.aligned]},
        "rendition": _renditions(request),
        "rendition_audio": gr.Audio(None, visible=False),
        **_table("sparsity", tables.sparsity_table(*spoken.sparsity)),
        **_table("layers", tables.layer_table(spoken.sparsity[1])),
        **{name: tables.EMPTY[name] for name in ("size", "latency")},
        **{f"{name}_csv": gr.DownloadButton(interactive=False) for name in ("size", "latency")},
    }


def _renditions(request: Request) -> gr.Radio:
    """Offer the steps of gradual pruning, where there are several."""
    amounts = request.spec.schedule_amounts()
    how = "of the channels gone" if METHODS[request.spec.method].structured else "zeros"
    choices = [(f"step {i + 1}: {100 * amount:.1f}% {how}", i) for i, amount in enumerate(amounts)]
    return gr.Radio(choices, value=None, visible=len(amounts) > 1)


def hear_step(values: Values, token: str | None, progress: Progress) -> Shown:
    """Let the voice of one step of gradual pruning speak."""
    request, index = values["asked"], values["rendition"]
    if isinstance(index, bool) or not isinstance(index, int):
        raise InputError("Choose one of the steps.")
    speech = renditions.hear_step(request, index, token, progress)
    step, path = index + 1, renditions.wav(speech, f"step-{index + 1}")
    label = f"Step {step} of {len(request.spec.schedule_amounts())}, with the original's durations"
    audio = gr.Audio(path, label=label, visible=True)
    yield {"status": f"Done: step {step} speaks.", "rendition_audio": audio}


def draw(values: Values, token: str | None, progress: Progress) -> Shown:
    """Draw the spectrograms, the layers, the weights, and one weight matrix."""
    progress.report("drawing", 0.0)
    spoken, before, after, weights = renditions.measure_both(values["asked"], token, progress)
    yield {
        "spectrograms": plots.spectrograms(before, after, spoken.aligned),
        "bars": plots.layer_bars(spoken.sparsity[1]),
        "histogram": plots.weight_histogram(weights),
        **_matrix(values["asked"], token, None, progress),
    }


def draw_matrix(values: Values, token: str | None, progress: Progress) -> Shown:
    """Draw the matrix of the chosen layer."""
    yield _matrix(values["asked"], token, values["matrix_layer"], progress)


def _matrix(
    request: Request, token: str | None, layer: str | None, progress: Progress
) -> dict[str, Any]:
    names = renditions.matrix_layers(request, token)
    layer = layer if layer in names else renditions.telling_layer(names)
    found = renditions.matrix_pair(request, token, layer, progress)
    tap = f" (tap {found.tap + 1} of {found.taps})" if found.taps > 1 else ""
    below = f"Below: a corner of `{layer}`{tap}, before and after {in_words(request.spec)}."
    choice = gr.Dropdown(names, value=layer, visible=True)
    lesson = f"{lesson_words(request.spec)}\n\n{below}"
    return {"lesson": lesson, "matrix_layer": choice, "matrix": plots.matrices(found)}


def weigh(values: Values, token: str | None, progress: Progress) -> Shown:
    """Show the size of each file format."""
    progress.report("writing each file format to see its size", 0.0)
    yield _table("size", tables.size_table(*workbench.bench.size(values["asked"], token)))


def time_both(values: Values, token: str | None, progress: Progress) -> Shown:
    """Show the latency of both voices."""
    request = values["asked"]
    found = renditions.time_both(request, token, progress)
    whole = renditions.timed_text(request.text) == request.text.strip()
    runs = f"{found.runs} runs of each voice" + " on the beginning of the text" * (not whole)
    status = f"Done. Latency: {runs}, {found.threads} threads, {found.device}."
    table = tables.latency_table(found, request.spec.pattern)
    yield {"status": status, **_table("latency", table)}


def _table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    csv = gr.DownloadButton(value=renditions.csv(table, name), interactive=True)
    return {name: table, f"{name}_csv": csv}


# Events

_START, _SPEAK, _STOP, _ENDED = (
    f"() => speakRun.{name}()" for name in ("start", "speak", "stop", "ended")
)
"""Functions of widgets/speak_button.js."""
_MATRIX = ("lesson", "matrix_layer", "matrix")
_HEARD = (
    "summary", "original", "pruned", "flip", "rendition", "rendition_audio",
    *(name + end for name in _TABLES for end in ("", "_csv")),
)  # fmt: skip
_CHAIN = (
    (prune, SPEAKING, ("asked",), "prune"),
    (hear, ("asked",), _HEARD, "work"),
    (draw, ("asked",), (*_PICTURES, *_MATRIX), "measure"),
    (weigh, ("asked",), ("size", "size_csv"), "measure"),
    (time_both, ("asked",), ("latency", "latency_csv"), "measure"),
)
"""What "Speak with both" sets off after loading, what it reads and fills, and in which lane.

All but the first look at the Request that was pruned, whatever the controls say by then. Each shows
its findings in its last update: Gradio 6.31 forgets what an earlier one put into a tab that was
never opened."""


def wire_results(page: Page) -> list[Any]:
    """Wire "Speak with both"; return the events that Stop may cancel."""
    start = {"js": _START, "trigger_mode": "multiple"}
    started = page["go"].click(None, None, page["ticket"], **start, **QUIET)
    load = page.event(load_voice, LOADED, VOICE_SHOWN, "load", bar="facts", ticket="ticket")
    chain = [started.then(**load)]
    for work, reads, fills, lane in _CHAIN:
        event = page.event(work, reads, ("status", *fills), lane, ticket="ticket")
        chain.append(chain[-1].success(**event))
    for one in chain:
        one.failure(None, js=_ENDED, **QUIET)
    chain[-1].then(None, js=_ENDED, **QUIET)
    pressed = [page["speak"].click, page["text"].submit]
    gr.on(pressed, tickets.cancel, page["ticket"], None, js=_SPEAK, queue=False, **QUIET)
    layer = page.event(draw_matrix, ("asked", "matrix_layer"), ("status", *_MATRIX), "look")
    step = page.event(hear_step, ("asked", "rendition"), ("status", "rendition_audio"), "work")
    return [page["matrix_layer"].input(**layer), page["rendition"].input(**step)]


def wire_stop(page: Page, running: list[Any]) -> None:
    """Let Stop end the run under way and cancel the other events."""
    stop = {"js": _STOP, "cancels": running, "queue": False}
    stopped = page["stop"].click(_stop, page["ticket"], page["status"], **stop, **QUIET)
    # Once more, after what a stopped event has still under way to the page.
    stopped.then(_stop_again, None, page["status"], **LANES["at once"], **QUIET)


def _stop(ticket: Any) -> str:
    tickets.cancel(ticket)
    return "Stopped."


def _stop_again() -> str:
    time.sleep(0.5)
    return "Stopped."
