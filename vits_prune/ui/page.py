"""The page: where its components are, how it looks, and which part wires which events."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import gradio as gr

from vits_prune.ui import stage, tables
from vits_prune.ui.api import add_endpoints
from vits_prune.ui.controls import control_components, option_components, wire_controls
from vits_prune.ui.events import Page
from vits_prune.ui.presence import wire_presence
from vits_prune.ui.tabs import by_ear, by_layer, curve, export, heal, learn
from vits_prune.ui.widgets import source

_MOST_EVENTS = 256
"""Under way at once, those that wait for their turn included."""
_MOST_SESSIONS = 128
"""Whose state Gradio keeps, gone or not: 0.6 MB each, mostly a copy of the configuration."""
_TITLE = "# vits_prune: hear what pruning does to a voice"


def build() -> gr.Blocks:
    """Return the whole page, ready for `launch(**launch_options())`."""
    with gr.Blocks(title="vits_prune", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        with gr.Row(elem_id="title"):
            gr.Markdown(_TITLE)
            if os.environ.get("OAUTH_CLIENT_ID"):
                gr.LoginButton("Log in: private voices, push to the hub", size="sm", scale=0)
        with gr.Row(elem_id="halves"):
            with gr.Column(scale=4, min_width=300, elem_id="controls"):
                made = control_components()
                made |= stage.run_components()
                with gr.Accordion("More options", open=False, elem_id="options"):
                    made |= option_components()
                with gr.Accordion("Copy code", open=False, elem_id="code"):
                    made |= stage.code_components()
            with gr.Column(scale=7, min_width=300, elem_id="listening"):
                made |= stage.stage_components()
        made |= tables.tables_components()
        with gr.Tabs(elem_id="tabs") as made["tabs"]:
            with gr.Tab("Learn", id="learn"):
                made |= learn.learn_tab()
            with gr.Tab("Curve", id="curve"):
                made |= curve.curve_tab()
            with gr.Tab("Layers", id="layers"):
                made |= by_layer.layers_tab()
            with gr.Tab("Listen blind", id="listen"):
                made |= by_ear.listen_tab()
            with gr.Tab("Heal", id="heal"):
                made |= heal.heal_tab()
            with gr.Tab("Export", id="export") as made["ship_tab"]:
                made |= export.export_tab()
        page = Page(made)
        wire_controls(demo, page)
        running = [*stage.wire_stage(demo, page), *curve.wire_evidence(page)]
        measured = tables.wire_quality(page)
        stage.wire_claim(page, measured)
        running += measured
        running += by_layer.wire_layers(page)
        learn.wire_learn(page)
        by_ear.wire_listen(page)
        export.wire_export(demo, page, heal.wire_heal(page))
        stage.wire_stop(page, running)
        add_endpoints()
        wire_presence(demo)
    return demo.queue(max_size=_MOST_EVENTS, default_concurrency_limit=1)


def launch_options() -> dict[str, Any]:
    """Return the arguments of `launch`: theme, style, MCP, and the cap on what is uploaded."""
    hues = {"primary_hue": "blue", "secondary_hue": "slate", "neutral_hue": "slate"}
    # Fonts come with the system, so that nothing is fetched.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Base(**hues, **fonts, text_size="md", radius_size="md", spacing_size="md")
    return {
        "theme": theme.set(
            block_background_fill="*background_fill_primary",
            block_background_fill_dark="*background_fill_primary",
            block_border_width="0px",
            block_label_background_fill="transparent",
            block_label_background_fill_dark="transparent",
            block_label_text_color="*body_text_color",
            block_title_text_color="*body_text_color",
            block_title_text_weight="600",
            block_info_text_color="*body_text_color_subdued",
            body_text_color_subdued="*neutral_600",
            block_padding="4px 0",
            form_gap_width="0px",
            input_border_width="1px",
            input_border_width_dark="1px",
            input_border_color="*neutral_300",
            input_background_fill="*background_fill_primary",
            button_primary_background_fill="*primary_600",
            button_primary_background_fill_dark="*primary_600",
            button_primary_background_fill_hover="*primary_700",
            button_primary_text_color="white",
        ),
        # Gradio confines what it is given as css to the inside of the page's content.
        "head": f"<style>\n{source('theme.css')}{source('table.css')}</style>\n"
        f"<script>\n{source('run.js')}</script>",
        "max_file_size": "160mb",
        "max_threads": _MOST_EVENTS,
        "state_session_capacity": _MOST_SESSIONS,
        "mcp_server": importlib.util.find_spec("mcp") is not None,
        "show_error": False,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
    }
