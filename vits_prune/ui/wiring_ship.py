"""The Ship tab's events: what each button runs, and when the tab looks again at what is at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.studio.workbench import Request
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.ui import controls, ship, shipped, steps
from vits_prune.ui.events import LOADED, QUIET, halts, signed
from vits_prune.ui.shipping import Parcel
from vits_prune.ui.steps import plainly
from vits_prune.ui.stoppable import stoppable

Shown = Callable[[dict[str, Any]], dict[Any, Any]]

_BEGIN = """() => {
  const ticket = Date.now().toString(36) + Math.random().toString(36).slice(2);
  (window.shipping = window.shipping || []).push(ticket);
  return ticket;
}"""
_STOP = (
    "() => { const begun = (window.shipping || []).join(' '); window.shipping = []; return begun; }"
)
_MOST_TICKETS = 100


def wire_shipping(
    demo: gr.Blocks, inputs: dict[str, Any], outputs: dict[str, Any], healed: Any, shown: Shown
) -> None:
    """Which event of the tab runs which step. Nothing is cancelled: a run that is halted ends by itself, with what it has.

    Args:
        demo: the page.
        inputs, outputs: its components by name.
        healed: the event of a healing's end.
        shown: turns values by name into values by component.
    """
    _wire_looking(demo, inputs, outputs, healed, shown)
    _wire_runs(inputs, outputs, shown)
    stops = [inputs["stop"].click, outputs["ship_stop"].click]
    gr.on(stops, _halt_all, outputs["ship_ticket"], None, js=_STOP, queue=False, **QUIET)


def _halt_all(tickets: Any) -> None:
    for ticket in str(tickets or "").split()[:_MOST_TICKETS]:
        halts.halt(ticket)


def _request(values: Any) -> Request:
    """The Request of the inputs LOADED: no text is spoken, so none is asked for."""
    voice, speaker, *how = values[: len(LOADED)]
    return steps.request_of(voice, speaker, DEFAULT_TEXT, controls.spec_of(*how), 0, "own")


def _wire_looking(
    demo: gr.Blocks, inputs: dict[str, Any], outputs: dict[str, Any], healed: Any, shown: Shown
) -> None:
    """What is at hand: looked at when the tab is opened, and when the voice, a healing or the choice changes."""
    # One after the other, in the order of asking: an answer that is overtaken by an older one would stay.
    lane = {
        "concurrency_id": "ship_look",
        "concurrency_limit": 1,
        "show_progress": "hidden",
        "trigger_mode": "multiple",
        **QUIET,
    }
    names = ("ship_which", "heal_key", "ship_noticed", "ship_format", "ship_precision")

    def looking(look: Callable[..., dict[str, Any]]) -> Any:
        @plainly
        def arrive(*values: Any) -> dict[Any, Any]:
            *values, oauth = values
            try:
                request = _request(values)
            except InputError:  # said under the controls already
                request = None
            return shown(look(request, steps.visitor_token(oauth), *values[len(LOADED) :]))

        return signed(arrive, (*LOADED, *names))

    asked = [*(inputs[name] for name in LOADED), *(outputs[name] for name in names)]
    into = [outputs[name] for name in ship.ARRIVED]
    changed = [
        inputs["facts"].change,
        inputs["readout"].change,
        outputs["ship_which"].input,
        outputs["ship_precision"].input,
    ]
    gr.on([outputs["ship_tab"].select, *changed], looking(ship.arrived), asked, into, **lane)
    healed.then(looking(ship.arrived), asked, into, **lane)
    chosen = [outputs["ship_format"], outputs["ship_precision"], *into]
    outputs["ship_format"].input(looking(ship.format_chosen), asked, chosen, **lane)

    def greet(profile: gr.OAuthProfile | None) -> str:
        return ship.login_words(profile.username if profile else None)

    greet.__annotations__ = {"profile": gr.OAuthProfile | None}
    demo.load(greet, None, outputs["ship_login"], queue=False, show_progress="hidden", **QUIET)


def _wire_runs(inputs: dict[str, Any], outputs: dict[str, Any], shown: Shown) -> None:
    """The three buttons, each in a lane of its own: no one waits for another's upload."""

    def compare(
        request: Request, token: str | None, halted: Any, *chosen: Any
    ) -> Iterator[dict[str, Any]]:
        yield from shipped.compare_steps(request, token, halted, *chosen)

    def push(
        request: Request, token: str | None, halted: Any, *chosen: Any
    ) -> Iterator[dict[str, Any]]:
        which, order, noticed, repo, format, precision, private, read = chosen
        parcel = Parcel(str(repo or "").strip(), format, precision, bool(private), bool(read))
        yield from shipped.hub_steps(request, token, halted, which, order, noticed, parcel)

    at_hand, form = ("ship_which", "heal_key"), ("ship_format", "ship_precision")
    for button, run, names, shows, status, limit in (
        ("ship_compare", compare, at_hand, shipped.COMPARED, "ship_status", 1),
        ("ship_pack", shipped.download_steps, (*at_hand, *form), shipped.PACKED, "ship_packing", 2),
        (
            "ship_push", push, (*at_hand, "ship_noticed", "ship_repo", *form, "ship_private", "ship_read"), shipped.PUSHED,
            "ship_pushing", 2,
        ),
    ):  # fmt: skip
        asked = [
            outputs["ship_ticket"],
            *(inputs[name] for name in LOADED),
            *(outputs[name] for name in names),
        ]
        begun = outputs[button].click(None, None, outputs["ship_ticket"], js=_BEGIN, **QUIET)
        lane = {
            "concurrency_id": button,
            "concurrency_limit": limit,
            "show_progress_on": [outputs[status]],
            **QUIET,
        }
        begun.then(_run(run, names, shown), asked, [outputs[name] for name in shows], **lane)


def _run(run: Callable[..., Iterator[dict[str, Any]]], names: tuple[str, ...], shown: Shown) -> Any:
    """A function of (ticket, *inputs LOADED, *names, token) of one of (request, token, halted, *names)."""

    @stoppable
    @plainly
    def step(ticket: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        *values, oauth = values
        yield from map(
            shown,
            run(
                _request(values),
                steps.visitor_token(oauth),
                lambda: ticket in halts,
                *values[len(LOADED) :],
            ),
        )

    return signed(step, ("ticket", *LOADED, *names))
