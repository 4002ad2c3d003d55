"""Components: plain ones by name, and those with a script of their own in this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

WAITING = {
    "stage": "The voice is being made ready …",
    "curve": "Points appear as they are measured; press one to hear it.",
    "heat": "Cells appear as they are measured; press one to hear it.",
    "layers": "The layers appear once the voice has spoken.",
    "listen": "Start the test, then compare by ear. Headphones help.",
    "training": "Losses appear here as the voice learns.",
}
"""What each widget says before there is anything to show."""
_PICTURES = ("curve", "heat", "layers", "training")
"""Widgets that draw measurements: they share picture.css and picture.js."""


class Made(dict[str, Any]):
    """Components by name; the element of one has its name, with hyphens."""

    def add(self, name: str, kind: Any, value: Any = None, label: str = "", **options: Any) -> None:
        """Make a component inside the block that is open."""
        named = {"label": label} if label else {}
        self[name] = kind(value=value, elem_id=name.replace("_", "-"), **named, **options)

    def download(self, of: str, name: str = "", visible: bool = True) -> None:
        """Make the button that downloads NAME.csv, once there is one."""
        text, kind = f"Download {name or of}.csv", gr.DownloadButton
        self[f"{of}_csv"] = kind(
            text,
            size="sm",
            interactive=False,
            visible=visible,
            elem_id=f"{of}-csv".replace("_", "-"),
        )


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


def player(label: str, elem_id: str, colour: str, **options: Any) -> gr.Audio:
    """Return a player with a download button, and a waveform of one colour."""
    waves = gr.WaveformOptions(waveform_color="#b8c0cc", waveform_progress_color=colour)
    options |= {"interactive": False, "buttons": ["download"], "waveform_options": waves}
    return gr.Audio(label=label, elem_id=elem_id, **options)
