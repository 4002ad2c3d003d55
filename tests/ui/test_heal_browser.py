"""The Heal tab in headless Chromium: watched, heard at a checkpoint, stopped, and saved."""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect

from tests.ui.conftest import TINY
from tests.ui.test_browser import (  # noqa: F401 (fixtures)
    CHROMIUM,
    PATIENCE,
    browser,
    choose_voice,
    open_tab,
    page,
    saved,
    visit,
)
from vits_prune import load_voice, speak

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: the page is not tested in a browser"
)


def begin(page: Page, minutes: str = "0.5") -> None:  # noqa: F811
    choose_voice(page, TINY)
    page.locator("#text textarea").fill("hi there")
    open_tab(page, "Heal")
    for name, number in (("minutes", minutes), ("texts", "2")):
        page.locator(f"#heal-{name} input[type=number]").fill(number)
        page.keyboard.press("Tab")
    page.locator("#heal-start").click()


def sound(page: Page, name: str) -> np.ndarray:  # noqa: F811
    link = page.locator(f"#{name} a[download]").first
    link.wait_for(state="attached", timeout=PATIENCE)
    return soundfile.read(
        io.BytesIO(page.request.get(link.evaluate("a => a.href")).body()), dtype="int16"
    )[0]


def test_a_voice_is_healed_heard_on_the_way_stopped_and_saved(page, tmp_path):  # noqa: F811
    begin(page, "20")
    expect(page.locator("#heal-checkpoint input")).to_have_count(
        1, timeout=PATIENCE
    )  # as it was pruned
    expect(page.locator("#heal-status")).to_contain_text(
        re.compile(r"step \d+ of \d+, about \d+:\d\d left"), timeout=PATIENCE
    )
    page.locator("#heal-checkpoint input").first.check()
    assert sound(page, "heal-audio").any()
    expect(page.locator("#heal-course .losses polyline").first).to_be_attached(timeout=PATIENCE)
    page.locator("#speak").click()  # hearing goes on meanwhile
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)
    expect(page.locator("#heal-status")).to_contain_text("left")
    page.locator("#stop").click()
    expect(page.locator("#heal-status")).to_contain_text(
        "stopped by hand at step", timeout=PATIENCE
    )
    expect(page.locator("#heal-table")).to_contain_text("length of the speech")
    healed, original = sound(page, "heal-healed"), sound(page, "heal-original")
    assert len(healed) == len(original), "with the original's durations"
    page.locator("#heal-save").click()
    link = page.locator("#heal-saved a[download]").first
    link.wait_for(timeout=PATIENCE)
    with zipfile.ZipFile(
        io.BytesIO(page.request.get(link.evaluate("a => a.href")).body())
    ) as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert speak(load_voice(folder), "hi there").audio_seconds > 0
    with page.expect_download() as download:
        page.locator("#heal-csv").click()
    assert download.value.suggested_filename == "healing.csv"


def test_nothing_pruned_gets_a_sentence(page):  # noqa: F811
    page.locator("#amount input[type=number]").fill("0")
    page.keyboard.press("Tab")
    open_tab(page, "Heal")
    page.locator("#heal-start").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text(
        "Nothing is pruned yet", timeout=PATIENCE
    )


def test_on_a_phone_it_fits(visit, tmp_path):  # noqa: F811
    page = visit("/?__theme=light", viewport={"width": 390, "height": 844})  # noqa: F811
    begin(page)
    expect(page.locator("#heal-status")).to_contain_text("Done", timeout=PATIENCE)
    assert page.locator("#heal-course .checks svg").count() >= 2
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    saved(page, "phone-heal", tmp_path)
    page.close()
