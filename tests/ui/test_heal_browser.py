"""The tab Heal in headless Chromium: a healing is watched, heard, stopped, saved and shipped."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.ui.browsing import (
    PATIENCE,
    choose_voice,
    downloaded,
    open_tab,
    saved,
    sound,
)
from tests.ui.conftest import TINY
from vits_prune import load_voice, speak

pytestmark = pytest.mark.xdist_group("server")


def unzipped(page: Page, name: str, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(downloaded(page, name))) as archive:
        archive.extractall(folder)
    (found,) = folder.iterdir()
    return found


def test_a_voice_is_healed_heard_on_the_way_stopped_saved_and_shipped(page, tmp_path):
    status = page.locator("#heal-status")
    choose_voice(page, TINY)
    page.locator("#text textarea").fill("hi there")
    open_tab(page, "Heal")
    for name, number in (("minutes", "20"), ("texts", "2")):
        page.locator(f"#heal-{name} input[type=number]").fill(number)
        page.keyboard.press("Tab")
    page.locator("#heal-start").click()
    checkpoints = page.locator("#heal-checkpoint input")
    expect(checkpoints).to_have_count(1, timeout=PATIENCE)  # as it was pruned
    left = re.compile(r"step \d+ of \d+, about \d+:\d\d left")
    expect(status).to_contain_text(left, timeout=PATIENCE)
    checkpoints.first.check()
    assert sound(page, "heal-audio")[0].any()
    line = page.locator("#heal-course .losses polyline").first
    expect(line).to_be_attached(timeout=PATIENCE)
    page.locator("#speak").click()  # hearing goes on meanwhile
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)
    expect(status).to_contain_text("left")
    page.locator("#stop").click()
    expect(status).to_contain_text("stopped by hand at step", timeout=PATIENCE)
    expect(page.locator("#heal-table")).to_contain_text("length of the speech")
    healed, original = sound(page, "heal-healed")[0], sound(page, "heal-original")[0]
    assert len(healed) == len(original), "with the original's durations"
    page.locator("#heal-save").click()
    folder = unzipped(page, "heal-saved", tmp_path / "saved")
    assert speak(load_voice(folder), "hi there").audio_seconds > 0
    with page.expect_download() as download:
        page.locator("#heal-csv").click()
    assert download.value.suggested_filename == "healing.csv"
    saved(page, "light-heal", tmp_path)

    open_tab(page, "Export")
    choice = page.locator("#ship-which").get_by_label("pruned and healed")
    expect(choice).to_be_visible(timeout=PATIENCE)
    choice.check()
    expect(page.locator("#ship-python")).to_contain_text("global-30-healed-dense-fp32")
    page.locator("#ship-zip").click()
    assert load_voice(unzipped(page, "ship-file", tmp_path / "shipped")).recipe["healed"]

    open_tab(page, "Heal")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    saved(page, "phone-heal", tmp_path)
    page.set_viewport_size({"width": 1360, "height": 900})
    page.locator("#amount input[type=number]").fill("0")
    page.keyboard.press("Tab")
    page.locator("#heal-start").click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("Nothing is pruned yet", timeout=PATIENCE)
