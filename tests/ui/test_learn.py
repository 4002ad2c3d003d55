"""The lesson: what its pages set, what they draw, and a walk through it by keyboard."""

from __future__ import annotations

import re
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from vits_prune.pruning import PruneSpec
from vits_prune.studio import workbench
from vits_prune.studio.descriptions import check_feasible
from vits_prune.studio.request import SPEAKING, request_of
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.ui.tabs.learn import LESSONS, draw, open_page
from vits_prune.voices.voice import PARTS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.label)
def test_the_settings_of_a_page_make_a_request_that_fits_every_voice(lesson, joe, tiny):
    controls = lesson.controls()
    assert set(controls) <= set(SPEAKING)
    request = request_of({"voice": "joe", "text": DEFAULT_TEXT, **controls})
    assert request.spec.amount == lesson.settings["amount"]
    assert request.timing == lesson.settings.get("timing", "locked")
    for voice in (joe, tiny):
        check_feasible(voice, request.spec)


def test_a_page_undoes_what_the_one_before_has_set():
    assert len({frozenset(lesson.controls()) for lesson in LESSONS}) == 1
    last, first = LESSONS[-1].controls(), LESSONS[0].controls()
    assert (last["method"], last["parts"]) == ("structured", ["decoder"])
    assert (first["method"], first["parts"]) == ("magnitude", list(PARTS))


def test_a_link_opens_a_page_and_nothing_else():
    for asked, opened in ((1, 1), ("5", 5), ("9", 1), ("0", 1), ("-1", 1), ("five", 1), (None, 1)):
        assert open_page(asked).selected == opened


def test_pictures_are_of_the_loaded_voice(request_, tiny, monkeypatch):
    monkeypatch.setattr(workbench.bench, "is_loaded", lambda *_: True)
    values = {"voice": "someone/tiny", "text": "hi there you", "seed": 2, "timing": "locked"}
    drawn = {}
    for number in range(1, len(LESSONS) + 1):
        found = draw({**values, "learn_at": number}, None)
        assert found["learn_at"] == number
        drawn[number] = found[f"learn_{number}_picture"]
        assert drawn[number].startswith("<figure><figcaption>")
        assert "<svg" not in drawn[number] or 'role="img" aria-label="' in drawn[number]
    assert "the 30% of the weights" in drawn[2]
    before, after = workbench.bench.size(request_.at(PruneSpec()))
    for size in (before.dense_fp32_bytes, after.sparse_fp32_bytes):
        assert f"{size / 1e6:#.3g} MB" in drawn[3]
    all_of_them, done, useful = re.findall(r"<td>([\d.]+) (?:thousand|million)</td>", drawn[4])
    assert all_of_them == done != useful
    assert drawn[5].count("<td>40%</td>") >= 4
    for number in (6, 7, 8):
        assert "joe" in drawn[number]
    refused = draw({**values, "text": " ", "learn_at": 5}, None)["learn_5_picture"]
    assert "type a sentence" in refused


def test_nothing_is_drawn_before_the_voice_is_loaded(request_):
    assert draw({"voice": "someone/other", "learn_at": 1}, None) == {"learn_at": 1}


@pytest.mark.xdist_group("server")
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_lesson_is_walked_by_keyboard(server):
    expect.set_options(timeout=60_000)
    options = ["--headless=new", "--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(server.url)
        amount = page.locator("#amount input[type=range]")
        for number, lesson in enumerate(LESSONS, start=1):
            expect(page.locator(f"#lesson-{number}")).to_contain_text(lesson.title)
            if number > 1:
                expect(page.locator(f"#lesson-{number}")).to_be_focused()
                expect(page).to_have_url(re.compile(rf"lesson={number}\b"))
                page.keyboard.press("Tab")
            else:
                assert "lesson=" not in page.url
                page.locator("#learn-1-play").focus()
            expect(page.locator(f"#learn-{number}-play")).to_be_focused()
            if number in (1, 5):
                page.keyboard.press("Enter")
                expect(amount).to_have_value(str(lesson.settings["amount"]).removesuffix(".0"))
            page.keyboard.press("Tab")
            answer = page.locator(f"#learn-{number}-question p")
            expect(answer).not_to_be_visible()
            page.keyboard.press("Enter")
            expect(answer).to_be_visible()
            expect(page.locator(f"#learn-{number}-picture figure")).not_to_contain_text("Drawing")
            page.keyboard.press("Tab")
            if number > 1:  # over "Back"
                page.keyboard.press("Tab")
            if number < len(LESSONS):
                expect(page.locator(f"#learn-{number}-next")).to_be_focused()
                page.keyboard.press("Enter")
        page.locator("#learn-3-button").press("Enter")
        expect(page.locator("#lesson-3")).to_be_visible()
        expect(page).to_have_url(re.compile("lesson=3"))
        link = browser.new_page()
        link.goto(f"{server.url}/?tab=learn&lesson=5")
        expect(link.locator("#lesson-5")).to_be_visible()
        browser.close()
