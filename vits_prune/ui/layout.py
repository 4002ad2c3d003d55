"""The page's components: what can be set on the left, what is shown on the right."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vits_prune.study import tables
from vits_prune.synthesis.speak import MAX_SEED
from vits_prune.ui import evidence, flip, heal, sensitivity, ship, teaching
from vits_prune.ui.controls import pruning_controls
from vits_prune.voices.load import EMBEDDED

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
Take weights, channels or layers out of a text-to-speech voice, let both voices speak the same text with the same noise, and read what it
did to sparsity, size and speed."""


def inputs() -> dict[str, Any]:
    """What the visitor sets, by name."""
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
    made["speaker"] = gr.Dropdown(
        [], value=None, label="Speaker", visible=False, allow_custom_value=True, elem_id="speaker"
    )
    made["text"] = gr.Textbox(
        EXAMPLES[0], label="Text", lines=3, max_lines=8, elem_id="text", info="Shift+Enter speaks"
    )
    with gr.Row():
        made["speak"] = gr.Button("Speak with both", variant="primary", elem_id="speak", scale=3)
        made["go"] = gr.Button(
            "Go", visible="hidden", elem_id="go"
        )  # pressed by the page once what ran before is stopped
        made["stop"] = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
    made |= pruning_controls()
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
        made["speaking_rate"] = gr.Number(
            None, label="Speaking rate", info="0.25 to 4; empty: the voice's own", step=0.05
        )
        made["noise_scale"] = gr.Number(
            None, label="Noise of the sound", info="0 to 2; empty: the voice's own", step=0.05
        )
        made["noise_scale_duration"] = gr.Number(
            None, label="Noise of the rhythm", info="0 to 2; empty: the voice's own", step=0.05
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
    return made


def outputs() -> dict[str, Any]:
    """What the page shows, by name."""
    made: dict[str, Any] = {}
    made["status"] = gr.Markdown("Press **Speak with both**.", elem_id="status", min_height=56)
    made["summary"] = gr.Markdown("", elem_id="summary")
    made["asked"] = gr.State()
    with gr.Row():
        made["original"] = gr.Audio(
            label="Original",
            interactive=False,
            elem_id="original-audio",
            buttons=["download"],
            waveform_options=_waves("#2f7ed8"),
        )
        made["pruned"] = gr.Audio(
            label="Pruned",
            interactive=False,
            elem_id="pruned-audio",
            buttons=["download"],
            waveform_options=_waves("#e4572e"),
        )
    made["flip"] = flip.flip_switch()
    made["rendition"] = gr.Radio(
        [],
        label="Steps of gradual pruning: choose one to hear it",
        visible=False,
        elem_id="rendition",
    )
    made["rendition_audio"] = gr.Audio(
        label="Step, with the original's durations",
        interactive=False,
        visible=False,
        autoplay=True,
        elem_id="rendition-audio",
        buttons=["download"],
        waveform_options=_waves("#8d6cc9"),
    )
    with gr.Tabs():
        for name, label in (
            ("sparsity", "Sparsity"),
            ("size", "Size"),
            ("latency", "Latency"),
            ("layers", "Layers"),
        ):
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
                made[f"{name}_csv"] = gr.DownloadButton(
                    f"Download {name}.csv", size="sm", interactive=False, elem_id=f"{name}-csv"
                )
        with gr.Tab("Method", id="method-tab"):
            made |= teaching.method_tab()
        with gr.Tab("Pictures", id="pictures"):
            made["spectrograms"] = gr.Plot(
                label="Spectrograms", show_label=False, format="png", elem_classes="pictures"
            )
            made["bars"] = gr.Plot(
                label="Sparsity by layer", show_label=False, format="png", elem_classes="pictures"
            )
            made["histogram"] = gr.Plot(
                label="Weights by absolute value",
                show_label=False,
                format="png",
                elem_classes="pictures",
            )
        # What does not fit into the row lies under "More tabs": at 1360 pixels that is to be what takes minutes to measure.
        with gr.Tab("Heal", id="heal-tab"):
            made |= heal.heal_tab()
        with gr.Tab("Ship", id="ship-tab") as made["ship_tab"]:
            made |= ship.ship_tab()
        with gr.Tab("Curve", id="curve-tab"):
            made |= evidence.curve_tab()
        with gr.Tab("Sensitivity", id="sensitivity-tab"):
            made |= sensitivity.sensitivity_tab()
        with gr.Tab("Fader", id="fader-tab"):
            made |= evidence.fader_tab()
    return made


_WIDTHS = {
    "sparsity": ["170px", "110px", "90px", "110px", "90px", "110px"],
    "size": ["200px", "85px", "85px", "85px", "300px"],
    "latency": ["200px", "85px", "85px", "85px", "300px", "110px", "110px", "110px", "110px"],
    "layers": ["250px", "130px", "100px", "240px", "130px", "100px", "100px", "150px"],
}
"""Widths of the columns: the words beside a number must be in sight before its spread."""


def _waves(colour: str) -> gr.WaveformOptions:
    return gr.WaveformOptions(waveform_color="#b8c0cc", waveform_progress_color=colour)
