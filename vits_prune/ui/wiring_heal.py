"""The Heal tab's events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vits_prune.progress import Progress
from vits_prune.studio.request import SPEAKING, request_of
from vits_prune.ui import heal
from vits_prune.ui.events import QUIET, Page, tickets

_START = """() => {
  const ticket = Date.now().toString(36) + Math.random().toString(36).slice(2);
  window.healing = {ticket, presses: 0};
  return ticket;
}"""
_STOP = "() => window.healing ? window.healing.ticket + ':' + ++window.healing.presses : ''"
"""Stopped once a healing keeps the best so far, stopped twice it does not measure it either."""
_CHOSEN = ("heal_minutes", "heal_texts", "heal_adversarial")


def wire_healing(page: Page) -> Any:
    """Wire healing; return the event of its end.

    Stop does not cancel it: it ends by itself with what it has.
    """

    def run(
        values: dict[str, Any], token: str | None, progress: Progress
    ) -> Iterator[dict[str, Any]]:
        def halted(what: str) -> bool:
            presses = 1 if what == "healing" else 2
            return f"{values['heal_ticket']}:{presses}" in tickets

        chosen = (values[name] for name in _CHOSEN)
        yield from heal.heal_steps(request_of(values), token, halted, *chosen)

    ticket = page["heal_ticket"]
    begun = page["heal_start"].click(None, None, ticket, js=_START, **QUIET)
    ended = begun.then(
        **page.event(
            run,
            ("heal_ticket", *SPEAKING, *_CHOSEN),
            heal.SHOWN,
            "heal",
            status="heal_status",
        )
    )
    stops = [page["stop"].click, page["heal_stop"].click]
    gr.on(stops, tickets.cancel, ticket, None, js=_STOP, queue=False, **QUIET)
    listen = page.event(
        lambda values, _: heal.checkpoint_steps(values["heal_key"], values["heal_checkpoint"]),
        ("heal_key", "heal_checkpoint"),
        ("heal_audio",),
        "look",
    )
    page["heal_checkpoint"].input(**listen)
    save = page.event(
        lambda values, _: {
            "heal_saved": gr.File(heal.healed_folder(values["heal_key"]), visible=True)
        },
        ("heal_key",),
        ("heal_saved",),
        "work",
    )
    page["heal_save"].click(**save)
    return ended
