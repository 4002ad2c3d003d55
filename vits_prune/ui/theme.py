"""Colours, fonts and the few rules of style that Gradio's theme does not cover."""

from __future__ import annotations

import gradio as gr

ORIGINAL, PRUNED, NEUTRAL = "#2f7ed8", "#e4572e", "#8a8f98"
"""Blue for the original, orange for the pruned voice (told apart by colour-blind eyes too), grey for the rest."""


def theme() -> gr.themes.Base:
    """The page's theme; fonts come with the system, so nothing is fetched from elsewhere."""
    return gr.themes.Soft(
        primary_hue="orange",
        secondary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; }
#title h1 { margin-bottom: 0.1em; }
#readout table { width: 100%; font-variant-numeric: tabular-nums; }
#status { min-height: 1.6em; }
.pictures img { width: 100%; height: auto; }
@media (max-width: 640px) { .gradio-container { padding: 8px !important; } }
"""
