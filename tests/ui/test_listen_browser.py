"""A blind test in headless Chromium, done by keyboard by a listener who compares the sounds."""

from __future__ import annotations

import csv
import io
import json
from urllib.parse import urlencode

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect, sync_playwright

from tests.ui.browsing import CHROMIUM, PATIENCE, open_tab, saved
from tests.ui.conftest import TINY

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed: the page is not tested in a browser"
    ),
    pytest.mark.xdist_group("server"),
]
NETWORK = """
window.network = [];
const real = window.fetch;
window.fetch = async (...asked) => {
  const answer = await real(...asked);
  const kind = answer.headers.get('content-type') || '';
  if (/event-stream|json/.test(kind)) {
    const reader = answer.clone().body.getReader(), decoder = new TextDecoder();
    const at = window.network.push('') - 1;
    (async () => {
      for (;;) {
        const {done, value} = await reader.read();
        if (done) return;
        window.network[at] += decoder.decode(value, {stream: true});
      }
    })().catch(() => {});
  }
  return answer;
};
"""
"""Keeps the text of all that the page gets."""


def trials_in(message):
    """Yield the trials in a message, however deep."""
    if isinstance(message, dict) and "sounds" in message:
        yield message
    elif isinstance(message, (dict, list)):
        for one in message.values() if isinstance(message, dict) else message:
            yield from trials_in(one)


def trials_of(page):
    """All trials in what came over the network so far, by number."""
    lines = "\n".join(page.evaluate("window.network")).splitlines()
    messages = [json.loads(line.removeprefix("data:")) for line in lines if '"sounds"' in line]
    return {state["trial"]: state for state in trials_in(messages)}


def heard(page, state):
    """The three sounds as float64 [samples]."""
    sounds = {}
    for name, file in state["sounds"].items():
        answer = page.request.get(file["url"])
        assert answer.ok
        sounds[name] = soundfile.read(io.BytesIO(answer.body()))[0]
    return sounds


def test_a_whole_blind_test_by_keyboard_agrees_with_its_csv(server, tmp_path):
    with sync_playwright() as playwright:
        options = ["--headless=new", "--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(NETWORK)
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{server.url}/?{urlencode({'voice': TINY, 'text': 'hi there'})}")
        expect(page.locator("#voice input")).to_have_value(TINY, timeout=PATIENCE)
        open_tab(page, "Listen blind")
        page.locator("#listen-trials input[type=number]").fill("20")
        page.locator("#listen-name input, #listen-name textarea").fill("ann")
        page.locator("#listen-start").click()
        given, nearest = [], []
        widget = page.locator("#listen .listen")
        for number in range(1, 21):
            expect(page.locator("#listen .count")).to_have_text(
                f"Trial {number} of 20", timeout=PATIENCE
            )
            first = page.locator("#listen [data-sound=A]")
            expect(first).to_be_enabled(timeout=PATIENCE)
            if number == 1:  # an answer before X is heard does not count
                page.keyboard.press("1")
                expect(page.locator("#listen .say")).to_contain_text("Listen to X first")
            for key in "XA":
                page.keyboard.press(key)
                expect(widget).to_have_attribute("data-playing", key)
            sounds = heard(page, trials_of(page)[number])
            gaps = [np.abs(sounds[side] - sounds["X"]).mean() for side in "AB"]
            nearest.append("AB"[int(np.argmin(gaps))])
            given.append(nearest[-1] if number % 4 else "A")
            page.keyboard.press("12"["AB".index(given[-1])])
        saved(page, "listen-trial", tmp_path)
        expect(page.locator("#listen .sentence")).to_contain_text("L1", timeout=PATIENCE)
        expect(page.locator("#listen svg .line")).to_be_attached()
        saved(page, "listen-result", tmp_path)

        states = trials_of(page)
        assert sorted(states) == list(range(1, 21))
        for state in states.values():
            assert set(state) == {"state", "kind", "test", "trial", "of", "sounds", "note"}
            assert state["note"] == ""
            files = list(state["sounds"].values())
            assert len({str(file.get("size")) for file in files}) == 1
            assert not any(
                word in json.dumps(files) for word in ("original", "pruned", "amount", "seed")
            )

        with page.expect_download() as download:
            page.locator("#listen-csv").click()
        rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8"))))
        assert [row["answer"] for row in rows] == given
        assert [row["x"] for row in rows] == nearest, "X is what it sounds like"
        assert [row["correct"] for row in rows] == [
            str(int(answer == x)) for answer, x in zip(given, nearest, strict=True)
        ]
        assert {row["listener"] for row in rows} == {"ann"}
        assert {row["voice"] for row in rows} == {TINY}
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        saved(page, "listen-phone", tmp_path)
        assert errors == []
        browser.close()
