"""What can be set: the page's left half, and which of its controls apply."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.kernels import KERNELS
from vits_prune.progress import Progress
from vits_prune.pruning import Shape
from vits_prune.pruning.spec import (
    BITS,
    COSTS,
    IMPORTANCES,
    METHODS,
    SCHEDULES,
    SCOPES,
    UNGROUPED,
    PruneSpec,
    weighs_arithmetic,
)
from vits_prune.pruning.structured.couplings import sizes_of
from vits_prune.pruning.structured.cut import shape_for
from vits_prune.studio import workbench
from vits_prune.studio.descriptions import method_words, plain, readout, voice_words
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
from vits_prune.study.comparison import DEFAULT_TEXT, PART_NAMES
from vits_prune.synthesis.speak import MAX_SEED
from vits_prune.ui.events import Page
from vits_prune.ui.widgets import Made
from vits_prune.voices.load import EMBEDDED
from vits_prune.voices.voice import PARTS, Voice

VOICES: list[str | tuple[str, str]] = [
    EMBEDDED,
    *(f"facebook/mms-tts-{language}" for language in ("eng", "deu", "fra", "spa")),
    *(f"kakao-enterprise/vits-{corpus}" for corpus in ("ljs", "vctk")),
]
EXAMPLES = {
    "Tongue twister": "She sells seashells by the seashore, and those shells are seashells.",
    "Question": "Did you really walk all the way home in the rain?",
    "Numbers": "The 8:45 train to platform 17 costs 12 dollars and 60 cents.",
    "Two sentences": "These days a chicken leg is a rare dish. Rice is served in round bowls.",
}
LOADED = ("voice", "speaker", *PRUNING)
VOICE_SHOWN = ("facts", "speaker", "readout")
"""What loading a voice reads and shows."""
_COUNTS = [("all", ALL), *((str(count), count) for count in range(1, 13))]
_PROTECTABLE = [
    *(NOTHING, "duration_predictor", "decoder.conv_post", "decoder.conv_pre"),
    *("text_encoder.project", "text_encoder.encoder.layers.0"),
    *("flow.flows.*.conv_pre", "flow.flows.*.conv_post"),
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
    "At most {} of every {} neighbouring input channels stay: the amount is {:.0%}. Sparse tensor"
    " cores of NVIDIA GPUs (Ampere and later) {}; a CPU gains no more than from other zeros."
)
_GAINS = {
    "2:4": "compute this at up to twice the speed",
    "4:8": "need 2:4 and gain only where 4:8 happens to be 2:4 as well",
}


# Components


def control_components() -> Made:
    """Make what is set most often, by name, in the order of the work; the amount is the stage's."""
    made = Made()
    custom = {"allow_custom_value": True}
    info = "One of the list, or a Hugging Face id (owner/name)"
    made.add("voice", gr.Dropdown, EMBEDDED, "Voice", choices=VOICES, info=info, **custom)
    made.add("speaker", gr.Dropdown, None, "Speaker", choices=[], visible=False, **custom)
    made.add("text", gr.Textbox, DEFAULT_TEXT, "Text", lines=3, max_lines=6, max_length=20_000)
    samples = [[text] for text in EXAMPLES.values()]
    look = {"samples": samples, "sample_labels": list(EXAMPLES), "components": ["textbox"]}
    made["examples"] = gr.Dataset(label="Examples", elem_id="examples", **look)
    methods = [(method.title, name) for name, method in METHODS.items()]
    made.add("method", gr.Dropdown, PruneSpec.method, "Method", choices=methods, filterable=False)
    scopes = [(name.capitalize(), name) for name in SCOPES]
    made.add("scope", gr.Radio, PruneSpec.scope, "Scope", choices=scopes)
    made.add("method_words", gr.Markdown, method_words(PruneSpec.method, PruneSpec.scope))
    return made


def option_components() -> Made:
    """Make what is set more rarely."""
    made = Made()
    made.add("facts", gr.Markdown, "", min_height=24)
    made.add("readout", gr.Markdown, "Sparsity is shown once the voice is loaded.")
    _add_pruning(made)
    timings = [
        ("The original's rhythm: switch while it plays", "locked"),
        ("Its own: hear the rhythm break", "own"),
    ]
    made.add("timing", gr.Radio, "locked", "Rhythm of the pruned voice", choices=timings)
    kernels = [
        ("Auto: what is faster on this machine, part by part", "auto"),
        ("Dense: zeros cost what other numbers cost", "dense"),
        ("Sparse: all zeros of flow and decoder are skipped", "sparse"),
    ]
    made.add("kernels", gr.Radio, KERNELS[0], "Kernels", choices=kernels)
    made.add("seed", gr.Number, 0, "Seed", precision=0, minimum=0, maximum=MAX_SEED)
    for name, label, limits in (
        ("speaking_rate", "Speaking rate", "0.25 to 4"),
        ("noise_scale", "Noise of the sound", "0 to 2"),
        ("noise_scale_duration", "Noise of the rhythm", "0 to 2"),
    ):
        info = f"{limits}; empty: the voice's own"
        # Gradio would put 0 in the place of None as soon as the options are opened.
        made.add(name, gr.Number, "", label, info=info, step=0.05)
    files = {"file_count": "multiple", "file_types": [".onnx", ".json"], "height": 120}
    label = "Upload a Piper voice: its .onnx and .onnx.json"
    made.add("upload", gr.File, None, label, **files)
    return made


def _add_pruning(made: Made) -> None:
    parts = [(PART_NAMES[part], part) for part in PARTS]
    made.add("parts", gr.CheckboxGroup, list(PruneSpec.parts), "Parts to prune", choices=parts)
    with gr.Group(elem_id="more") as made["more"]:
        how = {"choices": _PROTECTABLE, "multiselect": True, "allow_custom_value": True}
        info = _protect_info(PruneSpec.method)
        made.add("protect", gr.Dropdown, [], "Layers to protect", info=info, **how)
        patterns = [("none", ""), *((name, name) for name in PATTERNS)]
        label = "Pattern (N of every M stay)"
        made.add("pattern", gr.Radio, PruneSpec.pattern, label, choices=patterns)
        made.add("pattern_words", gr.Markdown, "", visible=False)
        how = {"step": 0.05, "info": "Share of its weights that every layer keeps at least"}
        made.add("floor", gr.Slider, PruneSpec.floor, "Floor", minimum=0, maximum=1, **how)
        how = {"step": 1, "info": "Gradual pruning; each step can be heard"}
        made.add("steps", gr.Slider, PruneSpec.steps, "Steps", minimum=1, maximum=MAX_STEPS, **how)
        how = {"choices": list(SCHEDULES), "visible": False}
        made.add("schedule", gr.Radio, PruneSpec.schedule, "How the amount grows", **how)
    choices = [(words, name) for name, words in COSTS.items()]
    label = "What the amount is a share of"
    made.add("cost", gr.Radio, PruneSpec.cost, label, choices=choices, visible=False)
    offered = [("32, as they are", 0), *((str(bits), bits) for bits in BITS)]
    info = "Fewer make the sparse file smaller; decoder and durations keep 8"
    made.add("bits", gr.Radio, PruneSpec.bits, "Bits of each weight", choices=offered, info=info)
    how["choices"] = [(f"{n.replace('_', ' ')}: {words}", n) for n, words in IMPORTANCES.items()]
    made.add("importance", gr.Radio, PruneSpec.importance, "What a channel is judged by", **how)
    with gr.Group(visible=False, elem_id="levers") as made["levers"]:
        made.add("by_lever", gr.Checkbox, False, "Set each lever myself, instead of by the amount")
        for name, label in _LEVER_WORDS.items():
            kind: Any = gr.Slider
            how = {"minimum": 0.05, "maximum": 1, "step": 0.05}
            if name in COUNTED:
                kind, how = gr.Dropdown, {"choices": _COUNTS, "filterable": False}
            made.add(name, kind, ALL if name in COUNTED else 1, label, visible=False, **how)


# Events


def wire_controls(demo: gr.Blocks, page: Page) -> None:
    """Load the chosen voice, and keep the controls and the line under the slider up to date."""
    page["voice"].change(**page.event(load_voice, LOADED, VOICE_SHOWN, "load", bar="facts"))
    page["upload"].upload(**page.event(keep_upload, ["upload"], ["voice", "upload"], "load"))

    def read(values: Mapping[str, Any], token: str | None) -> dict[str, Any]:
        return {"readout": _readout(values, token)}

    last: dict[str, Any] = {"queue": True, "trigger_mode": "always_last", "concurrency_limit": 4}
    changed = [page[name].change for name in PRUNING]
    gr.on(changed, **page.event(read, ["voice", *PRUNING], ["readout"], **last))
    changed = [
        page[name].change for name in ("facts", "method", "scope", "pattern", "steps", "cost")
    ]
    gr.on(changed, **page.event(_arrange, LOADED, ARRANGED))
    # A lever that is taken over starts where the amount has it. Gradio 6.31 forgets a value that
    # is set while its component is out of sight, so all comes in one update.
    levers = functools.partial(_arrange, levers=True)
    page["by_lever"].change(**page.event(levers, LOADED, ARRANGED))


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
        return plain(str(error), 1_000)


def keep_upload(values: Mapping[str, Any], token: str | None) -> dict[str, Any]:
    """Take the two files of a Piper voice.

    Raises:
        InputError: they are not an .onnx and a .json, or no voice.
    """
    paths = sorted(map(Path, values["upload"] or ()), key=lambda path: path.suffix)
    if [path.suffix for path in paths] != [".json", ".onnx"]:
        raise InputError(
            "A Piper voice is two files: choose its .onnx and its .onnx.json together."
        )
    config, model = paths
    try:
        reference, _ = workbench.bench.keep_upload(model, config)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    label = f"uploaded: {model.stem[:60]}"
    return {"voice": gr.Dropdown([*VOICES, (label, reference)], value=reference), "upload": None}


def _arrange(values: Mapping[str, Any], token: str | None, levers: bool = False) -> dict[str, Any]:
    reference, bench = (values["voice"] or "").strip(), workbench.bench
    loaded = bench.is_loaded(reference, token)
    voice = bench.voice(reference, token=token, device="cpu") if loaded else None
    new = levers_for(voice, values["amount"], values["parts"]) if levers else None
    return arranged(voice, values, new)


ARRANGED = (
    "method_words", "scope", "amount", "parts", "more", "protect", "pattern_words", "floor",
    "steps", "schedule", "importance", "cost", "levers", *LEVERS,
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
    structured = METHODS.get(method, METHODS["magnitude"]).structured
    pattern = "" if structured or values["pattern"] not in PATTERNS else values["pattern"]
    by_lever = structured and values["by_lever"] is True
    share = "Share of the weights that become zero"
    if structured:
        share = "Share of the channels of each chosen part that go"
    elif values["cost"] == "macs" and weighs_arithmetic(method, values["scope"]):
        share = "Share of the multiply-accumulates that zeros save"
    words, info, set_amount = "", share, {}
    if pattern:
        set_amount, info = {"value": PATTERNS[pattern]}, f"{share}: set by the pattern"
        keep, of = pattern.split(":")
        words = _PATTERN_WORDS.format(keep, of, PATTERNS[pattern], _GAINS[pattern])
    gradual = not pattern and isinstance(steps, (int, float)) and steps > 1
    changes: dict[str, dict[str, Any]] = {
        name: {"visible": shown}
        for name, shown in {
            "scope": not structured and not pattern,
            "parts": not by_lever,
            "more": not structured,
            "floor": not pattern,
            "steps": not pattern,
            "schedule": gradual,
            "importance": structured,
            "cost": weighs_arithmetic(method, values["scope"]) and not pattern,
            "levers": structured,
            **{name: by_lever and (voice is None or _has(voice, name)) for name in LEVERS},
        }.items()
    }
    scope = "local" if pattern else values["scope"]
    interactive = {"interactive": not pattern, "visible": not by_lever}
    changes |= {
        "method_words": {"value": method_words(method, scope)},
        "amount": {"info": info, **interactive, **set_amount},
        "protect": {"info": _protect_info(method, bool(pattern))},
        "pattern_words": {"value": words, "visible": bool(pattern)},
    }
    for name, value in (levers or {}).items():
        changes[name]["value"] = value
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
        with contextlib.suppress(InputError):
            spec = PruneSpec(method="structured", amount=amount, parts=parts or ())
            shape = shape_for(voice, spec)
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
