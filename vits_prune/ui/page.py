"""The page: which button does which step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.pruning import PruneSpec
from vits_prune.ui import controls, evidence, hearing, layout, sensitivity, steps, teaching
from vits_prune.ui.endpoints import add_endpoints
from vits_prune.ui.steps import plainly
from vits_prune.ui.stoppable import stoppable
from vits_prune.ui.theme import HEAD, theme
from vits_prune.workbench import Request


def build() -> gr.Blocks:
    """The whole page, ready for `launch(**launch_options())`."""
    with gr.Blocks(title="vits_prune", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
        gr.Markdown(layout.TITLE, elem_id="title")
        if os.environ.get("OAUTH_CLIENT_ID"):
            gr.LoginButton("Log in for private and gated voices", size="sm")
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=4, min_width=300):
                inputs = layout.inputs()
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


DELIVERED = ("voice", "speaker", "text", "seed", "timing", "speaking_rate", "noise_scale", "noise_scale_duration")
SPEAKING = (*DELIVERED, *controls.NAMES)
"""The inputs that make a Request, in the order of `request_from`."""


def request_from(values: Sequence[Any]) -> Request:
    """The Request of the inputs SPEAKING.

    Raises:
        InputError: one of them cannot be used.
    """
    voice, speaker, text, *rest = values[: len(DELIVERED)]
    return steps.request_of(voice, speaker, text, controls.spec_of(*values[len(DELIVERED) :]), *rest)


_SCROLL = "() => { if (innerWidth < 700) document.querySelector('#status').scrollIntoView({behavior: 'smooth'}); return []; }"
"""On a phone the players lie below the settings."""


def _wire(demo: gr.Blocks, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Which event runs which step. Hearing is one at a time, others wait in line; measuring has its own line and lets hearing pass."""
    asked, both = [inputs[name] for name in SPEAKING], {**inputs, **outputs}
    voice_shown = [inputs[name] for name in ("facts", "speaker", "readout")]
    quiet = {"api_visibility": "private"}
    work = {"concurrency_id": "work", "concurrency_limit": 1, "show_progress_on": [outputs["status"]]}
    measuring = {**work, "concurrency_id": "measure"}
    loading = {"concurrency_id": "load", "concurrency_limit": 2, "show_progress_on": [inputs["facts"]], **quiet}
    pruning = [inputs[name] for name in controls.NAMES]
    chosen = [inputs["voice"], inputs["speaker"], *pruning]

    @plainly
    def load(*values: Any) -> tuple[Any, ...]:
        voice, speaker, *how, oauth, progress = values
        return _load(voice, speaker, how, steps.visitor_token(oauth), progress)

    @plainly
    def preview(*values: Any) -> str:
        voice, *how, oauth = values
        return _readout(voice, how, steps.visitor_token(oauth))

    def shown(found: dict[str, Any]) -> dict[Any, Any]:
        return {both[name]: value for name, value in found.items()}

    @stoppable
    @plainly
    def hear(*values: Any) -> Iterator[dict[Any, Any]]:
        yield from map(shown, hearing.heard(values[0], steps.visitor_token(values[1])))

    @stoppable
    @plainly
    def prune(*values: Any) -> Iterator[dict[Any, Any]]:
        yield from map(shown, hearing.pruned(request_from(values[:-1]), steps.visitor_token(values[-1])))

    def after(run: Callable[..., Iterator[dict[str, Any]]]) -> Any:
        @stoppable
        @plainly
        def follow(request: Request, *more: Any) -> Iterator[dict[Any, Any]]:
            yield from map(shown, run(request, steps.visitor_token(more[-1]), *more[:-1]))

        return follow

    @plainly
    def save(*values: Any) -> Any:
        return gr.File(steps.saved_folder(request_from(values[:-1]), steps.visitor_token(values[-1])), visible=True)

    load = _signed(load, ("voice", "speaker", *controls.NAMES), progress=True)
    demo.load(load, chosen, voice_shown, **loading)
    inputs["voice"].change(load, chosen, voice_shown, **loading)
    _wire_controls(inputs)
    inputs["upload"].upload(
        plainly(_upload), inputs["upload"], [inputs["voice"], inputs["upload"]], concurrency_id="load", concurrency_limit=2, **quiet
    )
    gr.on(
        [inputs[name].change for name in controls.NAMES],
        _signed(preview, ("voice", *controls.NAMES)),
        [inputs["voice"], *pruning],
        inputs["readout"],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=4,
        **quiet,
    )
    started = inputs["go"].click(load, chosen, voice_shown, **loading)
    # Each step shows its findings in its last update: Gradio 6.31 forgets what an earlier one put into a tab that was never opened.
    # Pruning has a line of its own: where it listens first it takes up to a minute, and others may be heard meanwhile.
    pruned = started.success(
        _signed(prune), asked, [outputs["status"], outputs["asked"]], **{**work, "concurrency_id": "prune", "concurrency_limit": 4}, **quiet
    )
    speaking = _signed(hear, ("request",))
    chain = [
        started,
        pruned,
        pruned.success(speaking, outputs["asked"], [outputs[name] for name in ("status", *hearing.HEARD)], **work, **quiet),
    ]
    for run, names in hearing.MEASURED:
        # Of the Request that was heard, whatever the controls say by now.
        shows = [outputs[name] for name in ("status", *names)]
        chain.append(chain[-1].success(_signed(after(run), ("request",)), outputs["asked"], shows, **measuring, **quiet))
    # What runs is stopped first and only then does it begin anew: an answer that comes while Gradio 6.31 cancels another event is lost.
    asked_to = gr.on([inputs["speak"].click, inputs["text"].submit], lambda: None, None, js=_SCROLL, cancels=chain, queue=False, **quiet)
    asked_to.then(None, js="() => document.querySelector('#go').click()", **quiet)
    looking = outputs["matrix_layer"].input(
        _signed(after(teaching.taught), ("request", "layer")),
        [outputs["asked"], outputs["matrix_layer"]],
        [outputs[name] for name in ("status", "lesson", "matrix_layer", "matrix")],
        **{**measuring, "concurrency_limit": 2, "concurrency_id": "look"},
        **quiet,
    )
    stepping = outputs["rendition"].input(
        _signed(after(hearing.rendition), ("request", "index")),
        [outputs["asked"], outputs["rendition"]],
        [outputs["status"], outputs["rendition_audio"]],
        **work,
        **quiet,
    )
    saving = outputs["save"].click(_signed(save), asked, outputs["saved"], concurrency_id="work", concurrency_limit=1, **quiet)
    evident = _wire_evidence(inputs, outputs, measuring, {**work, **quiet}, shown)
    running = [*chain, looking, stepping, saving, *evident]
    stopped = inputs["stop"].click(lambda: "Stopped.", None, outputs["status"], cancels=running, queue=False, **quiet)
    stopped.then(steps.stopped_words, None, outputs["status"], queue=False, show_progress="hidden", **quiet)


def _wire_evidence(
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    measuring: dict[str, Any],
    working: dict[str, Any],
    shown: Callable[[dict[str, Any]], dict[Any, Any]],
) -> list[Any]:
    """The curve, the knee, the sensitivity and the fader; pressing a point or a cell takes its settings over and speaks."""
    asked, wired = [inputs[name] for name in SPEAKING], []

    def wire(button: str, run: Callable[..., Iterator[dict[str, Any]]], chosen: tuple[str, ...], shows: tuple[str, ...], how: Any) -> None:
        @stoppable
        @plainly
        def step(*values: Any) -> Iterator[dict[Any, Any]]:
            request, token = request_from(values[: len(SPEAKING)]), steps.visitor_token(values[-1])
            yield from map(shown, run(request, token, *values[len(SPEAKING) : -1]))

        into = [outputs[name] for name in ("status", *shows)]
        wired.append(outputs[button].click(_signed(step, (*SPEAKING, *chosen)), [*asked, *(outputs[name] for name in chosen)], into, **how))

    measuring = {**measuring, "api_visibility": "private"}
    wire(
        "curve_start", evidence.curve_steps, ("curve_texts", "curve_step", "curve_last", "curve_metrics"), ("curve", "curve_csv"), measuring
    )
    wire("knee_start", evidence.knee_steps, ("curve_texts", "knee_cer", "knee_dnsmos"), ("knee_words", "knee", "knee_csv"), measuring)
    wire("heat_start", sensitivity.sensitivity_steps, ("heat_texts", "heat_amounts", "heat_metrics"), ("heat", "heat_csv"), measuring)
    wire("fader_start", evidence.fader_steps, (), ("fader",), working)

    @plainly
    def take_over(event: gr.EventData) -> dict[Any, Any]:
        spec = PruneSpec.from_dict(dict(event._data).get("spec"))
        return {inputs[name]: value for name, value in controls.values_of(spec).items()}

    for picture in ("curve", "heat"):
        settings = [inputs[name] for name in controls.NAMES]
        pressed = outputs[picture].click(take_over, None, settings, queue=False, api_visibility="private")
        pressed.success(None, js="() => document.querySelector('#speak').click()")
    return wired


def _wire_controls(inputs: dict[str, Any]) -> None:
    """Only the controls that apply are in sight; a lever that is taken over starts where the amount has it."""
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def voice_at_hand(reference: str, token: str | None) -> Any:
        reference = (reference or "").strip()
        return steps.bench.voice(reference, token=token, device="cpu") if steps.bench.is_loaded(reference, token) else None

    def arranger(fresh: bool) -> Any:
        @plainly
        def arrange(*values: Any) -> dict[Any, Any]:
            reference, *how, amount, parts, oauth = values
            voice = voice_at_hand(reference, steps.visitor_token(oauth))
            # In one update: Gradio 6.31 forgets a value that was set while its component was out of sight.
            found = controls.arranged(voice, *how, controls.levers_for(voice, amount, parts) if fresh else None)
            return {inputs[name]: value for name, value in found.items()}

        return _signed(arrange, names)

    names = ("voice", "method", "scope", "pattern", "steps", "by_lever", "amount", "parts")
    asked, shown = [inputs[name] for name in names], [inputs[name] for name in controls.ARRANGED]
    changed = [inputs[name].change for name in ("facts", "method", "scope", "pattern", "steps")]
    gr.on(changed, arranger(fresh=False), asked, shown, **quiet)
    inputs["by_lever"].change(arranger(fresh=True), asked, shown, **quiet)


def _signed(function: Any, names: Sequence[str] = SPEAKING, progress: bool = False) -> Any:
    """Give a function of (*inputs, token) the signature that Gradio reads, so that it hands over the visitor's token."""
    import inspect

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in names]
    parameters.append(inspect.Parameter("oauth", kind, annotation=gr.OAuthToken | None))
    if progress:
        parameters.append(inspect.Parameter("progress", kind, default=gr.Progress()))
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {"oauth": gr.OAuthToken | None}
    return function


def _readout(voice: str, how: Sequence[Any], token: str | None) -> str:
    """The live line under the slider; what cannot be used is said there and not in a pop-up."""
    try:
        return steps.readout(voice, controls.spec_of(*how), token)
    except InputError as error:
        return str(error)


def _load(voice: str, speaker: str, how: Sequence[Any], token: str | None, progress: gr.Progress) -> tuple[Any, ...]:
    reference = (voice or "").strip()
    progress(0.0, desc=f"loading {reference[:60]}")
    loaded = steps.bench.voice(
        reference,
        token=token,
        on_progress=lambda done, total: progress(done / max(1, total), desc=f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"),
    )
    keep = speaker if speaker in loaded.speakers else (None if loaded.speaker is None else loaded.speakers[loaded.speaker])
    choice = gr.Dropdown(list(loaded.speakers), value=keep, visible=bool(loaded.speakers))
    return steps.free_cut_words(loaded), choice, _readout(reference, how, token)


def _upload(files: list[str]) -> tuple[Any, Any]:
    paths = [Path(name) for name in files or ()]
    models, configs = ([path for path in paths if path.suffix == suffix] for suffix in (".onnx", ".json"))
    if len(models) != 1 or len(configs) != 1 or len(paths) != 2:
        raise InputError("A Piper voice has two files: choose its .onnx and its .onnx.json together.")
    try:
        reference, _ = steps.bench.keep_upload(models[0], configs[0])
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    label = f"uploaded: {models[0].stem[:60]}"
    return gr.Dropdown([*layout.VOICES, (label, reference)], value=reference), None
