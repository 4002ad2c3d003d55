"""How the page's events run: values by name in, values by name out, errors as sentences."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from vits_prune.errors import InputError
from vits_prune.studio.descriptions import plain
from vits_prune.studio.jobs import Tickets, Update, stream
from vits_prune.studio.request import Request

QUIET: dict[str, Any] = {"api_visibility": "private"}
_LIMITS = {"load": 2, "work": None, "measure": None, "fill": None, "look": 2, "heal": 1, "begin": 2}
LANES: dict[str, dict[str, Any]] = {
    "at once": {"queue": False, "show_progress": "hidden"},
    **{lane: {"concurrency_id": lane, "concurrency_limit": most} for lane, most in _LIMITS.items()},
}
"""Who waits for whom. Those who hear, measure and fill their slider wait in lines of the studio: it
tells them their place, and they can end their run while they wait. The start of a blind test
("begin") prunes and speaks too."""

tickets = Tickets()
log = logging.getLogger(__name__)


def visitor_token(oauth: gr.OAuthToken | None) -> str | None:
    """Return the visitor's own token, None for one who is not logged in.

    The server's own token is never used for what a visitor names.
    """
    return oauth.token if oauth is not None else None


def on_stage(values: dict[str, Any]) -> Request:
    """Return what the stage was asked for. Raises InputError if the server has forgotten it."""
    if values["asked"] is None:  # it was started anew, or many others came since
        raise InputError("What this page showed is no longer kept here: press Speak again.")
    return values["asked"]


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Show an InputError as its sentence, and what is unforeseen without details of the server."""
    try:
        yield
    except gr.Error:
        raise
    except InputError as error:
        raise gr.Error(str(error), title="That cannot be done", print_exception=False) from error
    except Exception as error:
        log.exception("unexpected error on the page")
        sentence = "Something went wrong on the server. Try again, or with a shorter text."
        raise gr.Error(sentence, title="Error", print_exception=False) from error


class Page(dict[str, Any]):
    """The page's components by name, and what their events run."""

    def event(
        self,
        work: Callable[..., Any],
        inputs: Iterable[str],
        outputs: Iterable[str],
        lane: str = "at once",
        *,
        status: str = "status",
        bar: str = "",
        ticket: str = "",
        **options: Any,
    ) -> dict[str, Any]:
        """Return the arguments of an event listener that runs `work`.

        Args:
            work: a function of (values by name, visitor's token) that returns new values by name,
                or a generator function of (values, token, progress) that yields them. The latter
                runs in a thread.
            inputs: names of the components whose values it gets.
            outputs: names of the components that it may change.
            lane: one of LANES.
            status: the output that says what is being done.
            bar: in its place, the component over which Gradio's own progress bar shows it.
            ticket: the component whose ticket ends the run, without an error, once it is
                cancelled. A run whose ticket is cancelled already shows nothing.
            options: other arguments of the listener.
        """
        names = {self[name]: name for name in (*inputs, *((ticket,) if ticket else ()))}

        def asked(values: dict[Any, Any]) -> dict[str, Any]:
            return {names[one]: value for one, value in values.items()}

        def shown(found: dict[str, Any]) -> dict[Any, Any]:
            return {self[name]: value for name, value in found.items()}

        def at_once(values: dict[Any, Any], oauth: gr.OAuthToken | None) -> dict[Any, Any]:
            with sentences():
                return shown(work(asked(values), visitor_token(oauth)))

        def walk(
            values: dict[Any, Any], oauth: gr.OAuthToken | None, report: Callable[[Update], Any]
        ) -> aclosing[AsyncGenerator[dict[Any, Any], None]]:
            given, token = asked(values), visitor_token(oauth)

            def unwanted() -> bool:
                return bool(ticket) and given[ticket] in tickets

            run = functools.partial(work, given, token)
            return aclosing(_walk(run, unwanted, report, shown))

        async def in_words(
            values: dict[Any, Any], oauth: gr.OAuthToken | None
        ) -> AsyncGenerator[dict[Any, Any], None]:
            def report(update: Update) -> dict[Any, Any]:
                return {self[status]: plain(str(update), 300)}

            try:
                async with walk(values, oauth, report) as steps:
                    async for one in steps:
                        yield one
            except gr.Error as error:
                # What was being done is not under way any more, and Gradio's own box goes away.
                yield {self[status]: plain(error.message, 300)}
                raise

        async def on_a_bar(
            values: dict[Any, Any],
            oauth: gr.OAuthToken | None,
            bar: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio looks for it here)
        ) -> AsyncGenerator[dict[Any, Any], None]:
            def report(update: Update) -> None:
                bar(update.fraction, desc=update.message)

            async with walk(values, oauth, report) as steps:
                async for one in steps:
                    yield one

        fn: Any = at_once
        if inspect.isgeneratorfunction(work):
            fn = on_a_bar if bar else in_words
            options["show_progress_on"] = [self[bar or status]]
            if not bar:  # the words say it; Gradio's own picture over them would be hard to read
                options.setdefault("show_progress", "hidden")
        filled = [self[name] for name in outputs]
        event = {"fn": fn, "inputs": set(names), "outputs": filled}
        return {**event, **LANES[lane], **QUIET, **options}


async def _walk(
    run: Callable[..., Any],
    unwanted: Callable[[], bool],
    report: Callable[[Update], dict[Any, Any] | None],
    shown: Callable[[dict[str, Any]], dict[Any, Any]],
) -> AsyncGenerator[dict[Any, Any], None]:
    """Run a generator function in a thread; yield what it and its reports change on the page."""
    if unwanted():
        yield gr.skip()
        return
    with sentences():
        async with aclosing(stream(run, unwanted)) as news:
            async for one in news:
                found = report(one) if isinstance(one, Update) else shown(one)
                if found is not None:
                    yield found
