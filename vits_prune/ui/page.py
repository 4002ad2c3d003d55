"""The page: its layout and which button does which step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from vits_prune import tables
from vits_prune.errors import InputError
from vits_prune.pruning.spec import MAX_AMOUNT
from vits_prune.synthesis import MAX_SEED
from vits_prune.ui import evidence, flip, steps
from vits_prune.ui.endpoints import add_endpoints
from vits_prune.ui.steps import plainly
from vits_prune.ui.theme import HEAD, theme
from vits_prune.voices.load import EMBEDDED
from vits_prune.voices.voice import PARTS
from vits_prune.workbench import Doing, Request

VOICES = [
    EMBEDDED,
    "facebook/mms-tts-eng",
    "facebook/mms-tts-deu",
    "facebook/mms-tts-fra",
    "facebook/mms-tts-spa",
    "kakao-enterprise/vits-ljs",
    "kakao-enterprise/vits-vctk",
]
EXAMPLES = [
    "The birch canoe slid on the smooth planks.",
    "Glue the sheet to the dark blue background.",
    "These days a chicken leg is a rare dish. Rice is often served in round bowls.",
    "The juice of lemons makes fine punch, and four hours of steady work faced us.",
]
TITLE = """# vits_prune: hear what pruning does
Set the smallest weights of a text-to-speech voice to zero, let both voices speak the same text with the same noise, and read what it did to
sparsity, size and speed."""


def build() -> gr.Blocks:
    """The whole page, ready for `launch(**launch_options())`."""
    with gr.Blocks(title="vits_prune", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
        gr.Markdown(TITLE, elem_id="title")
        if os.environ.get("OAUTH_CLIENT_ID"):
            gr.LoginButton("Log in for private and gated voices", size="sm")
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=4, min_width=300):
                inputs = _inputs()
            with gr.Column(scale=7, min_width=300, elem_classes="outputs"):
                outputs = _outputs()
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


def _inputs() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["voice"] = gr.Dropdown(
        VOICES,
        value=EMBEDDED,
        allow_custom_value=True,
        label="Voice",
        info="The embedded voice, or any Hugging Face model of type VITS: owner/name or owner/name@revision",
        elem_id="voice",
    )
    made["facts"] = gr.Markdown("", elem_id="facts")
    made["speaker"] = gr.Dropdown([], value=None, label="Speaker", visible=False, allow_custom_value=True, elem_id="speaker")
    made["text"] = gr.Textbox(EXAMPLES[0], label="Text", lines=3, max_lines=8, elem_id="text", info="Shift+Enter speaks")
    with gr.Row():
        made["speak"] = gr.Button("Speak with both", variant="primary", elem_id="speak", scale=3)
        made["stop"] = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
    made["scope"] = gr.Radio(
        [("global: one ranking over all layers", "global"), ("local: the same amount in each layer", "local")],
        value="global",
        label="Scope of the ranking",
        elem_id="scope",
    )
    made["amount"] = gr.Slider(
        0, MAX_AMOUNT, value=0.3, step=0.01, label="Amount", info="Share of the weights that become zero", elem_id="amount"
    )
    made["parts"] = gr.CheckboxGroup(
        [(tables.PART_NAMES[part], part) for part in PARTS], value=list(PARTS), label="Parts to prune", elem_id="parts"
    )
    made["readout"] = gr.Markdown("Sparsity is shown once the voice is loaded.", elem_id="readout")
    made["timing"] = gr.Radio(
        [("own: hear rhythm break", "own"), ("locked: the original's, flip between the two", "locked")],
        value="locked",
        label="Timing of the pruned voice",
        elem_id="timing",
    )
    with gr.Accordion("Seed, speaking rate, noise", open=False):
        made["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed")
        made["speaking_rate"] = gr.Number(None, label="Speaking rate", info="0.25 to 4; empty: the voice's own", step=0.05)
        made["noise_scale"] = gr.Number(None, label="Noise of the sound", info="0 to 2; empty: the voice's own", step=0.05)
        made["noise_scale_duration"] = gr.Number(None, label="Noise of the rhythm", info="0 to 2; empty: the voice's own", step=0.05)
    gr.Examples([[example] for example in EXAMPLES], inputs=[made["text"]], label="Examples")
    with gr.Accordion("Upload a Piper voice", open=False):
        made["upload"] = gr.File(
            label="Its two files: .onnx and .onnx.json",
            file_count="multiple",
            file_types=[".onnx", ".json"],
            elem_id="upload",
            height=120,
        )
    return made


def _outputs() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["status"] = gr.Markdown("Press **Speak with both**.", elem_id="status", min_height=56)
    made["summary"] = gr.Markdown("", elem_id="summary")
    made["asked"] = gr.State()
    with gr.Row():
        made["original"] = gr.Audio(
            label="Original", interactive=False, elem_id="original-audio", buttons=["download"], waveform_options=_waves("#2f7ed8")
        )
        made["pruned"] = gr.Audio(
            label="Pruned", interactive=False, elem_id="pruned-audio", buttons=["download"], waveform_options=_waves("#e4572e")
        )
    made["flip"] = flip.flip_switch()
    with gr.Tabs():
        for name, label in (("sparsity", "Sparsity"), ("size", "Size"), ("latency", "Latency"), ("layers", "Layers")):
            with gr.Tab(label, id=name):
                made[name] = gr.Dataframe(
                    tables.EMPTY[name],
                    label=label,
                    interactive=False,
                    wrap=True,
                    show_label=False,
                    elem_id=f"{name}-table",
                    column_widths=_WIDTHS.get(name),
                    max_height=620,
                    buttons=["copy", "fullscreen"],
                    show_search="filter" if name == "layers" else "none",
                )
                made[f"{name}_csv"] = gr.DownloadButton(f"Download {name}.csv", size="sm", interactive=False, elem_id=f"{name}-csv")
        with gr.Tab("Pictures", id="pictures"):
            made["spectrograms"] = gr.Plot(label="Spectrograms", show_label=False, format="png", elem_classes="pictures")
            made["bars"] = gr.Plot(label="Sparsity by layer", show_label=False, format="png", elem_classes="pictures")
            made["histogram"] = gr.Plot(label="Weights by absolute value", show_label=False, format="png", elem_classes="pictures")
        with gr.Tab("Curve", id="curve-tab"):
            made |= evidence.curve_tab()
        with gr.Tab("Fader", id="fader-tab"):
            made |= evidence.fader_tab()
        with gr.Tab("Save", id="save"):
            gr.Markdown(
                "The pruned voice as a folder: safetensors, configuration, tokenizer and the PruneSpec. `load_voice(folder)` speaks the "
                "same samples; a Hugging Face voice also opens in plain `VitsModel.from_pretrained`."
            )
            made["save"] = gr.Button("Make the pruned voice's folder", elem_id="save")
            made["saved"] = gr.File(label="Folder of the pruned voice (zip)", interactive=False, visible=False, elem_id="saved")
    return made


_WIDTHS = {
    "sparsity": ["170px", "110px", "90px", "110px", "90px"],
    "size": ["200px", "85px", "85px", "85px", "300px"],
    "latency": ["200px", "85px", "85px", "85px", "300px", "110px", "110px", "110px", "110px"],
    "layers": ["250px", "130px", "100px", "240px", "130px", "100px", "100px", "150px"],
}
"""Widths of the columns: the words beside a number must be in sight before its spread."""


def _waves(colour: str) -> gr.WaveformOptions:
    return gr.WaveformOptions(waveform_color="#b8c0cc", waveform_progress_color=colour)


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
    """The curve and the fader; pressing a point of the curve takes its settings over and speaks."""
    asked = [inputs[name] for name in SPEAKING]
    chosen = ("curve_texts", "curve_step", "curve_last", "curve_metrics")

    @plainly
    def draw(*values: Any) -> Iterator[dict[Any, Any]]:
        request, token = steps.request_of(*values[: len(SPEAKING)]), steps.visitor_token(values[-1])
        yield from map(shown, evidence.curve_steps(request, token, *values[len(SPEAKING) : -1]))

    @plainly
    def fade(*values: Any) -> Iterator[dict[Any, Any]]:
        yield from map(shown, evidence.fader_steps(steps.request_of(*values[:-1]), steps.visitor_token(values[-1])))

    def take_over(event: gr.EventData) -> tuple[float, str]:
        return float(event._data["amount"]), str(event._data["scope"])

    drawing = outputs["curve_start"].click(
        _signed(draw, *chosen),
        [*asked, *(outputs[name] for name in chosen)],
        [outputs[name] for name in ("status", "curve", "curve_csv")],
        **measuring,
        api_visibility="private",
    )
    fading = outputs["fader_start"].click(_signed(fade), asked, [outputs["status"], outputs["fader"]], **working)
    pressed = outputs["curve"].click(take_over, None, [inputs["amount"], inputs["scope"]], queue=False, api_visibility="private")
    pressed.success(None, js="() => document.querySelector('#speak').click()")
    return [drawing, fading]


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
    return gr.Dropdown([*VOICES, (label, reference)], value=reference), None


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
