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


HEAD = """<style>
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; min-width: 0 !important; }
.gradio-container .main, .gradio-container .wrap, .gradio-container .contain, .gradio-container .column { min-width: 0 !important; }
.gradio-container .halves > .column { min-width: min(300px, 100%) !important; }
#title h1 { margin-bottom: 0.1em; }
#status { min-height: 1.6em; }
.pictures img { width: 100%; height: auto; }
@media (max-width: 760px) {
  gradio-app { max-width: 100vw; overflow-x: clip; }
  .gradio-container { width: 100% !important; }
  .gradio-container > .main { padding: 8px !important; }
  .gradio-container .halves { flex-direction: column; }
  .gradio-container .halves > .column { width: 100%; flex: none !important; }
}
</style>"""
"""In the page's head, since Gradio confines what it is given as css to the inside of the page's content."""
