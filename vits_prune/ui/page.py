"""The page: which button does which step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.pruning import PruneSpec
from vits_prune.studio.workbench import Request
from vits_prune.ui import controls, evidence, heal, hearing, layout, sensitivity, steps, teaching
from vits_prune.ui.endpoints import add_endpoints
from vits_prune.ui.events import LOADED, QUIET, SPEAKING, halts, request_from, signed
from vits_prune.ui.steps import plainly
from vits_prune.ui.stoppable import haltable, stoppable
from vits_prune.ui.theme import HEAD, theme
from vits_prune.ui.wiring_ship import wire_shipping


def build() -> gr.Blocks:
    """The whole page, ready for `launch(**launch_options())`."""
    with gr.Blocks(title="vits_prune", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
        gr.Markdown(layout.TITLE, elem_id="title")
        if os.environ.get("OAUTH_CLIENT_ID"):
            gr.LoginButton("Log in: private and gated voices, push to the hub", size="sm")
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=4, min_width=300):
                inputs = layout.inputs()
                inputs["ticket"] = gr.Textbox(
                    visible="hidden", elem_id="ticket"
                )  # of the run under way
            with gr.Column(scale=7, min_width=300, elem_classes="outputs"):
                outputs = layout.outputs()
        _wire(demo, inputs, outputs)
        add_endpoints()
    return demo.queue(max_size=64, default_concurrency_limit=1)


def launch_options() -> dict[str, Any]:
    """Arguments of `launch`: theme, style, and the caps on what is uploaded."""
    return {
        "theme": theme(),
        "head": HEAD,
        "max_file_size": "160mb",
        "show_error": False,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
    }


VOICE_SHOWN = ("facts", "speaker", "readout")
"""What loading a voice reads and shows."""

_START = """() => {
  window.speaking = {ticket: Date.now().toString(36) + Math.random().toString(36).slice(2), again: false};
  return window.speaking.ticket;
}"""
_SPEAK = """() => {
  if (innerWidth < 700) document.querySelector('#status').scrollIntoView({behavior: 'smooth'});
  if (window.speaking) { window.speaking.again = true; return window.speaking.ticket; }
  document.querySelector('#go').click();
  return '';
}"""
_STOP = "() => { if (!window.speaking) return ''; window.speaking.again = false; return window.speaking.ticket; }"
_ENDED = """() => {
  const again = window.speaking && window.speaking.again;
  window.speaking = null;
  if (again) document.querySelector('#go').click();
}"""
"""One run of "Speak with both" at a time in each page: pressed again, it halts the run under way, and the next one begins where that ends.
Nothing is cancelled: in Gradio 6.31 what begins while something is being cancelled may get lost. On a phone the players lie below."""

_HEAL = """() => {
  window.healing = {ticket: Date.now().toString(36) + Math.random().toString(36).slice(2), presses: 0};
  return window.healing.ticket;
}"""
_STOP_HEALING = "() => window.healing ? window.healing.ticket + ':' + ++window.healing.presses : ''"
"""Stopped once a healing keeps the best so far, stopped twice it does not measure it either."""


def _lanes(inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Who waits for whom. Hearing is one at a time; measuring has its own line and lets hearing pass; so has pruning, which takes up to a
    minute where it listens first, and others may be heard meanwhile."""
    on_status = {"show_progress_on": [outputs["status"]], **QUIET}
    return {
        "load": {
            "concurrency_id": "load",
            "concurrency_limit": 2,
            "show_progress_on": [inputs["facts"]],
            **QUIET,
        },
        "prune": {"concurrency_id": "prune", "concurrency_limit": 4, **on_status},
        "work": {"concurrency_id": "work", "concurrency_limit": 1, **on_status},
        "measure": {"concurrency_id": "measure", "concurrency_limit": 1, **on_status},
        "heal": {
            "concurrency_id": "heal",
            "concurrency_limit": 1,
            "show_progress_on": [outputs["heal_status"]],
            **QUIET,
        },
        "look": {"concurrency_id": "look", "concurrency_limit": 2, **on_status},
    }


def _wire(demo: gr.Blocks, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Which event runs which step."""
    both, lanes = {**inputs, **outputs}, _lanes(inputs, outputs)

    def shown(found: dict[str, Any]) -> dict[Any, Any]:
        return {both[name]: value for name, value in found.items()}

    _wire_voice(demo, inputs, lanes["load"])
    _wire_controls(inputs)
    _wire_speaking(inputs, outputs, lanes, shown)
    healed = _wire_healing(inputs, outputs, lanes, shown)
    wire_shipping(demo, inputs, outputs, healed, shown)
    running = [
        *_wire_looking(inputs, outputs, lanes, shown),
        *_wire_evidence(inputs, outputs, lanes["measure"], lanes["work"], shown),
    ]
    stopped = inputs["stop"].click(
        _halted,
        inputs["ticket"],
        outputs["status"],
        js=_STOP,
        cancels=running,
        queue=False,
        **QUIET,
    )
    stopped.then(
        steps.stopped_words, None, outputs["status"], queue=False, show_progress="hidden", **QUIET
    )


def _halted(ticket: Any) -> str:
    halts.halt(ticket)
    return "Stopped."


def _wire_voice(demo: gr.Blocks, inputs: dict[str, Any], loading: dict[str, Any]) -> None:
    """Loading a voice, and the line under the slider that follows the settings."""

    @plainly
    def load(*values: Any) -> tuple[Any, ...]:
        voice, speaker, *how, oauth, progress = values
        return _load(voice, speaker, how, steps.visitor_token(oauth), progress)

    @plainly
    def preview(*values: Any) -> str:
        voice, *how, oauth = values
        return _readout(voice, how, steps.visitor_token(oauth))

    pruning = [inputs[name] for name in controls.NAMES]
    chosen, voice_shown = [inputs[name] for name in LOADED], [inputs[name] for name in VOICE_SHOWN]
    load = signed(load, LOADED, progress=True)
    demo.load(load, chosen, voice_shown, **loading)
    inputs["voice"].change(load, chosen, voice_shown, **loading)
    uploading = {"concurrency_id": "load", "concurrency_limit": 2, **QUIET}
    inputs["upload"].upload(
        plainly(_upload), inputs["upload"], [inputs["voice"], inputs["upload"]], **uploading
    )
    gr.on(
        [inputs[name].change for name in controls.NAMES],
        signed(preview, ("voice", *controls.NAMES)),
        [inputs["voice"], *pruning],
        inputs["readout"],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=4,
        **QUIET,
    )


def _wire_speaking(
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    lanes: dict[str, dict[str, Any]],
    shown: Callable[[dict[str, Any]], dict[Any, Any]],
) -> None:
    """ "Speak with both": a chain of loading, pruning, hearing and measuring, each link of which ends at once where the run is halted."""
    ticket, status = inputs["ticket"], outputs["status"]

    def link(
        run: Callable[..., Iterator[Any]], names: Sequence[str], progress: bool = False
    ) -> Any:
        return signed(haltable(plainly(run), halts), ("ticket", *names), progress=progress)

    def load(*values: Any) -> Iterator[tuple[Any, ...]]:
        voice, speaker, *how, oauth, progress = values
        yield _load(voice, speaker, how, steps.visitor_token(oauth), progress)

    def prune(*values: Any) -> Iterator[dict[Any, Any]]:
        yield from map(
            shown, hearing.pruned(request_from(values[:-1]), steps.visitor_token(values[-1]))
        )

    def after(
        run: Callable[..., Iterator[dict[str, Any]]],
    ) -> Callable[..., Iterator[dict[Any, Any]]]:
        def follow(request: Request, oauth: gr.OAuthToken | None) -> Iterator[dict[Any, Any]]:
            yield from map(shown, run(request, steps.visitor_token(oauth)))

        return follow

    # Of the Request that was pruned, whatever the controls say by now.
    # Each step shows its findings in its last update: Gradio 6.31 forgets what an earlier one put into a tab that was never opened.
    begun = inputs["go"].click(None, None, ticket, js=_START, trigger_mode="multiple", **QUIET)
    loading = link(load, LOADED, progress=True)
    chain = [
        begun.then(
            loading,
            [ticket, *(inputs[name] for name in LOADED)],
            [inputs[name] for name in VOICE_SHOWN],
            **lanes["load"],
        )
    ]
    asked = [ticket, *(inputs[name] for name in SPEAKING)]
    chain.append(
        chain[-1].success(
            link(prune, SPEAKING), asked, [status, outputs["asked"]], **lanes["prune"]
        )
    )
    for run, names, lane in (
        (hearing.heard, hearing.HEARD, "work"),
        *((*one, "measure") for one in hearing.MEASURED),
    ):
        shows = [status, *(outputs[name] for name in names)]
        chain.append(
            chain[-1].success(
                link(after(run), ("request",)), [ticket, outputs["asked"]], shows, **lanes[lane]
            )
        )
    for one in chain:
        one.failure(None, js=_ENDED, **QUIET)
    chain[-1].then(None, js=_ENDED, **QUIET)
    gr.on(
        [inputs["speak"].click, inputs["text"].submit],
        halts.halt,
        ticket,
        None,
        js=_SPEAK,
        queue=False,
        **QUIET,
    )


def _wire_looking(
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    lanes: dict[str, dict[str, Any]],
    shown: Callable[[dict[str, Any]], dict[Any, Any]],
) -> list[Any]:
    """What may be asked of what was heard: another layer's matrix, a step of gradual pruning."""

    def after(run: Callable[..., Iterator[dict[str, Any]]]) -> Any:
        @stoppable
        @plainly
        def follow(
            request: Request, choice: Any, oauth: gr.OAuthToken | None
        ) -> Iterator[dict[Any, Any]]:
            yield from map(shown, run(request, steps.visitor_token(oauth), choice))

        return signed(follow, ("request", "choice"))

    found = []
    for run, choice, names, lane in (
        (teaching.taught, "matrix_layer", ("lesson", "matrix_layer", "matrix"), "look"),
        (hearing.rendition, "rendition", ("rendition_audio",), "work"),
    ):
        shows = [outputs[name] for name in ("status", *names)]
        found.append(
            outputs[choice].input(
                after(run), [outputs["asked"], outputs[choice]], shows, **lanes[lane]
            )
        )
    return found


def _wire_evidence(
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    measuring: dict[str, Any],
    working: dict[str, Any],
    shown: Callable[[dict[str, Any]], dict[Any, Any]],
) -> list[Any]:
    """The curve, the knee, the sensitivity and the fader; pressing a point or a cell takes its settings over and speaks."""
    asked, wired = [inputs[name] for name in SPEAKING], []

    def wire(
        button: str,
        run: Callable[..., Iterator[dict[str, Any]]],
        chosen: tuple[str, ...],
        shows: tuple[str, ...],
        how: Any,
    ) -> None:
        @stoppable
        @plainly
        def step(*values: Any) -> Iterator[dict[Any, Any]]:
            request, token = request_from(values[: len(SPEAKING)]), steps.visitor_token(values[-1])
            yield from map(shown, run(request, token, *values[len(SPEAKING) : -1]))

        into = [outputs[name] for name in ("status", *shows)]
        wired.append(
            outputs[button].click(
                signed(step, (*SPEAKING, *chosen)),
                [*asked, *(outputs[name] for name in chosen)],
                into,
                **how,
            )
        )

    wire(
        "curve_start",
        evidence.curve_steps,
        ("curve_texts", "curve_step", "curve_last", "curve_metrics"),
        ("curve", "curve_csv"),
        measuring,
    )
    wire(
        "knee_start",
        evidence.knee_steps,
        ("curve_texts", "knee_cer", "knee_dnsmos"),
        ("knee_words", "knee", "knee_csv"),
        measuring,
    )
    wire(
        "heat_start",
        sensitivity.sensitivity_steps,
        ("heat_texts", "heat_amounts", "heat_metrics"),
        ("heat", "heat_csv"),
        measuring,
    )
    wire("fader_start", evidence.fader_steps, (), ("fader",), working)

    @plainly
    def take_over(event: gr.EventData) -> dict[Any, Any]:
        spec = PruneSpec.from_dict(dict(event._data).get("spec"))
        return {inputs[name]: value for name, value in controls.values_of(spec).items()}

    for picture in ("curve", "heat"):
        settings = [inputs[name] for name in controls.NAMES]
        pressed = outputs[picture].click(take_over, None, settings, queue=False, **QUIET)
        pressed.success(None, js="() => document.querySelector('#speak').click()")
    return wired


def _wire_healing(
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    lanes: dict[str, dict[str, Any]],
    shown: Callable[[dict[str, Any]], dict[Any, Any]],
) -> Any:
    """Healing, which has a line of its own, and what may be asked of it. Stop does not cancel it: it ends by itself with what it has.
    Returns the event of its end."""

    @stoppable
    @plainly
    def run(ticket: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        def halted(what: str) -> bool:
            return f"{ticket}:{1 if what == 'healing' else 2}" in halts

        request, token = request_from(values[: len(SPEAKING)]), steps.visitor_token(values[-1])
        yield from map(shown, heal.heal_steps(request, token, halted, *values[len(SPEAKING) : -1]))

    @plainly
    def listen(order: Any, step: Any) -> dict[Any, Any]:
        return shown(heal.checkpoint_steps(order, step))

    @plainly
    def save(order: Any) -> Any:
        return gr.File(heal.healed_folder(order), visible=True)

    chosen, key = ("heal_minutes", "heal_texts", "heal_adversarial"), outputs["heal_key"]
    asked = [
        outputs["heal_ticket"],
        *(inputs[name] for name in SPEAKING),
        *(outputs[name] for name in chosen),
    ]
    begun = outputs["heal_start"].click(None, None, outputs["heal_ticket"], js=_HEAL, **QUIET)
    ended = begun.then(
        signed(run, ("ticket", *SPEAKING, *chosen)),
        asked,
        [outputs[name] for name in heal.SHOWN],
        **lanes["heal"],
    )
    stops = [inputs["stop"].click, outputs["heal_stop"].click]
    gr.on(stops, halts.halt, outputs["heal_ticket"], None, js=_STOP_HEALING, queue=False, **QUIET)
    looking = {"concurrency_id": "look", "concurrency_limit": 2, **QUIET}
    outputs["heal_checkpoint"].input(
        listen, [key, outputs["heal_checkpoint"]], outputs["heal_audio"], **looking
    )
    outputs["heal_save"].click(
        save, key, outputs["heal_saved"], concurrency_id="work", concurrency_limit=1, **QUIET
    )
    return ended


def _wire_controls(inputs: dict[str, Any]) -> None:
    """Only the controls that apply are in sight; a lever that is taken over starts where the amount has it."""
    quiet = {"queue": False, "show_progress": "hidden", **QUIET}

    def voice_at_hand(reference: str, token: str | None) -> Any:
        reference = (reference or "").strip()
        return (
            steps.bench.voice(reference, token=token, device="cpu")
            if steps.bench.is_loaded(reference, token)
            else None
        )

    def arranger(fresh: bool) -> Any:
        @plainly
        def arrange(*values: Any) -> dict[Any, Any]:
            reference, *how, amount, parts, oauth = values
            voice = voice_at_hand(reference, steps.visitor_token(oauth))
            # In one update: Gradio 6.31 forgets a value that was set while its component was out of sight.
            found = controls.arranged(
                voice, *how, controls.levers_for(voice, amount, parts) if fresh else None
            )
            return {inputs[name]: value for name, value in found.items()}

        return signed(arrange, names)

    names = ("voice", "method", "scope", "pattern", "steps", "by_lever", "amount", "parts")
    asked, shown = [inputs[name] for name in names], [inputs[name] for name in controls.ARRANGED]
    changed = [inputs[name].change for name in ("facts", "method", "scope", "pattern", "steps")]
    gr.on(changed, arranger(fresh=False), asked, shown, **quiet)
    inputs["by_lever"].change(arranger(fresh=True), asked, shown, **quiet)


def _readout(voice: str, how: Sequence[Any], token: str | None) -> str:
    """The live line under the slider; what cannot be used is said there and not in a pop-up."""
    try:
        return steps.readout(voice, controls.spec_of(*how), token)
    except InputError as error:
        return str(error)


def _load(
    voice: str, speaker: str, how: Sequence[Any], token: str | None, progress: gr.Progress
) -> tuple[Any, ...]:
    reference = (voice or "").strip()
    progress(0.0, desc=f"loading {reference[:60]}")
    loaded = steps.bench.voice(
        reference,
        token=token,
        on_progress=lambda done, total: progress(
            done / max(1, total), desc=f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
        ),
    )
    keep = (
        speaker
        if speaker in loaded.speakers
        else (None if loaded.speaker is None else loaded.speakers[loaded.speaker])
    )
    choice = gr.Dropdown(list(loaded.speakers), value=keep, visible=bool(loaded.speakers))
    return steps.free_cut_words(loaded), choice, _readout(reference, how, token)


def _upload(files: list[str]) -> tuple[Any, Any]:
    paths = [Path(name) for name in files or ()]
    models, configs = (
        [path for path in paths if path.suffix == suffix] for suffix in (".onnx", ".json")
    )
    if len(models) != 1 or len(configs) != 1 or len(paths) != 2:
        raise InputError(
            "A Piper voice has two files: choose its .onnx and its .onnx.json together."
        )
    try:
        reference, _ = steps.bench.keep_upload(models[0], configs[0])
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    label = f"uploaded: {models[0].stem[:60]}"
    return gr.Dropdown([*layout.VOICES, (label, reference)], value=reference), None
