"""The page: where its components are, how it looks, and which tab wires which events."""

from __future__ import annotations

import os
from typing import Any

import gradio as gr

from vits_prune.ui.api import add_endpoints
from vits_prune.ui.controls import control_components, wire_controls
from vits_prune.ui.events import Page
from vits_prune.ui.tabs import curve, heal, learn, results, ship
from vits_prune.ui.widgets import source

_TITLE = """# vits_prune: hear what pruning does
Take weights, channels or layers out of a text-to-speech voice. Both voices speak the same text with
the same noise; the tables show sparsity, size and speed."""


def build() -> gr.Blocks:
    """Return the whole page, ready for `launch(**launch_options())`."""
    with gr.Blocks(title="vits_prune", analytics_enabled=False, delete_cache=(3600, 7200)) as demo:
        gr.Markdown(_TITLE, elem_id="title")
        if os.environ.get("OAUTH_CLIENT_ID"):
            gr.LoginButton("Log in: private and gated voices, push to the hub", size="sm")
        with gr.Row(elem_classes="halves"):
            with gr.Column(scale=4, min_width=300):
                made = control_components()
            with gr.Column(scale=7, min_width=300, elem_classes="outputs"):
                made |= results.player_components()
                with gr.Tabs():
                    with gr.Tab("Learn", id="learn"):
                        made |= learn.learn_tab()
                    made |= results.result_tabs()
                    # What does not fit into the row lies under "More tabs": what takes minutes.
                    with gr.Tab("Heal", id="heal-tab"):
                        made |= heal.heal_tab()
                    with gr.Tab("Ship", id="ship-tab") as made["ship_tab"]:
                        made |= ship.ship_tab()
                    with gr.Tab("Curve", id="curve-tab"):
                        made |= curve.curve_tab()
                    with gr.Tab("Sensitivity", id="sensitivity-tab"):
                        made |= curve.sensitivity_tab()
                    with gr.Tab("Fader", id="fader-tab"):
                        made |= curve.fader_tab()
        page = Page(made)
        wire_controls(demo, page)
        running = [*results.wire_results(page), *curve.wire_evidence(page)]
        ship.wire_ship(demo, page, heal.wire_heal(page))
        results.wire_stop(page, running)
        learn.wire_learn(page)
        add_endpoints()
    return demo.queue(max_size=64, default_concurrency_limit=1)


def launch_options() -> dict[str, Any]:
    """Return the arguments of `launch`: theme, style, and the cap on what is uploaded."""
    hues = {"primary_hue": "orange", "secondary_hue": "blue", "neutral_hue": "slate"}
    # Fonts come with the system, so that nothing is fetched.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {
        "theme": gr.themes.Soft(**hues, **fonts),
        # Gradio confines what it is given as css to the inside of the page's content.
        "head": f"<style>\n{source('theme.css')}</style>\n"
        f"<script>\n{source('speak_button.js')}</script>",
        "max_file_size": "160mb",
        "show_error": False,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
    }
