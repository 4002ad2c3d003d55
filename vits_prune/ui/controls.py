"""What can be set about pruning: the components, which of them apply, and the PruneSpec that they make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.pruning.registry import IMPORTANCES, METHODS, SCHEDULES, SCOPES, UNGROUPED
from vits_prune.pruning.shape import Shape, sizes_of
from vits_prune.pruning.spec import MAX_AMOUNT, PruneSpec
from vits_prune.pruning.structured.shrink import shape_for
from vits_prune.studio.workbench import MAX_STEPS
from vits_prune.study.tables import PART_NAMES
from vits_prune.voices.voice import PARTS, Voice

_COUNTED = ("branches", "encoder_layers", "flows")
LEVERS = ("decoder_width", "resblock_width", "ffn_width", *_COUNTED)
NAMES = (
    "method",
    "scope",
    "amount",
    "parts",
    "protect",
    "floor",
    "pattern",
    "steps",
    "schedule",
    "by_lever",
    *LEVERS,
    "importance",
)
"""The controls, in the order of `spec_of`."""
PATTERNS = {"2:4": 0.5, "4:8": 0.5}
NOTHING, ALL = "nothing", 0
"""How "protect nothing" and "leave all layers" stand in the controls."""
_COUNTS = [("all", ALL), *((str(count), count) for count in range(1, 13))]
PROTECTABLE = (
    NOTHING,
    "duration_predictor",
    "decoder.conv_post",
    "decoder.conv_pre",
    "text_encoder.project",
    "text_encoder.encoder.layers.0",
    "flow.flows.*.conv_pre",
    "flow.flows.*.conv_post",
)
SLOW = "It listens to the voice first: 10 to 60 seconds once, less for another amount."
PATTERN_WORDS = (
    "At most {keep} of every {of} neighbouring input channels stay, in every layer: the amount is {amount:.0%}. NVIDIA GPUs from Ampere on "
    "(A100, RTX 30 and later) have sparse tensor cores that {gain}; a CPU gains nothing."
)
_GAINS = {
    "2:4": "compute this at up to twice the speed",
    "4:8": "need 2:4 and gain only where 4:8 happens to be 2:4 as well",
}


def pruning_controls() -> dict[str, Any]:
    """The components, by name."""
    made: dict[str, Any] = {}
    made["method"] = gr.Dropdown(
        [(method.title, name) for name, method in METHODS.items()],
        value="magnitude",
        label="Method",
        elem_id="method",
        filterable=False,
    )
    made["method_words"] = gr.Markdown(method_words("magnitude", "global"), elem_id="method-words")
    made["scope"] = gr.Radio(
        _scope_choices(),
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
    with gr.Accordion("More: protect, floor, pattern, steps", open=False, elem_id="more") as made[
        "more"
    ]:
        made["protect"] = gr.Dropdown(
            list(PROTECTABLE),
            value=[],
            multiselect=True,
            allow_custom_value=True,
            label="Leave alone",
            info=_protect_info("magnitude"),
            elem_id="protect",
        )
        made["pattern"] = gr.Radio(
            [("none", ""), *((name, name) for name in PATTERNS)],
            value="",
            label="Pattern (N of every M stay)",
            elem_id="pattern",
        )
        made["pattern_words"] = gr.Markdown("", visible=False, elem_id="pattern-words")
        made["floor"] = gr.Slider(
            0,
            1,
            value=0,
            step=0.05,
            label="Floor",
            info="Share of its weights that every layer keeps at least",
            elem_id="floor",
        )
        made["steps"] = gr.Slider(
            1,
            MAX_STEPS,
            value=1,
            step=1,
            label="Steps",
            info="Gradual pruning; each step can be heard",
            elem_id="steps",
        )
        made["schedule"] = gr.Radio(
            list(SCHEDULES),
            value="cubic",
            label="How the amount grows",
            visible=False,
            elem_id="schedule",
        )
    made["importance"] = gr.Radio(
        [(f"{name.replace('_', ' ')}: {words}", name) for name, words in IMPORTANCES.items()],
        value="sensitivity",
        label="What a channel is judged by",
        visible=False,
        elem_id="importance",
    )
    with gr.Accordion(
        "Levers: what of the structure stays", open=False, visible=False, elem_id="levers"
    ) as made["levers"]:
        made["by_lever"] = gr.Checkbox(
            False, label="Set each lever myself, instead of by the amount", elem_id="by-lever"
        )
        for name, label in (
            ("decoder_width", "Decoder width"),
            ("resblock_width", "Width inside the residual blocks"),
            ("ffn_width", "Feed-forward width"),
        ):
            made[name] = gr.Slider(
                0.05,
                1,
                value=1,
                step=0.05,
                label=label,
                visible=False,
                elem_id=name.replace("_", "-"),
            )
        for name, label in (
            ("branches", "Residual branches a decoder stage"),
            ("encoder_layers", "Encoder layers"),
            ("flows", "Coupling layers of the flow"),
        ):
            made[name] = gr.Dropdown(
                _COUNTS,
                value=ALL,
                label=label,
                visible=False,
                filterable=False,
                elem_id=name.replace("_", "-"),
            )
    return made


def spec_of(
    method: str,
    scope: str,
    amount: float,
    parts: Any,
    protect: Any = None,
    floor: float | None = 0.0,
    pattern: str | None = "",
    steps: float | None = 1,
    schedule: str = "cubic",
    by_lever: bool = False,
    decoder_width: float = 1.0,
    resblock_width: float = 1.0,
    ffn_width: float = 1.0,
    branches: float | None = None,
    encoder_layers: float | None = None,
    flows: float | None = None,
    importance: str = "sensitivity",
) -> PruneSpec:
    """The controls as one checked value; those that do not apply to the method have no say.

    Raises:
        InputError: one of them cannot be used.
    """
    plain = PruneSpec(method=method, scope=scope, amount=amount, parts=parts or ())
    if METHODS[plain.method].structured:
        counts = {"branches": branches, "encoder_layers": encoder_layers, "flows": flows}
        widths = {
            "decoder_width": decoder_width,
            "resblock_width": resblock_width,
            "ffn_width": ffn_width,
        }
        shape = (
            Shape(**widths, **{name: _whole(count) for name, count in counts.items()})
            if by_lever
            else None
        )
        return dataclasses.replace(plain, shape=shape, importance=importance)
    plain = dataclasses.replace(plain, protect=_protected(protect))
    if pattern:  # it is the same in every layer: there is nothing to share out
        return PruneSpec(method=method, scope="local", amount=PATTERNS.get(str(pattern), plain.amount), parts=plain.parts,
                         protect=plain.protect, pattern=pattern)  # fmt: skip
    return dataclasses.replace(
        plain,
        floor=0.0 if floor is None else floor,
        steps=1 if steps is None else steps,
        schedule=schedule if steps != 1 else "cubic",
    )


def _whole(count: Any) -> Any:
    """A control's number as the whole number it is, None for all; Shape refuses any other."""
    if count == ALL and not isinstance(count, bool):
        return None
    return (
        int(count)
        if isinstance(count, float) and math.isfinite(count) and count == int(count)
        else count
    )


def _protected(names: Any) -> tuple[str, ...] | None:
    """What the visitor protects, None for the method's own list.

    Raises:
        InputError: not a list of names, or "nothing" beside others.
    """
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("What to leave alone is a list of layers' names, or beginnings of them.")
    found = tuple(dict.fromkeys(name.strip() for name in names))
    if NOTHING in found and len(found) > 1:
        raise InputError("Leave alone either nothing or the layers that you name, not both.")
    return () if NOTHING in found else found


def values_of(spec: PruneSpec) -> dict[str, Any]:
    """How the controls stand for a spec."""
    shape = spec.shape or Shape()
    return {
        "method": spec.method,
        "scope": spec.scope,
        "amount": spec.amount,
        "parts": list(spec.parts),
        "protect": [] if spec.protect is None else list(spec.protect) or [NOTHING],
        "floor": spec.floor,
        "pattern": spec.pattern,
        "steps": spec.steps,
        "schedule": spec.schedule,
        "by_lever": spec.shape is not None,
        "importance": spec.importance,
        **(
            {name: getattr(shape, name) for name in LEVERS if getattr(shape, name) is not None}
            if spec.shape
            else {}
        ),
    }


def arranged(
    voice: Voice | None,
    method: str,
    scope: str,
    pattern: str,
    steps: float,
    by_lever: bool,
    levers: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What the controls show: only those that apply, and words that fit.

    Args:
        voice: the loaded voice, None where there is none yet.
        method: as the rest, how the control of that name stands.
        levers: new values for the levers, None to leave them.
    """
    known = METHODS.get(method, METHODS["magnitude"])
    pattern = pattern if pattern in PATTERNS and not known.structured else ""
    mine = known.structured and by_lever is True
    share = (
        "Share of the channels of each chosen part that go"
        if known.structured
        else "Share of the weights that become zero"
    )
    amount: dict[str, Any] = {"info": share, "interactive": True, "visible": not mine}
    words = ""
    if pattern:
        amount |= {
            "info": f"{share}: set by the pattern",
            "interactive": False,
            "value": PATTERNS[pattern],
        }
        keep, _, of = pattern.partition(":")
        words = PATTERN_WORDS.format(
            keep=keep, of=of, amount=PATTERNS[pattern], gain=_GAINS[pattern]
        )
    return {
        "method_words": method_words(method, "local" if pattern else scope),
        "scope": gr.Radio(visible=not known.structured and not pattern),
        "amount": gr.Slider(**amount),
        "parts": gr.CheckboxGroup(visible=not mine),
        "more": gr.Accordion(visible=not known.structured),
        "protect": gr.Dropdown(info=_protect_info(method, bool(pattern))),
        "pattern_words": gr.Markdown(words, visible=bool(pattern)),
        "floor": gr.Slider(visible=not pattern),
        "steps": gr.Slider(visible=not pattern),
        "schedule": gr.Radio(visible=not pattern and isinstance(steps, (int, float)) and steps > 1),
        "importance": gr.Radio(visible=known.structured),
        "levers": gr.Accordion(visible=known.structured),
        **{
            name: _lever(name, mine and (voice is None or _has(voice, name)), levers)
            for name in LEVERS
        },
    }


ARRANGED = (
    "method_words",
    "scope",
    "amount",
    "parts",
    "more",
    "protect",
    "pattern_words",
    "floor",
    "steps",
    "schedule",
    "importance",
    "levers",
    *LEVERS,
)
"""What `arranged` shows anew."""


def _lever(name: str, visible: bool, values: Mapping[str, float] | None) -> Any:
    changes: dict[str, Any] = (
        {"visible": visible} if values is None else {"visible": visible, "value": values[name]}
    )
    return gr.Dropdown(choices=_COUNTS, **changes) if name in _COUNTED else gr.Slider(**changes)


def _has(voice: Voice, lever: str) -> bool:
    now = sizes_of(voice.model.config)
    if lever == "resblock_width":
        return now.inner_channels is not None
    return lever not in _COUNTED or getattr(now, lever) > 1


def levers_for(voice: Voice | None, amount: float, parts: Any) -> dict[str, Any]:
    """Where the levers stand if the amount sets them: the values of their controls."""
    try:
        shape = (
            shape_for(voice, PruneSpec(method="structured", amount=amount, parts=parts or ()))
            if voice
            else Shape()
        )
    except InputError:
        shape = Shape()
    return {
        name: (getattr(shape, name) or ALL)
        if name in _COUNTED
        else max(0.05, round(getattr(shape, name), 2))
        for name in LEVERS
    }


def method_words(method: str, scope: str) -> str:
    """What a method does, in its two sentences, and that it is slow where it is."""
    known = METHODS.get(method)
    if known is None:
        return ""
    if known.calibrated:
        return f"{known.words} *{SLOW}*"
    listening = not known.structured and scope == "sensitivity"
    return known.words + (
        f" *The scope sensitivity needs calibration. {SLOW}*" if listening else ""
    )


def _scope_choices() -> list[tuple[str, str]]:
    more = {"sensitivity": " (calibrated: listens to the voice first)"}
    return [(f"{name}: {words}{more.get(name, '')}", name) for name, words in SCOPES.items()]


def _protect_info(method: str, patterned: bool = False) -> str:
    known = METHODS.get(method)
    names = known.protect if known and known.protect else UNGROUPED if patterned else ("none",)
    own = ", ".join(names)
    return f"Layers, or beginnings of their names. Empty: the method's own list ({own})."


def at_amount(spec: PruneSpec, amount: float, parts: tuple[str, ...] | None = None) -> PruneSpec:
    """The same spec at another amount; a pattern or levers, which fix the amount, give way to it."""
    changes: dict[str, Any] = {
        "amount": amount,
        "shape": None,
        "pattern": "",
        "amounts": (),
        "parts": parts or spec.parts,
    }
    return dataclasses.replace(spec, **changes)
