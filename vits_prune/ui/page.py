"""The page: which button does which step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune import tables
from vits_prune.errors import InputError
from vits_prune.ui import evidence, layout, sensitivity, steps
from vits_prune.ui.endpoints import add_endpoints
from vits_prune.ui.steps import plainly
from vits_prune.ui.theme import HEAD, theme
from vits_prune.workbench import Doing, Request


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


SPEAKING = (
    "voice", "speaker", "text", "scope", "amount", "parts", "seed", "timing", "speaking_rate", "noise_scale", "noise_scale_duration",
)  # fmt: skip
"""The inputs of `request_of`, in its order."""

_SCROLL = "(...values) => { if (innerWidth < 700) document.querySelector('#status').scrollIntoView({behavior: 'smooth'}); return values; }"
"""On a phone the players lie below the settings."""


def _wire(demo: gr.Blocks, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    """Which event runs which step. Hearing is one at a time, others wait in line; measuring has its own line and lets hearing pass."""
    asked, both = [inputs[name] for name in SPEAKING], {**inputs, **outputs}
    voice_shown = [inputs[name] for name in ("facts", "speaker", "readout")]
    quiet = {"api_visibility": "private"}
    work = {"concurrency_id": "work", "concurrency_limit": 1, "show_progress_on": [outputs["status"]]}
    measuring = {**work, "concurrency_id": "measure"}
    loading = {"concurrency_id": "load", "concurrency_limit": 2, "show_progress_on": [inputs["facts"]], **quiet}
    chosen = [inputs[name] for name in ("voice", "speaker", "scope", "amount", "parts")]

    @plainly
    def load(voice: str, speaker: str, scope: str, amount: float, parts: list[str], oauth: gr.OAuthToken | None,
             progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008 (how Gradio is told)  # fmt: skip
        return _load(voice, speaker, scope, amount, parts, steps.visitor_token(oauth), progress)

    @plainly
    def preview(voice: str, scope: str, amount: float, parts: list[str], oauth: gr.OAuthToken | None) -> str:
        return steps.readout(voice, scope, amount, parts, steps.visitor_token(oauth))

    def shown(found: dict[str, Any]) -> dict[Any, Any]:
        return {both[name]: value for name, value in found.items()}

    @plainly
    def hear(*values: Any) -> Iterator[dict[Any, Any]]:
        yield from map(shown, _heard(steps.request_of(*values[:-1]), steps.visitor_token(values[-1])))

    def after(run: Callable[..., Iterator[dict[str, Any]]]) -> Any:
        @plainly
        def follow(request: Request, oauth: gr.OAuthToken | None) -> Iterator[dict[Any, Any]]:
            yield from map(shown, run(request, steps.visitor_token(oauth)))

        return follow

    @plainly
    def save(*values: Any) -> Any:
        return gr.File(steps.saved_folder(steps.request_of(*values[:-1]), steps.visitor_token(values[-1])), visible=True)

    demo.load(load, chosen, voice_shown, **loading)
    inputs["voice"].change(load, chosen, voice_shown, **loading)
    inputs["upload"].upload(
        plainly(_upload), inputs["upload"], [inputs["voice"], inputs["upload"]], concurrency_id="load", concurrency_limit=2, **quiet
    )
    gr.on(
        [inputs["amount"].change, inputs["scope"].change, inputs["parts"].change],
        preview,
        [inputs[name] for name in ("voice", "scope", "amount", "parts")],
        inputs["readout"],
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=4,
        **quiet,
    )
    started = gr.on([inputs["speak"].click, inputs["text"].submit], load, chosen, voice_shown, js=_SCROLL, **loading)
    # Each step shows its findings in its last update: Gradio 6.31 forgets what an earlier one put into a tab that was never opened.
    chain = [started, started.success(_signed(hear), asked, [outputs[name] for name in ("status", "asked", *_HEARD)], **work, **quiet)]
    for run, names in _MEASURED:
        # Of the Request that was heard, whatever the controls say by now.
        shows = [outputs[name] for name in ("status", *names)]
        chain.append(chain[-1].success(after(run), outputs["asked"], shows, **measuring, **quiet))
    gr.on([inputs["speak"].click, inputs["text"].submit], None, None, cancels=chain[1:], queue=False, **quiet)
    saving = outputs["save"].click(_signed(save), asked, outputs["saved"], concurrency_id="work", concurrency_limit=1, **quiet)
    evident = _wire_evidence(inputs, outputs, measuring, {**work, **quiet}, shown)
    inputs["stop"].click(lambda: "Stopped.", None, outputs["status"], cancels=[*chain, saving, *evident], queue=False, **quiet)


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
        @plainly
        def step(*values: Any) -> Iterator[dict[Any, Any]]:
            request, token = steps.request_of(*values[: len(SPEAKING)]), steps.visitor_token(values[-1])
            yield from map(shown, run(request, token, *values[len(SPEAKING) : -1]))

        into = [outputs[name] for name in ("status", *shows)]
        wired.append(outputs[button].click(_signed(step, *chosen), [*asked, *(outputs[name] for name in chosen)], into, **how))

    measuring = {**measuring, "api_visibility": "private"}
    wire(
        "curve_start", evidence.curve_steps, ("curve_texts", "curve_step", "curve_last", "curve_metrics"), ("curve", "curve_csv"), measuring
    )
    wire("knee_start", evidence.knee_steps, ("curve_texts", "knee_cer", "knee_dnsmos"), ("knee_words", "knee", "knee_csv"), measuring)
    wire("heat_start", sensitivity.sensitivity_steps, ("heat_texts", "heat_amounts", "heat_metrics"), ("heat", "heat_csv"), measuring)
    wire("fader_start", evidence.fader_steps, (), ("fader",), working)

    def take_over(event: gr.EventData) -> tuple[float, str, list[str]]:
        return float(event._data["amount"]), str(event._data["scope"]), [str(part) for part in event._data["parts"]]

    for picture in ("curve", "heat"):
        settings = [inputs[name] for name in ("amount", "scope", "parts")]
        pressed = outputs[picture].click(take_over, None, settings, queue=False, api_visibility="private")
        pressed.success(None, js="() => document.querySelector('#speak').click()")
    return wired


def _signed(function: Any, *more: str) -> Any:
    """Give a function of (*page inputs, token) the signature that Gradio reads, so that it hands over the visitor's token."""
    import inspect

    names = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in (*SPEAKING, *more)]
    token = inspect.Parameter("oauth", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=gr.OAuthToken | None)
    function.__signature__ = inspect.Signature([*names, token])
    function.__annotations__ = {"oauth": gr.OAuthToken | None}
    return function


def _load(
    voice: str, speaker: str, scope: str, amount: float, parts: list[str], token: str | None, progress: gr.Progress
) -> tuple[Any, ...]:
    reference = (voice or "").strip()
    progress(0.0, desc=f"loading {reference[:60]}")
    loaded = steps.bench.voice(
        reference,
        token=token,
        on_progress=lambda done, total: progress(done / max(1, total), desc=f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"),
    )
    keep = speaker if speaker in loaded.speakers else (None if loaded.speaker is None else loaded.speakers[loaded.speaker])
    choice = gr.Dropdown(list(loaded.speakers), value=keep, visible=bool(loaded.speakers))
    return steps.free_cut_words(loaded), choice, steps.readout(reference, scope, amount, parts, token)


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


def _doing(step: Doing) -> dict[str, Any]:
    return {"status": f"{step.what} … {100 * step.share:.0f}%"}


def _heard(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    """Sound, and the sparsity of what is heard; what was measured for other settings goes."""
    for step in steps.hear_steps(request, token):
        if isinstance(step, Doing):
            yield _doing(step)
            continue
        steps.bench.remember(request, step, token)
        sparsity, layers = tables.sparsity_table(*step.sparsity), tables.layer_table(step.sparsity[1])
        yield {
            "status": "Both have spoken; measuring comes next.",
            "asked": request,
            "summary": steps.heard_words(request, step),
            "original": steps.wav(step.original, "original"),
            "pruned": steps.wav(step.pruned, "pruned"),
            "flip": steps.flip_value(step),
            **_table("sparsity", sparsity),
            **_table("layers", layers),
            **{name: tables.EMPTY[name] for name in ("size", "latency")},
            **{f"{name}_csv": gr.DownloadButton(interactive=False) for name in ("size", "latency")},
        }


def _drawn(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    yield {"status": "drawing …"}
    spectrograms, bars, histogram = steps.pictures(request, token)
    yield {"spectrograms": spectrograms, "bars": bars, "histogram": histogram}


def _weighed(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    yield {"status": "writing each file format to see its size …"}
    yield _table("size", tables.size_table(*steps.bench.size(request, token)))


def _timed(request: Request, token: str | None) -> Iterator[dict[str, Any]]:
    for step in steps.latency_steps(request, token):
        if isinstance(step, Doing):
            yield _doing(step)
        else:
            what = "" if steps.timed_text(request.text) == request.text.strip() else " on the beginning of the text"
            done = f"Done. Latency: {step.runs} runs of each voice in turn{what}, {step.threads} threads, {step.device}."
            yield {"status": done, **_table("latency", tables.latency_table(step))}


def _table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """A table and its download."""
    return {name: table, f"{name}_csv": gr.DownloadButton(value=steps.csv(table, name), interactive=True)}


_TABLES = ("sparsity", "layers", "size", "latency")
_HEARD = ("summary", "original", "pruned", "flip", *(name + end for name in _TABLES for end in ("", "_csv")))
_MEASURED = (
    (_drawn, ("spectrograms", "bars", "histogram")),
    (_weighed, ("size", "size_csv")),
    (_timed, ("latency", "latency_csv")),
)
"""What "Speak with both" sets off after hearing, and which outputs each step fills."""
