"""The tab Heal in headless Chromium: a healing is watched, heard, stopped, saved and staged."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.ui.browsing import (
    PATIENCE,
    choose_voice,
    complaint,
    done,
    number,
    open_tab,
    saved,
    sound,
    unzipped,
)
from tests.ui.conftest import TINY
from vits_prune import load_voice, speak

pytestmark = pytest.mark.xdist_group("server")
LEFT = re.compile(r"step \d+ of \d+, about \d+:\d\d left")


def begin(page):
    """Begin to heal a small voice, for much longer than a test lasts."""
    choose_voice(page, TINY)
    page.locator("#text textarea").fill("hi there")
    open_tab(page, "Heal")
    number(page, "heal-minutes", "20")
    number(page, "heal-texts", "2")
    page.locator("#heal-start").click()


def test_a_healing_is_watched_and_stopped(page):
    begin(page)
    status = page.locator("#heal-status")
    expect(status).to_contain_text(LEFT, timeout=3 * PATIENCE)  # the recogniser loads before
    line = page.locator("#heal-course .losses polyline").first
    expect(line).to_be_attached(timeout=PATIENCE)
    page.locator("#heal-stop").click()
    stopped = "stopped by hand at step"
    expect(status).to_contain_text(stopped, timeout=PATIENCE)
    expect(page.locator("#heal-table")).to_contain_text("length of the speech")
    assert sound(page, "heal-healed")[0].any()


@pytest.mark.slow
def test_a_voice_is_healed_heard_on_the_way_stopped_saved_and_put_on_the_stage(page, tmp_path):
    status, stage = page.locator("#heal-status"), page.locator("#stage .pruned-name")
    slider = page.locator("#amount input[type=range]")
    begin(page)
    checkpoints = page.locator("#heal-checkpoint input")
    expect(checkpoints).to_have_count(1, timeout=3 * PATIENCE)  # the recogniser loads
    expect(status).to_contain_text(LEFT, timeout=PATIENCE)
    checkpoints.first.check()
    assert sound(page, "heal-audio")[0].any()
    line = page.locator("#heal-course .losses polyline").first
    expect(line).to_be_attached(timeout=PATIENCE)
    page.locator("#speak").click()  # hearing goes on meanwhile
    expect(stage).to_have_text("Pruned 30%", timeout=PATIENCE)
    expect(status).to_contain_text("left")
    page.locator("#heal-stop").click()
    expect(status).to_contain_text("stopped by hand at step", timeout=3 * PATIENCE)
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

    slider.focus()
    slider.press("ArrowRight")
    expect(stage).to_have_text("Pruned 31%", timeout=PATIENCE)
    page.locator("#heal-stage").click()
    expect(stage).to_have_text("Pruned 30%, healed", timeout=PATIENCE)
    done(page)
    expect(slider).to_have_value("0.3")
    expect(page.locator("#stage .words")).to_contain_text("Healed after pruning.")
    expect(page.locator("#latency")).to_contain_text("Healed")
    assert (sound(page, "pruned-audio")[0] == healed).all()
    slider.focus()
    slider.press("ArrowRight")
    expect(stage).to_have_text("Pruned 31%", timeout=PATIENCE)

    open_tab(page, "Export")
    choice = page.locator("#ship-which").get_by_label("pruned and healed")
    expect(choice).to_be_visible(timeout=PATIENCE)
    choice.check()
    expect(page.locator("#ship-python")).to_contain_text("global-30-healed-dense-fp32")

    open_tab(page, "Heal")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    saved(page, "phone-heal", tmp_path)
    slider.fill("0")
    page.locator("#heal-start").click()
    complaint(page, "Nothing is pruned yet")
