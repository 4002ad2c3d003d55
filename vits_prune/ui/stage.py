"""The stage: one text at a row of amounts, heard as the slider moves, and what that does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.pruning.spec import MAX_AMOUNT, METHODS, PruneSpec, in_words
from vits_prune.studio import evidence, renditions, workbench
from vits_prune.studio.descriptions import happened
from vits_prune.studio.heal_jobs import staged
from vits_prune.studio.request import (
    FIRST,
    SPEAKING,
    Request,
    as_command,
    as_python,
    request_of,
    values_of_query,
)
from vits_prune.studio.rows import Row, fill, known_row, row_of, warm_up
from vits_prune.study import comparison
from vits_prune.ui import tables
from vits_prune.ui.controls import LOADED, VOICE_SHOWN, load_voice
from vits_prune.ui.events import LANES, QUIET, Page, on_stage, sentences, tickets
from vits_prune.ui.tabs.learn import open_page
from vits_prune.ui.widgets import Made, player, widget

Values = dict[str, Any]
Shown = Iterator[dict[str, Any]]

_HINTS = {
    True: "Drag the amount while it plays. Space switches between the two voices; hold the picture"
    " to hear the original.",
    False: "Each voice has its own rhythm, so their pictures cannot be laid over each other.",
}
TABS = ("learn", "curve", "layers", "listen", "heal", "export")
"""Names of the tabs in the address."""
_ALWAYS = ("voice", "method", "scope", "amount", "text", "seed")
"""What the address always says; of the other controls only what was changed."""


# Components


def stage_components() -> Made:
    """Make the widget that plays, and the amount."""
    made = Made()
    made["stage"] = widget("stage")
    how = {"minimum": 0, "maximum": MAX_AMOUNT, "step": 0.01, "buttons": []}
    info = "Share of the weights that become zero"
    made.add("amount", gr.Slider, PruneSpec.amount, "Amount", info=info, **how)
    made.add("status", gr.Markdown, "", min_height=24)
    label = "Steps of gradual pruning: choose one to hear it"
    made.add("rendition", gr.Radio, None, label, choices=[], visible=False)
    label, options = "Step, with the original's durations", {"visible": False, "autoplay": True}
    made["rendition_audio"] = player(label, "rendition-audio", "#8d6cc9", **options)
    return made


def run_components() -> Made:
    """Make the buttons that begin and end a run, and what the run is known by."""
    made = Made()
    with gr.Row():
        made.add("speak", gr.Button, "Speak", variant="primary", scale=3, min_width=120)
        made.add("stop", gr.Button, "Stop", scale=1, min_width=80)
    made.add("go", gr.Button, "Go", visible="hidden")  # begins a run
    made.add("end", gr.Button, "End", visible="hidden")  # ends the run under way
    made.add("ticket", gr.Textbox, None, visible="hidden")  # of the run under way
    made["asked"] = gr.State()
    return made


def code_components() -> Made:
    """Make the code that does what the stage shows."""
    made = Made()
    look: dict[str, Any] = {"lines": 5, "buttons": ["copy"], "elem_classes": "code"}
    for name, label in (("python", "Python"), ("command", "Shell")):
        made.add(name, gr.Textbox, None, label, interactive=False, **look)
    return made


# Work


def prepare() -> None:
    """Make the row of the default sentence in the background, so that the page opens with it."""
    warm_up(request_of(FIRST))


def stage_value(row: Row, amount: float, play: str = "") -> dict[str, Any]:
    """Return what the widget shows: the sounds that are made, and which amount is chosen.

    Args:
        row: of amounts.
        amount: what the slider is at.
        play: if it is new, the widget begins to play.
    """
    aligned = row.request.timing == "locked"
    first = "Healed after pruning. " if row.request.healed else ""
    points = [
        {"amount": one.amount, "sound": _file(one.sound), "words": f"{first}{one.said}"}
        for one in sorted(row.points.values(), key=lambda one: one.amount)
    ]
    original = _file(row.original) if row.original else None
    shown: dict[str, Any] = {"original": original, "points": points, "amounts": row.amounts}
    shown |= {"amount": amount, "aligned": aligned, "healed": bool(row.request.healed)}
    return {**shown, "play": play, "hint": _HINTS[aligned]}


def _file(path: Any) -> dict[str, Any]:
    """Return a file as Gradio sends it: with an address of its own."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def speak(values: Values, token: str | None, progress: Progress) -> Shown:
    """Prune, let both voices speak, and show the sound before anything else."""
    reference = (values["voice"] or "").strip()
    progress.report(f"loading {reference[:60]}", 0.0)
    voice = workbench.bench.voice(reference, token=token, progress=progress.part(0.0, 0.1))
    speaker = values["speaker"] if values["speaker"] in voice.speakers else None
    request, ticket = request_of({**values, "speaker": speaker}), values["ticket"]
    if ticket.startswith("h"):
        request = staged(values["heal_key"], request)
    part = progress.part(0.1, 1.0, f"{in_words(request.spec)}: ")
    row, amount = row_of(request, token), request.spec.amount
    play = ticket if ticket[:1] in "ph" else ""
    spoken = workbench.bench.recall(request, token)
    if spoken is None:
        if not row.points:
            yield {"stage": stage_value(row, amount)}  # nothing of the row before is there
        pruned = renditions.hear_pruned(request, token, part.part(0.0, 0.6))
        row.add_sound(amount, pruned)
        yield {"stage": stage_value(row, amount, play)}
        spoken = renditions.hear(request, token, part.part(0.6, 1.0), pruned)
    row.add(amount, spoken)
    yield {
        "asked": request,
        "status": "Measuring comes next …",
        "stage": stage_value(row, amount, play),
        "rendition": _renditions(request),
        "rendition_audio": gr.Audio(None, visible=False),
        "python": as_python(request),
        "command": as_command(request),
        **_table(request, "sparsity", comparison.sparsity_table(*spoken.sparsity)),
        **tables.cleared("size", "latency", "quality"),
    }


def _table(request: Request, name: str, frame: Any) -> dict[str, Any]:
    return tables.shown(name, frame, "Healed" if request.healed else "Pruned")


def _renditions(request: Request) -> gr.Radio:
    """Offer the steps of gradual pruning, where there are several."""
    amounts = () if request.healed else request.spec.schedule_amounts()
    how = "of the channels gone" if METHODS[request.spec.method].structured else "zeros"
    choices = [(f"step {i + 1}: {100 * amount:.1f}% {how}", i) for i, amount in enumerate(amounts)]
    return gr.Radio(choices, value=None, visible=len(amounts) > 1)


def hear_step(values: Values, token: str | None, progress: Progress) -> Shown:
    """Let the voice of one step of gradual pruning speak."""
    request, index = on_stage(values), values["rendition"]
    if isinstance(index, bool) or not isinstance(index, int):
        raise InputError("Choose one of the steps.")
    speech = renditions.hear_step(request, index, token, progress)
    step, path = index + 1, renditions.wav(speech, f"step-{index + 1}")
    label = f"Step {step} of {len(request.spec.schedule_amounts())}, with the original's durations"
    audio = gr.Audio(path, label=label, visible=True)
    yield {"status": f"Done: step {step} speaks.", "rendition_audio": audio}


def measure(values: Values, token: str | None, progress: Progress) -> Shown:
    """Show the size and the latency of both voices, and say what happened."""
    with renditions.measuring.turn(progress, "waiting to measure"):
        yield from _measure(values, token, progress)


def _measure(values: Values, token: str | None, progress: Progress) -> Shown:
    request = values["asked"]
    progress.report("writing each file format to see its size", 0.0)
    spoken = renditions.heard_before(request, token, progress)
    row, amount = row_of(request, token), request.spec.amount
    size = workbench.bench.size(request, token)
    row.add(amount, spoken, happened(spoken, size))
    row.claim(amount, evidence.claim_words(request, token))
    table = comparison.size_table(*size)
    yield {"stage": stage_value(row, amount), **_table(request, "size", table)}
    # A press of Speak measures anew; an opened page or a moved slider takes what is known.
    anew = str(values.get("ticket") or "").startswith("p")
    found = renditions.latency(request, token, progress, anew)
    row.add(amount, spoken, happened(spoken, size, found))
    whole = renditions.timed_text(request.text) == request.text.strip()
    runs = f"{found.runs} runs of each voice" + " on the beginning of the text" * (not whole)
    threads = f"{found.threads} thread{'s' * (found.threads != 1)}"
    table = comparison.latency_table(found, request.spec.pattern)
    yield {
        "stage": stage_value(row, amount),
        "status": f"Done. Latency: {runs}, {threads}, {found.device}.",
        **_table(request, "latency", table),
    }


def claim(values: Values, token: str | None) -> dict[str, Any]:
    """Say on the stage what the quality that was measured of its voice lets claim."""
    request = values["asked"]
    row = known_row(request, token) if request else None
    if row is None or request.spec.amount not in row.points:
        return {"stage": gr.skip()}
    row.claim(request.spec.amount, evidence.claim_words(request, token))
    return {"stage": stage_value(row, request.spec.amount)}


def fill_row(values: Values, token: str | None, progress: Progress) -> Shown:
    """Make the rest of the row behind what is heard."""
    request = values["asked"]
    row = row_of(request, token)
    for _ in fill(row, token, progress):
        yield {"stage": stage_value(row, request.spec.amount)}
    yield {"stage": stage_value(row, request.spec.amount), "status": values["status"]}


# Events

_SPEAK, _RENDER = "() => stageRun.speak(true)", "() => stageRun.speak(false)"
_RUN = ("stage", "rendition", "rendition_audio", "asked", "python", "command")
_MEASURED = ("size", "size_csv", "latency", "latency_csv")
_TABLES = ("sparsity", "sparsity_csv", *_MEASURED, "quality", "quality_csv")


def wire_stage(demo: gr.Blocks, page: Page) -> list[Any]:
    """Wire the stage; return the events that Stop may cancel."""

    def restore(request: gr.Request) -> dict[Any, Any]:
        """Set the controls as the page's address says; show what is made of that already."""
        with sentences():
            query = dict(request.query_params)
            try:
                found = values_of_query(query)
            except InputError as error:
                gr.Warning(str(error), title="The first settings are shown")
                found = FIRST
            asked = request_of(found)
            row, amount = known_row(asked), asked.spec.amount
            shown = {name: found[name] for name in SPEAKING if found[name] != FIRST[name]}
            if row:
                shown["stage"] = stage_value(row, amount)
            if query.get("tab") in TABS:
                shown["tabs"] = gr.Tabs(selected=query["tab"])
            if "lesson" in query:
                shown["learn"] = open_page(query["lesson"])
            return {page[name]: value for name, value in shown.items()} or gr.skip()

    names = (*SPEAKING, "stage", "tabs", "learn")
    opened = demo.load(restore, None, [page[name] for name in names], **QUIET)
    load = page.event(load_voice, LOADED, VOICE_SHOWN, "load", bar="facts")
    opened.then(**load)
    opened.then(None, js="() => stageRun.open()", **QUIET)
    _wire_address(page)

    started = page["go"].click(
        None, None, page["ticket"], js="() => stageRun.start()", trigger_mode="multiple", **QUIET
    )
    chain = [started]
    for work, reads, fills, lane in (
        (speak, (*SPEAKING, "heal_key"), (*_RUN, *_TABLES), "work"),
        (measure, ("asked",), ("stage", *_MEASURED), "measure"),
        (fill_row, ("asked", "status"), ("stage",), "fill"),
    ):
        event = page.event(work, reads, ("status", *fills), lane, ticket="ticket")
        chain.append(chain[-1].success(**event))
    for one in chain:
        one.failure(None, js="() => stageRun.ended()", **QUIET)
    chain[-1].then(None, js="() => stageRun.ended()", **QUIET)
    pressed = [page["speak"].click, page["text"].submit]
    gr.on(pressed, None, js=_SPEAK, **QUIET)
    chosen = [
        page[name].input for name in ("voice", "speaker", "method", "scope", "timing", "kernels")
    ]
    gr.on(chosen, None, js=_RENDER, **QUIET)
    page["amount"].change(None, js="() => window.stageMoved && stageMoved()", **QUIET)
    example = page["examples"].click(
        lambda sample: sample[0], page["examples"], page["text"], queue=False, **QUIET
    )
    example.then(None, js=_SPEAK, **QUIET)
    now = "() => stageRun.now ? stageRun.now.ticket : ''"
    page["end"].click(tickets.cancel, page["ticket"], None, js=now, queue=False, **QUIET)
    step = page.event(hear_step, ("asked", "rendition"), ("status", "rendition_audio"), "work")
    return [page["rendition"].input(**step)]


def wire_claim(page: Page, measured: list[Any]) -> None:
    """Say on the stage what was measured by events."""
    for event in measured:
        event.success(**page.event(claim, ("asked",), ("stage",)))


def _wire_address(page: Page) -> None:
    """Keep the page's address up to date."""
    named = ", ".join(map(json.dumps, (SPEAKING, FIRST, _ALWAYS)))
    js = f"(...values) => stageAddress(stageChanges(values, {named}))"
    inputs = [page[name] for name in SPEAKING]
    gr.on([one.change for one in inputs], None, inputs, None, js=js, **QUIET)
    page["tabs"].select(None, js="() => setTimeout(stageTab, 0)", **QUIET)


def wire_stop(page: Page, running: list[Any]) -> None:
    """Let Stop end the run under way and cancel the other events."""
    stop = {"js": "() => stageRun.stop()", "cancels": running, "queue": False}
    stopped = page["stop"].click(_stop, page["ticket"], page["status"], **stop, **QUIET)
    # Once more, after what a stopped event has still under way to the page.
    stopped.then(_stop_again, None, page["status"], **LANES["at once"], **QUIET)


def _stop(ticket: Any) -> str:
    tickets.cancel(ticket)
    return "Stopped."


def _stop_again() -> str:
    time.sleep(0.5)
    return "Stopped."
