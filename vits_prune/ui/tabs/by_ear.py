"""The tab Listen blind: what a listener can tell apart, and what sounds better."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.pruning import PruneSpec
from vits_prune.studio import blind
from vits_prune.studio.request import SPEAKING, Request, request_of, spec_of
from vits_prune.study.listening_store import side_name
from vits_prune.ui.events import QUIET, Page, sentences
from vits_prune.ui.widgets import Made, widget

Values = dict[str, Any]
Shown = Iterator[dict[str, Any]]

_KINDS = [
    ("How much pruning do you hear? (ABX)", "abx"),
    ("Which of two settings sounds better?", "preference"),
]
_KEPT, _BARE = "kept", "original"
_AGAINST = [
    *((name, name) for name in blind.PRESETS),
    ("The settings above against the original", _BARE),
    ("The settings above against the remembered ones", _KEPT),
]
_ASKED = (
    "listen_kind",
    "listen_trials",
    "listen_name",
    "listen_told",
    "listen_pair",
    "listen_level",
)


def listen_tab() -> Made:
    """Make the tab's components."""
    made = Made()
    made.add("listen_kind", gr.Radio, "abx", "Question", choices=_KINDS)
    with gr.Row():
        least, most = blind.TRIALS
        limits = {"minimum": least, "maximum": most, "step": 1}
        with gr.Column(min_width=240):
            made.add("listen_trials", gr.Slider, 24, "Trials", **limits)
        with gr.Column(min_width=240):
            info = "A pseudonym for the CSV; left empty, a random one"
            made.add("listen_name", gr.Textbox, "", "Listener", info=info, max_lines=1)
    made.add("listen_told", gr.Checkbox, False, "Tell me after each trial whether I was right")
    info = "Plays all sounds of a trial at one level. Pruning often changes the level."
    made.add("listen_level", gr.Checkbox, True, "Same loudness", info=info)
    with gr.Row(visible=False) as made["listen_sides"]:
        first = next(iter(blind.PRESETS))
        made.add("listen_pair", gr.Dropdown, first, "Compare", choices=_AGAINST, scale=3)
        words = "Remember the settings above as the other side"
        made.add("listen_keep", gr.Button, words, size="sm")
    made["listen_kept"] = gr.State()
    made.add("listen_start", gr.Button, "Start the test", variant="primary")
    made.add("listen_status", gr.Markdown, "", min_height=28)
    made["listen"] = widget("listen")
    made.download("listen", "answers")
    return made


# Work


def start(values: Values, token: str | None, progress: Progress) -> Shown:
    """Begin a test with the settings above, and show its first trial."""
    kind, trials, name, told, pair, level = (values[one] for one in _ASKED)
    request, other = request_of(values), None
    requests: list[Request] = [request]
    if kind == "preference":
        request, other = _sides(request, pair, values["listen_kept"])
        requests = blind.sentences_for(request, token)
    shown = blind.start(
        *(requests, token, trials, name or "", other, told is True, progress),
        same_loudness=level is not False,
    )
    yield {**_shown(shown), "listen_status": ""}


def _sides(request: Request, pair: object, kept: PruneSpec | None) -> tuple[Request, PruneSpec]:
    """Return the two settings of a preference. Raises InputError if they are the same."""
    if isinstance(pair, str) and pair in blind.PRESETS:
        first, second = blind.PRESETS[pair]
    elif pair == _BARE:
        first, second = request.spec, PruneSpec(amount=0.0)
    elif kept is not None:
        first, second = request.spec, kept
    else:
        raise InputError("Remember settings first: set them above and press the button here.")
    if first == second:
        raise InputError("Both sides are the same: change the settings above.")
    return request.at(first), second


def keep(values: Values, token: str | None = None) -> Values:
    """Remember the settings above as the other side."""
    spec = spec_of(values)
    words = f"Remembered: {side_name(spec)}. Change the settings above, and start."
    return {"listen_kept": spec, "listen_status": words, "listen_pair": _KEPT}


def _shown(state: dict[str, Any]) -> Values:
    """Return the widget's value and the CSV, once there is one."""
    csv = state.pop("csv", None)
    return {"listen": state, "listen_csv": gr.DownloadButton(value=csv, interactive=bool(csv))}


# Events


def wire_listen(page: Page) -> None:
    """Wire the start, the answers, and what belongs to a preference."""
    inputs, shown = (*SPEAKING, *_ASKED, "listen_kept"), ("listen", "listen_csv", "listen_status")
    page["listen_start"].click(**page.event(start, inputs, shown, "begin", status="listen_status"))

    def take(event: gr.EventData) -> dict[Any, Any]:
        with sentences():
            return {page[name]: value for name, value in _shown(blind.take(event._data)).items()}

    how: dict[str, Any] = {"concurrency_id": "listen", "concurrency_limit": 8, **QUIET}
    page["listen"].click(take, None, [page["listen"], page["listen_csv"]], **how,
                         show_progress="hidden")  # fmt: skip
    kept = ("listen_kept", "listen_status", "listen_pair")
    page["listen_keep"].click(**page.event(keep, SPEAKING, kept))

    def ask(values: Values, token: str | None) -> Values:
        pair = values["listen_kind"] == "preference"
        return {"listen_sides": gr.Row(visible=pair), "listen_told": gr.Checkbox(visible=not pair)}

    sides = ("listen_sides", "listen_told")
    page["listen_kind"].change(**page.event(ask, ("listen_kind",), sides))
