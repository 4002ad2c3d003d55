"""What an event of the page shows: values by name, errors as sentences, nothing once it is over."""

from __future__ import annotations

import asyncio
import re
import time

import gradio as gr
import pytest

from vits_prune.errors import InputError
from vits_prune.ui.events import Page, on_stage, sentences, tickets, visitor_token


def test_only_sentences_reach_the_page(caplog):
    with pytest.raises(gr.Error) as caught, sentences():
        raise InputError("Choose another.")
    assert caught.value.message == "Choose another."
    with pytest.raises(gr.Error) as caught, sentences():
        raise RuntimeError("/home/owner/secret is broken")
    assert "secret" not in caught.value.message
    assert "secret" in caplog.text, "the owner finds it in the log"


def test_a_page_whose_state_is_forgotten_gets_a_sentence(request_):
    assert on_stage({"asked": request_}) is request_
    with pytest.raises(InputError, match="press Speak again"):
        on_stage({"asked": None})


def test_no_visitor_is_given_the_servers_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_serverownersecret")
    assert visitor_token(None) is None
    assert visitor_token(gr.OAuthToken(token="mine", scope="", expires_at=0)) == "mine"


def test_values_come_and_go_by_name():
    with gr.Blocks():
        parts = {name: gr.Textbox() for name in ("voice", "facts", "status", "ticket")}
    page, mine = Page(parts), gr.OAuthToken(token="mine", scope="", expires_at=0)

    def at_once(values, token):
        return {"facts": f"{values['voice']} {token}"}

    event = page.event(at_once, ["voice"], ["facts"])
    assert event["inputs"] == {parts["voice"]}
    assert event["fn"]({parts["voice"]: "joe"}, mine) == {parts["facts"]: "joe mine"}

    def in_thread(values, token, progress):
        progress.report("loading", 0.5)
        yield {"facts": values["voice"]}
        raise InputError("No more.")

    async def seen(ticket):
        event = page.event(in_thread, ["voice"], ["status", "facts"], ticket="ticket")
        values = {parts["voice"]: "joe", parts["ticket"]: ticket}
        found = []
        try:
            async for one in event["fn"](values, None):
                found.append(one)
        except gr.Error as error:
            found.append(error.message)
        return found

    *_, shown, why, refused = asyncio.run(seen("wanted"))
    assert (shown, refused) == ({parts["facts"]: "joe"}, "No more.")
    assert why == {parts["status"]: "No more."}, "it stays when Gradio's own box is gone"
    tickets.cancel("unwanted")
    assert asyncio.run(seen("unwanted")) == [gr.skip()]


def test_what_is_being_done_is_plain_text():
    """A link may name anything as its voice: Markdown would fetch its picture."""
    with gr.Blocks():
        parts = {name: gr.Textbox() for name in ("voice", "status")}
    page = Page(parts)

    def load(values, token, progress):
        progress.report(f"loading {values['voice']}", 0.5)
        time.sleep(0.5)  # the report is shown before there is more to show
        yield {}

    event = page.event(load, ["voice"], ["status"], "load")

    async def shown():
        hostile = "![x](//evil/p) <img src=x> **b**"
        return [found async for found in event["fn"]({parts["voice"]: hostile}, None)]

    said = "".join(found.get(parts["status"], "") for found in asyncio.run(shown()))
    assert "loading" in said
    assert re.search(r"(?<!\\)[!\[\]<>*]", said) is None, "each mark has its backslash"
