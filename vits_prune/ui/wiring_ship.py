"""The Ship tab's events: what each button runs, and when the tab looks again at what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.progress import Progress
from vits_prune.studio.request import Request, request_of
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.ui import ship, shipped
from vits_prune.ui.controls import LOADED
from vits_prune.ui.events import QUIET, Page, tickets
from vits_prune.ui.shipping import Parcel

_BEGIN = """() => {
  const ticket = Date.now().toString(36) + Math.random().toString(36).slice(2);
  (window.shipping = window.shipping || []).push(ticket);
  return ticket;
}"""
_STOP = """() => {
  const begun = (window.shipping || []).join(' ');
  window.shipping = [];
  return begun;
}"""
_MOST_TICKETS = 100
_LOOKED = ("ship_which", "heal_key", "ship_noticed", "ship_format", "ship_precision")


def wire_shipping(demo: gr.Blocks, page: Page, healed: Any) -> None:
    """Wire the tab. Nothing is cancelled: a run that is halted ends by itself, with what it has.

    Args:
        demo: the page.
        page: its components.
        healed: the event of a healing's end.
    """
    _wire_looking(demo, page, healed)
    _wire_runs(page)
    stops = [page["stop"].click, page["ship_stop"].click]
    gr.on(stops, _halt_all, page["ship_ticket"], None, js=_STOP, queue=False, **QUIET)


def _halt_all(begun: Any) -> None:
    for ticket in str(begun or "").split()[:_MOST_TICKETS]:
        tickets.cancel(ticket)


def _request(values: dict[str, Any]) -> Request:
    """Return the Request of the controls LOADED: no text is spoken, so none is asked for."""
    return request_of({**values, "text": DEFAULT_TEXT})


def _wire_looking(demo: gr.Blocks, page: Page, healed: Any) -> None:
    """Look when the tab is opened, and when the voice, a healing or the choice changes."""

    def looking(look: Callable[..., dict[str, Any]], *more: str) -> dict[str, Any]:
        def arrive(values: dict[str, Any], token: str | None) -> dict[str, Any]:
            try:
                request = _request(values)
            except InputError:  # said under the controls already
                request = None
            return look(request, token, *(values[name] for name in _LOOKED))

        # One after the other, in the order of asking: otherwise an older answer could stay.
        return page.event(
            arrive,
            (*LOADED, *_LOOKED),
            (*more, *ship.ARRIVED),
            queue=True,
            concurrency_id="ship_look",
            concurrency_limit=1,
            trigger_mode="multiple",
        )

    changed = [
        page["ship_tab"].select,
        page["facts"].change,
        page["readout"].change,
        page["ship_which"].input,
        page["ship_precision"].input,
    ]
    gr.on(changed, **looking(ship.arrived))
    healed.then(**looking(ship.arrived))
    form = looking(ship.format_chosen, "ship_format", "ship_precision")
    page["ship_format"].input(**form)

    def greet(profile: gr.OAuthProfile | None) -> str:
        return ship.login_words(profile.username if profile else None)

    demo.load(greet, None, page["ship_login"], queue=False, show_progress="hidden", **QUIET)


def _push(
    request: Request, token: str | None, halted: Callable[[], bool], *chosen: Any
) -> Iterator[dict[str, Any]]:
    which, order, noticed, repo, format, precision, private, read = chosen
    parcel = Parcel(str(repo or "").strip(), format, precision, bool(private), bool(read))
    yield from shipped.hub_steps(request, token, halted, which, order, noticed, parcel)


def _wire_runs(page: Page) -> None:
    """Wire the three buttons, each in a lane of its own: no one waits for another's upload."""
    at_hand, form = ("ship_which", "heal_key"), ("ship_format", "ship_precision")
    pushed = (*at_hand, "ship_noticed", "ship_repo", *form, "ship_private", "ship_read")
    for button, run, names, shows, status, limit in (
        ("ship_compare", shipped.compare_steps, at_hand, shipped.COMPARED, "ship_status", 1),
        ("ship_pack", shipped.download_steps, (*at_hand, *form), shipped.PACKED, "ship_packing", 2),
        ("ship_push", _push, pushed, shipped.PUSHED, "ship_pushing", 2),
    ):
        begun = page[button].click(None, None, page["ship_ticket"], js=_BEGIN, **QUIET)
        event = page.event(
            _run(run, names),
            ("ship_ticket", *LOADED, *names),
            shows,
            "work",
            status=status,
            concurrency_id=button,
            concurrency_limit=limit,
        )
        begun.then(**event)


def _run(
    run: Callable[..., Iterator[dict[str, Any]]], names: tuple[str, ...]
) -> Callable[..., Any]:
    def step(
        values: dict[str, Any], token: str | None, progress: Progress
    ) -> Iterator[dict[str, Any]]:
        def halted() -> bool:
            return values["ship_ticket"] in tickets

        yield from run(_request(values), token, halted, *(values[name] for name in names))

    return step
