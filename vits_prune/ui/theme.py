"""How the page looks, and how it is launched."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vits_prune.ui.widgets import source


def theme() -> gr.themes.Base:
    """Return the page's theme; its fonts come with the system, so nothing is fetched."""
    return gr.themes.Soft(
        primary_hue="orange",
        secondary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )


def launch_options() -> dict[str, Any]:
    """Return the arguments of `launch`: theme, style, and the cap on what is uploaded."""
    return {
        "theme": theme(),
        # Gradio confines what it is given as css to the inside of the page's content.
        "head": f"<style>\n{source('theme.css')}</style>",
        "max_file_size": "160mb",
        "show_error": False,
        "ssr_mode": False,
        "footer_links": ["api", "settings"],
    }
