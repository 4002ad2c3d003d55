"""Who is on the page: once nobody is, the files that visitors left behind go."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from gradio.route_utils import delete_files_created_by_app

from vits_prune.studio import rows, workbench
from vits_prune.ui.events import QUIET

_PATIENCE_SECONDS = 60.0
"""A page whose connection broke may come back, and a program may still fetch its files."""
_LONGEST_SECONDS = 6 * 3600.0
"""Who has been there for longer does not count: a visitor may go before their coming is noticed."""


class Presence:
    """The visitors that are there.

    Args:
        tidy: called twice once nobody is there any more: what was begun for a visitor may end after
            they have gone.
        patience: seconds to wait for somebody before.
    """

    def __init__(self, tidy: Callable[[], object], patience: float = _PATIENCE_SECONDS) -> None:
        self._tidy, self._patience = tidy, patience
        self._since: dict[str | None, float] = {}
        self._lock, self._timer = threading.Lock(), threading.Timer(0, tidy)

    def came(self, session: str | None) -> None:
        """Note that a visitor is there."""
        with self._lock:
            self._since[session] = time.monotonic()

    def left(self, session: str | None) -> None:
        """Note that a visitor is gone; tidy up in a while unless somebody is there then."""
        with self._lock:
            self._since.pop(session, None)
            self._tidy_later()

    def _tidy_later(self, again: bool = True) -> None:
        self._timer.cancel()
        self._timer = threading.Timer(self._patience, self._tidy_if_alone, [again])
        self._timer.daemon = True
        self._timer.start()

    def _tidy_if_alone(self, again: bool) -> None:
        with self._lock:
            longest = time.monotonic() - _LONGEST_SECONDS
            if all(since < longest for since in self._since.values()):
                self._since.clear()
                if again:
                    self._tidy_later(again=False)
                self._tidy()


def wire_presence(demo: gr.Blocks) -> None:
    """Let the page tidy up after its last visitor."""
    presence = Presence(lambda: tidy(demo, _PATIENCE_SECONDS))

    def came(request: gr.Request) -> None:
        presence.came(request.session_hash)

    def left(request: gr.Request) -> None:
        presence.left(request.session_hash)

    demo.load(came, None, None, queue=False, **QUIET)
    demo.unload(left)


def tidy(demo: gr.Blocks, age_seconds: float) -> None:
    """Remove what was made for visitors: speech, tables, uploads, and Gradio's copies of them.

    The row that everybody begins with stays. Of Gradio's copies only those go that were not handed
    out for so long.
    """
    rows.forget(first=False)
    workbench.bench.forget_uploads()
    workbench.scratch.clear()
    copies = {Path(file) for files in demo.temp_file_sets for file in list(files)}
    delete_files_created_by_app(demo, round(age_seconds))
    for folder in {file.parent for file in copies}:
        with contextlib.suppress(OSError):  # it is not empty, or gone
            folder.rmdir()
