"""Components with a script of their own: NAME.html, NAME.css and NAME.js in this folder."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

WAITING = {
    "flip": "Speak first. With timing “locked” you can then flip between the two voices while they"
    " play.",
    "fader": "Press the button above: the text is spoken at a row of amounts, then drag from one to"
    " the next.",
    "curve": "Points appear as they are measured; press one to hear it.",
    "heat": "Cells appear as they are measured; press one to hear it.",
    "course": "Losses appear here as the voice learns.",
}
"""What each widget says before there is anything to show."""
_PICTURES = ("curve", "heat", "course")
"""Widgets that draw measurements: they share picture.css and picture.js."""


def source(name: str) -> str:
    """Return the text of a file in this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def widget(name: str, elem_id: str = "") -> gr.HTML:
    """Return a widget by name. A point or a cell that is pressed triggers `click` with its spec."""
    names = ("picture", name) if name in _PICTURES else (name,)
    return gr.HTML(
        value={"hint": WAITING[name]},
        html_template=source(f"{name}.html"),
        css_template="\n".join(source(f"{one}.css") for one in names),
        js_on_load="\n".join(source(f"{one}.js") for one in names),
        elem_id=elem_id or name,
    )
