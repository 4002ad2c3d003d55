"""What can be set: the page's left half, and which of its controls apply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.pruning.registry import IMPORTANCES, METHODS, SCHEDULES, SCOPES, UNGROUPED
from vits_prune.pruning.shape import Shape, sizes_of
from vits_prune.pruning.spec import MAX_AMOUNT, PruneSpec
from vits_prune.pruning.structured.shrink import shape_for
from vits_prune.studio import workbench
from vits_prune.studio.descriptions import method_words, readout, voice_words
from vits_prune.studio.request import (
    ALL,
    COUNTED,
    LEVERS,
    MAX_STEPS,
    NOTHING,
    PATTERNS,
    PRUNING,
    spec_of,
)
from vits_prune.study.tables import PART_NAMES
from vits_prune.synthesis.speak import MAX_SEED
from vits_prune.ui.events import Page
from vits_prune.voices.load import EMBEDDED
from vits_prune.voices.voice import PARTS, Voice

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
LOADED = ("voice", "speaker", *PRUNING)
VOICE_SHOWN = ("facts", "speaker", "readout")
"""What loading a voice reads and shows."""
_COUNTS = [("all", ALL), *((str(count), count) for count in range(1, 13))]
_PROTECTABLE = [
    NOTHING,
    "duration_predictor",
    "decoder.conv_post",
    "decoder.conv_pre",
    "text_encoder.project",
    "text_encoder.encoder.layers.0",
    "flow.flows.*.conv_pre",
    "flow.flows.*.conv_post",
]
_LEVER_WORDS = {
    "decoder_width": "Decoder width",
    "resblock_width": "Width inside the residual blocks",
    "ffn_width": "Feed-forward width",
    "branches": "Residual branches a decoder stage",
    "encoder_layers": "Encoder layers",
    "flows": "Coupling layers of the flow",
}
_PATTERN_WORDS = (
    "At most {keep} of every {of} neighbouring input channels stay, in every layer: the amount is"
    " {amount:.0%}. NVIDIA GPUs from Ampere on (A100, RTX 30 and later) have sparse tensor cores"
    " that {gain}; a CPU gains nothing."
)
_GAINS = {
    "2:4": "compute this at up to twice the speed",
    "4:8": "need 2:4 and gain only where 4:8 happens to be 2:4 as well",
}


# Components


def control_components() -> dict[str, Any]:
    """Make what the visitor sets, by name."""
    made: dict[str, Any] = {}
    made["voice"] = gr.Dropdown(
        VOICES,
        value=EMBEDDED,
        allow_custom_value=True,
        label="Voice",
        info="The embedded voice, or any Hugging Face model of type VITS: owner/name or"
        " owner/name@revision",
        elem_id="voice",
    )
    made["facts"] = gr.Markdown("", elem_id="facts")
    made["speaker"] = gr.Dropdown(
        [], value=None, label="Speaker", visible=False, allow_custom_value=True, elem_id="speaker"
    )
    made["text"] = gr.Textbox(
        EXAMPLES[0], label="Text", lines=3, max_lines=8, elem_id="text", info="Shift+Enter speaks"
    )
    with gr.Row():
        made["speak"] = gr.Button("Speak with both", variant="primary", elem_id="speak", scale=3)
        # The page's script presses "go" once the run before has ended.
        made["go"] = gr.Button("Go", visible="hidden", elem_id="go")
        made["stop"] = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
    made |= _pruning_components()
    made["timing"] = gr.Radio(
        [
            ("own: hear rhythm break", "own"),
            ("locked: the original's, flip between the two", "locked"),
        ],
        value="locked",
        label="Timing of the pruned voice",
        elem_id="timing",
    )
    with gr.Accordion("Seed, speaking rate, noise", open=False):
        made["seed"] = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed"
        )
        for name, label, limits in (
            ("speaking_rate", "Speaking rate", "0.25 to 4"),
            ("noise_scale", "Noise of the sound", "0 to 2"),
            ("noise_scale_duration", "Noise of the rhythm", "0 to 2"),
        ):
            made[name] = gr.Number(
                None, label=label, info=f"{limits}; empty: the voice's own", step=0.05
            )
    gr.Examples([[example] for example in EXAMPLES], inputs=[made["text"]], label="Examples")
    with gr.Accordion("Upload a Piper voice", open=False):
        made["upload"] = gr.File(
            label="Its two files: .onnx and .onnx.json",
            file_count="multiple",
            file_types=[".onnx", ".json"],
            elem_id="upload",
            height=120,
        )
    made["ticket"] = gr.Textbox(visible="hidden", elem_id="ticket")  # of the run under way
    return made


def _pruning_components() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["method"] = gr.Dropdown(
        [(method.title, name) for name, method in METHODS.items()],
        value="magnitude",
        label="Method",
        elem_id="method",
        filterable=False,
    )
    made["method_words"] = gr.Markdown(method_words("magnitude", "global"), elem_id="method-words")
    more = {"sensitivity": " (calibrated: listens to the voice first)"}
    made["scope"] = gr.Radio(
        [(f"{name}: {words}{more.get(name, '')}", name) for name, words in SCOPES.items()],
        value="global",
        label="Scope: how the amount is shared out",
        elem_id="scope",
    )
    made["amount"] = gr.Slider(
        0,
        MAX_AMOUNT,
        value=0.3,
        step=0.01,
        label="Amount",
        info="Share of the weights that become zero",
        elem_id="amount",
    )
    made["parts"] = gr.CheckboxGroup(
        [(PART_NAMES[part], part) for part in PARTS],
        value=list(PARTS),
        label="Parts to prune",
        elem_id="parts",
    )
    made["readout"] = gr.Markdown("Sparsity is shown once the voice is loaded.", elem_id="readout")
    title = "More: protect, floor, pattern, steps"
    with gr.Accordion(title, open=False, elem_id="more") as made["more"]:
        made |= _more_components()
    made["importance"] = gr.Radio(
        [(f"{name.replace('_', ' ')}: {words}", name) for name, words in IMPORTANCES.items()],
        value="sensitivity",
        label="What a channel is judged by",
        visible=False,
        elem_id="importance",
    )
    title = "Levers: what of the structure stays"
    with gr.Accordion(title, open=False, visible=False, elem_id="levers") as made["levers"]:
        made["by_lever"] = gr.Checkbox(
            False, label="Set each lever myself, instead of by the amount", elem_id="by-lever"
        )
        for name, label in _LEVER_WORDS.items():
            how = {"label": label, "visible": False, "elem_id": name.replace("_", "-")}
            made[name] = (
                gr.Dropdown(_COUNTS, value=ALL, filterable=False, **how)
                if name in COUNTED
                else gr.Slider(0.05, 1, value=1, step=0.05, **how)
            )
    return made


def _more_components() -> dict[str, Any]:
    return {
        "protect": gr.Dropdown(
            _PROTECTABLE,
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label="Leave alone",
            info=_protect_info("magnitude"),
            elem_id="protect",
        ),
        "pattern": gr.Radio(
            [("none", ""), *((name, name) for name in PATTERNS)],
            value="",
            label="Pattern (N of every M stay)",
            elem_id="pattern",
        ),
        "pattern_words": gr.Markdown("", visible=False, elem_id="pattern-words"),
        "floor": gr.Slider(
            0,
            1,
            value=0,
            step=0.05,
            label="Floor",
            info="Share of its weights that every layer keeps at least",
            elem_id="floor",
        ),
        "steps": gr.Slider(
            1,
            MAX_STEPS,
            value=1,
            step=1,
            label="Steps",
            info="Gradual pruning; each step can be heard",
            elem_id="steps",
        ),
        "schedule": gr.Radio(
            list(SCHEDULES),
            value="cubic",
            label="How the amount grows",
            visible=False,
            elem_id="schedule",
        ),
    }


# Events


def wire_controls(demo: gr.Blocks, page: Page) -> None:
    """Load the chosen voice, and keep the controls and the line under the slider up to date."""
    load = page.event(load_voice, LOADED, VOICE_SHOWN, "load", bar="facts")
    demo.load(**load)
    page["voice"].change(**load)
    page["upload"].upload(**page.event(keep_upload, ["upload"], ["voice", "upload"], "load"))
    gr.on(
        [page[name].change for name in PRUNING],
        **page.event(
            lambda values, token: {"readout": _readout(values, token)},
            ["voice", *PRUNING],
            ["readout"],
            queue=True,
            trigger_mode="always_last",
            concurrency_limit=4,
        ),
    )
    changed = [page[name].change for name in ("facts", "method", "scope", "pattern", "steps")]
    gr.on(changed, **page.event(_arrange, LOADED, ARRANGED))
    # A lever that is taken over starts where the amount has it. Gradio 6.31 forgets a value that
    # is set while its component is out of sight, so all comes in one update.
    page["by_lever"].change(**page.event(_arrange_levers, LOADED, ARRANGED))


def load_voice(
    values: Mapping[str, Any], token: str | None, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Load the chosen voice; show its facts, its speakers, and the line under the slider."""
    reference = (values["voice"] or "").strip()
    progress.report(f"loading {reference[:60]}", 0.0)
    voice = workbench.bench.voice(reference, token=token, progress=progress)
    speaker = values["speaker"]
    if speaker not in voice.speakers:
        speaker = None if voice.speaker is None else voice.speakers[voice.speaker]
    yield {
        "facts": voice_words(voice),
        "speaker": gr.Dropdown(list(voice.speakers), value=speaker, visible=bool(voice.speakers)),
        "readout": _readout(values, token),
    }


def _readout(values: Mapping[str, Any], token: str | None) -> str:
    """Return the line under the slider; what cannot be used is said there and not in a pop-up."""
    try:
        return readout((values["voice"] or "").strip(), spec_of(values), token)
    except InputError as error:
        return str(error)


def keep_upload(values: Mapping[str, Any], token: str | None) -> dict[str, Any]:
    """Take the two files of a Piper voice.

    Raises:
        InputError: they are not an .onnx and a .json, or no voice.
    """
    paths = [Path(name) for name in values["upload"] or ()]
    if sorted(path.suffix for path in paths) != [".json", ".onnx"]:
        raise InputError(
            "A Piper voice has two files: choose its .onnx and its .onnx.json together."
        )
    config, model = sorted(paths, key=lambda path: path.suffix)
    try:
        reference, _ = workbench.bench.keep_upload(model, config)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    label = f"uploaded: {model.stem[:60]}"
    return {"voice": gr.Dropdown([*VOICES, (label, reference)], value=reference), "upload": None}


def _arrange(values: Mapping[str, Any], token: str | None) -> dict[str, Any]:
    return arranged(_loaded(values, token), values)


def _arrange_levers(values: Mapping[str, Any], token: str | None) -> dict[str, Any]:
    voice = _loaded(values, token)
    return arranged(voice, values, levers_for(voice, values["amount"], values["parts"]))


def _loaded(values: Mapping[str, Any], token: str | None) -> Voice | None:
    """Return the chosen voice, None where it is not loaded yet."""
    reference, bench = (values["voice"] or "").strip(), workbench.bench
    if not bench.is_loaded(reference, token):
        return None
    return bench.voice(reference, token=token, device="cpu")


ARRANGED = (
    "method_words", "scope", "amount", "parts", "more", "protect", "pattern_words", "floor",
    "steps", "schedule", "importance", "levers", *LEVERS,
)  # fmt: skip
"""What `arranged` changes."""


def arranged(
    voice: Voice | None, values: Mapping[str, Any], levers: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return updates that show only the controls that apply, with words that fit.

    Args:
        voice: the loaded voice, None where there is none yet.
        values: of the controls.
        levers: new values for the levers, None to leave them.
    """
    method, steps = values["method"], values["steps"]
    known = METHODS.get(method, METHODS["magnitude"])
    structured = known.structured
    pattern = "" if structured or values["pattern"] not in PATTERNS else values["pattern"]
    by_lever = structured and values["by_lever"] is True
    share = (
        "Share of the channels of each chosen part that go"
        if structured
        else "Share of the weights that become zero"
    )
    amount: dict[str, Any] = {"info": share, "interactive": True, "visible": not by_lever}
    words = ""
    if pattern:
        amount |= {"info": f"{share}: set by the pattern", "interactive": False}
        amount["value"] = PATTERNS[pattern]
        keep, _, of = pattern.partition(":")
        words = _PATTERN_WORDS.format(
            keep=keep, of=of, amount=PATTERNS[pattern], gain=_GAINS[pattern]
        )
    gradual = not pattern and isinstance(steps, (int, float)) and steps > 1
    changes: dict[str, dict[str, Any]] = {
        "method_words": {"value": method_words(method, "local" if pattern else values["scope"])},
        "scope": {"visible": not structured and not pattern},
        "amount": amount,
        "parts": {"visible": not by_lever},
        "more": {"visible": not structured},
        "protect": {"info": _protect_info(method, bool(pattern))},
        "pattern_words": {"value": words, "visible": bool(pattern)},
        "floor": {"visible": not pattern},
        "steps": {"visible": not pattern},
        "schedule": {"visible": gradual},
        "importance": {"visible": structured},
        "levers": {"visible": structured},
    }
    for name in LEVERS:
        changes[name] = {"visible": by_lever and (voice is None or _has(voice, name))}
        if levers is not None:
            changes[name]["value"] = levers[name]
    return {name: gr.update(**change) for name, change in changes.items()}


def _has(voice: Voice, lever: str) -> bool:
    now = sizes_of(voice.model.config)
    if lever == "resblock_width":
        return now.inner_channels is not None
    return lever not in COUNTED or getattr(now, lever) > 1


def levers_for(voice: Voice | None, amount: float, parts: Any) -> dict[str, Any]:
    """Return the values of the levers that an amount comes to."""
    shape = Shape()
    if voice:
        try:
            spec = PruneSpec(method="structured", amount=amount, parts=parts or ())
            shape = shape_for(voice, spec)
        except InputError:
            shape = Shape()
    found = {name: getattr(shape, name) for name in LEVERS}
    return {
        name: (value or ALL) if name in COUNTED else max(0.05, round(value, 2))
        for name, value in found.items()
    }


def _protect_info(method: str, patterned: bool = False) -> str:
    known = METHODS.get(method)
    names = known.protect if known and known.protect else UNGROUPED if patterned else ("none",)
    own = ", ".join(names)
    return f"Layers, or beginnings of their names. Empty: the method's own list ({own})."
