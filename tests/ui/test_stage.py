"""The stage in Chromium, on the real voice: what is heard, what is shown, and links to it."""

from __future__ import annotations

import re
import shlex

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from tests.nearly import nearly
from tests.ui.browsing import (
    PATIENCE,
    Recording,
    choose_voice,
    command,
    complaint,
    done,
    fit,
    frame,
    looped,
    more_options,
    number,
    players,
    speak_through,
)
from tests.ui.conftest import TINY
from vits_prune import PruneSpec, prune, speak
from vits_prune.measure import measure_size, measure_sparsity
from vits_prune.studio.request import Request, as_command, as_python
from vits_prune.studio.rows import AMOUNTS
from vits_prune.study.comparison import DEFAULT_TEXT
from vits_prune.ui.tables import number as in_digits

pytestmark = pytest.mark.xdist_group("server")
HEARD = "#stage [data-heard], #stage[data-heard]"


@pytest.fixture(scope="module")
def opened(visit):
    """A page as it opens. Tests only look and listen, and leave it as it was."""
    page = visit()
    assert page.locator("#text textarea").input_value() == DEFAULT_TEXT
    print(f"Play was enabled {page.evaluate('performance.now()'):.0f} ms after opening")
    return page


@pytest.fixture(scope="module")
def said(joe):
    """What joe says, by side: the original and pruned by 30% and by 40%."""
    original = speak(joe, DEFAULT_TEXT)
    pruned = {
        amount: speak(prune(joe, PruneSpec(amount=amount)), DEFAULT_TEXT, timing=original)
        for amount in (0.3, 0.4)
    }
    return {"original": original} | {str(amount): speech for amount, speech in pruned.items()}


def heard(page: Page, side: str) -> None:
    expect(page.locator(HEARD)).to_have_attribute("data-heard", side)


# What is heard


def test_play_sounds_loops_and_goes_from_voice_to_voice_without_a_gap(visit, said):
    page = visit()
    page.evaluate("record(), 0")
    page.locator("#stage .play").click()
    heard(page, "0.3")
    loop_seconds = said["original"].audio_seconds + 0.3
    page.wait_for_timeout(1_300 * loop_seconds)
    places: list[tuple[float, str]] = []

    def place(side: str) -> None:
        heard(page, side)
        places.append((frame(page), side))
        page.wait_for_timeout(900)

    place("0.3")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    place("original")
    page.keyboard.press("Space")
    place("0.3")
    page.locator("#stage .which").click()
    place("original")
    page.locator("#stage .which").press("Space")
    place("0.3")
    for held in (".strips", ".hold"):
        page.locator(f"#stage {held}").hover()
        page.mouse.down()
        place("original")
        page.mouse.up()
        place("0.3")
    slider = page.locator("#amount input[type=range]")
    slider.focus()
    for _ in range(10):
        slider.press("ArrowRight")
    place("0.4")
    box = slider.bounding_box()
    middle, passed = box["y"] + box["height"] / 2, set()
    page.mouse.move(box["x"] + 8 + 0.4 / 0.95 * (box["width"] - 16), middle)
    page.mouse.down()
    for share in (0.75, 0.5, 0.25, 0.0):
        page.mouse.move(box["x"] + 8 + share * (box["width"] - 16), middle)
        passed.add(page.locator(HEARD).get_attribute("data-heard"))
    page.mouse.up()
    assert len(passed) == 4, passed
    page.locator("#stage .play").click()
    heard(page, "")

    record, rate = Recording.of(page), Recording.of(page).rate
    loops = {side: looped(one.waveform, one.sampling_rate, rate) for side, one in said.items()}
    length = len(loops["original"])
    begun = record.onset + 0.3 * rate  # the first blocks come while the recorder is made
    offset, cosine = fit(record.between(begun, begun + 1.25 * length), loops["0.3"])
    assert cosine > 0.99, "not the pruned voice, or not one round after the other"
    start = begun - offset
    late = record.onset - start + 0.1 * rate  # once it was recorded 10 ms early
    assert late % length < 0.6 * rate, "it does not begin at the beginning"
    for at, side in places:
        now = record.between(at + 0.1 * rate, at + 0.7 * rate)
        cosines = {name: fit(now, loop) for name, loop in loops.items()}
        offset, cosine = cosines[side]
        assert cosine > 0.98, (side, cosines)
        assert cosine > 0.1 + max(one for name, (_, one) in cosines.items() if name != side)
        off = (at + 0.1 * rate - start - offset + length / 2) % length - length / 2
        assert abs(off) < 0.05 * rate, f"the position jumped by {off / rate:.3f} s at {side}"
    steady = max(np.abs(np.diff(loop)).max() for loop in loops.values())
    heard_jumps = np.abs(np.diff(record.between(begun, places[-1][0] + 0.7 * rate))).max()
    assert heard_jumps < 1.1 * steady, "a click"
    page.context.close()


def test_players_hold_what_the_library_says(opened, said):
    for (samples, rate), side in zip(players(opened), ("original", "0.3"), strict=True):
        assert rate == 22_050
        assert np.abs(samples).max() > 1_000
        assert nearly(samples, said[side].pcm16())


def test_a_new_text_plays_at_the_chosen_amount_before_the_rest_is_made(visit, joe):
    page = visit()
    done(page)
    page.evaluate("record(), 0")
    page.locator("#stage .play").click()
    heard(page, "0.3")
    page.wait_for_timeout(500)
    before = page.evaluate("shifts.length")
    made = page.locator("#amount .track-marks i.made")
    many = len(AMOUNTS)
    expect(made).to_have_count(many, timeout=PATIENCE)
    page.locator("#text textarea").fill("Hi.")
    page.locator("#text textarea").press("Shift+Enter")
    page.wait_for_function(
        "count => document.querySelectorAll('.track-marks i.made').length < count", arg=many
    )
    heard(page, "0.3")
    assert made.count() < many
    done(page)
    expect(made).to_have_count(many, timeout=PATIENCE)
    shifted = page.evaluate(f"shifts.slice({before}).reduce((a, b) => a + b, 0)")
    assert shifted < 0.05, f"the page moved by {shifted}"
    original = speak(joe, "Hi.")
    pruned = speak(prune(joe, PruneSpec()), "Hi.", timing=original)
    record = Recording.of(page)
    loop = looped(pruned.waveform, pruned.sampling_rate, record.rate)
    assert fit(record.samples[-2 * len(loop) :], loop)[1] > 0.99
    page.context.close()


def test_players_hold_nothing_of_the_sentence_before(visit):
    page = visit()
    done(page)
    before, old = page.evaluate("shifts.length"), [len(one) for one, _ in players(page)]
    full = [page.locator(f"#{side}-audio audio[src]") for side in ("original", "pruned")]
    downloads = page.locator("#stage .players a:visible")
    page.locator("#text textarea").fill("The birch canoe slid on the smooth planks. " * 3)
    page.locator("#speak").click()
    for player in full:
        expect(player).to_have_count(0)
    expect(downloads).to_have_count(0)
    expect(page.locator("#original-audio")).to_contain_text("not made yet")
    expect(page.locator("#stage .play")).to_be_enabled()
    expect(full[1]).to_have_count(1, timeout=PATIENCE)  # it speaks first
    assert full[0].count() == 0
    done(page)
    expect(downloads).to_have_count(2)
    new = [len(one) for one, _ in players(page)]
    assert new[0] == new[1] > 1.5 * old[0]
    shifted = page.evaluate(f"shifts.slice({before}).reduce((a, b) => a + b, 0)")
    assert shifted < 0.05, f"the page moved by {shifted}"
    page.context.close()


# What is shown


def test_three_tables_are_in_sight_with_the_numbers_of_the_library(opened, joe, tmp_path):
    done(opened)
    opened.evaluate("scrollTo(0, 0)")
    pruned, found = prune(joe, PruneSpec()), {}
    for name in ("sparsity", "size", "latency"):
        table = opened.locator(f"#{name} table").first
        expect(table.locator("caption")).to_have_text(name.capitalize())
        box = table.bounding_box()
        assert box["y"] >= 0, name
        assert box["y"] + box["height"] <= 1000, name
        assert box["x"] + box["width"] <= 1400, name
        found[name] = table.locator("tbody tr").all_inner_texts()
        with opened.expect_download() as download:
            opened.locator(f"#{name}-csv").click()
        download.value.save_as(tmp_path / f"{name}.csv")
    lengths = {name: len(pd.read_csv(tmp_path / f"{name}.csv")) for name in found}
    assert lengths == {"sparsity": 5, "size": 6, "latency": 12 + 8}  # joe has 8 parts
    after = measure_sparsity(pruned)
    assert "30.0% zero" in found["sparsity"][0]
    counts = f"{after.zeros():,} of {after.weights():,} weights are zero."
    expect(opened.locator("#sparsity")).to_contain_text(counts)
    sizes = [measure_size(voice).sparse_fp32_bytes / 1e6 for voice in (joe, pruned)]
    row = next(row for row in found["size"] if row.startswith("File, sparse fp32"))
    assert all(in_digits(size, "MB") in row for size in sizes)
    assert "no smaller" in found["size"][0]
    expect(opened.locator("#latency")).to_contain_text("× the speed (run by run")
    words = opened.locator("#stage .words")
    for part in ("30% of the weights are zero", "file stays", "The sound moved"):
        expect(words).to_contain_text(part)
    speed = re.compile(r"[Nn]ot faster|slower|times as fast|the speed")  # as measured just now
    expect(words).to_have_text(speed)


def test_the_code_does_what_the_page_shows(opened):
    done(opened)
    request = Request("joe", DEFAULT_TEXT, PruneSpec(), 0, "locked")
    command(opened, as_command(request))
    expect(opened.locator("#python textarea")).to_have_value(as_python(request))
    opened.get_by_role("button", name="Copy code").click()


# Links


def test_a_copied_link_opens_the_same_stage(visit, browser):
    page = visit("/?tab=curve", permissions=["clipboard-read", "clipboard-write"])
    choose_voice(page, TINY)
    page.get_by_role("tab", name="Learn", exact=True).click()
    page.locator("#learn-1-next").click()
    more_options(page)
    number(page, "seed", "3")
    page.locator("#scope").get_by_label("Local").check()
    page.locator("#timing").get_by_label("Its own").check()
    page.locator("#amount input[type=range]").fill("0.5")
    speak_through(page, "hi there & you")
    page.locator("#stage .link").click()
    expect(page.locator("#stage .link")).to_have_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    for said in ("voice=someone%2Ftiny-vits", "seed=3", "scope=local", "timing=own", "amount=0.5"):
        assert said in link
    assert ("tab=learn" in link, "lesson=2" in link, "noise" in link) == (True, True, False)
    again = visit(link[link.index("/?") :])
    expect(again.locator("#text textarea")).to_have_value("hi there & you")
    expect(again.locator("#voice input")).to_have_value(TINY)
    expect(again.locator("#amount input[type=range]")).to_have_value("0.5")
    expect(again.locator("#scope").get_by_label("Local")).to_be_checked()
    expect(again.locator("#lesson-2")).to_be_visible()
    done(again)
    assert again.url == link
    for one, other in zip(players(page), players(again), strict=True):
        assert nearly(one[0], other[0])
    again.locator("#stage .play").click()
    heard(again, "0.5")
    for one in (page, again):
        one.context.close()


def test_a_damaged_link_gets_one_sentence_and_the_default_stage(visit):
    page = visit("/?amount=lots&text=%00&tab=nowhere&lesson=99", ready=False)
    complaint(page, "The link is damaged: amount is not a number.")
    expect(page.locator("#stage .play")).to_be_enabled(timeout=PATIENCE)
    expect(page.locator("#text textarea")).to_have_value(DEFAULT_TEXT)
    expect(page.locator("#amount input[type=range]")).to_have_value("0.3")
    expect(page.get_by_role("tab", name="Learn")).to_have_attribute("aria-selected", "true")
    page.context.close()


# Several presses, several tabs


@pytest.mark.slow
def test_the_last_of_several_presses_counts_in_each_of_two_tabs(visit):
    first = visit()
    choose_voice(first, TINY)
    closed, second = first.context.new_page(), first.context.new_page()
    for one in (closed, second):
        one.goto(first.url)
        expect(one.locator("#stage .play")).to_be_enabled(timeout=PATIENCE)
    closed.locator("#text textarea").fill("she sells seashells. " * 40)
    closed.locator("#speak").click()
    closed.close()
    lasts = {first: "hi", second: "hi there"}
    for one, last in lasts.items():
        for text, milliseconds in (("you there", 300), ("there hi", 50), (last, 0)):
            one.locator("#text textarea").fill(text)
            one.locator("#speak").click()
            one.wait_for_timeout(milliseconds)
    for one, last in lasts.items():
        command(one, shlex.quote(f"--text={last}"))
        done(one)
        speak_through(one, "hi you")  # nothing stands in the way of the next
    first.context.close()


@pytest.mark.slow
def test_the_page_goes_on_after_a_lost_connection(visit):
    page = visit()
    choose_voice(page, TINY)
    page.context.set_offline(True)
    page.locator("#text textarea").fill("hi there")
    page.locator("#speak").click()
    lost = page.get_by_test_id("toast-body").filter(has_text="Connection to the server was lost")
    expect(lost).to_be_visible(timeout=PATIENCE)
    page.context.set_offline(False)
    expect(lost).to_have_count(0, timeout=PATIENCE)
    visit.complaints.clear()  # of the browser, about what it could not reach
    done(page)
    speak_through(page, "hi there")
    assert all(len(sound) for sound, _ in players(page))
    page.context.close()


@pytest.mark.slow
def test_eight_visitors_hear_what_each_asked_for(visit):
    words = ("hi", "you", "there", "hi you", "you hi", "hi there", "there you", "you there")
    pages = [visit() for _ in words]
    for page, text in zip(pages, words, strict=True):
        choose_voice(page, TINY)
        page.locator("#text textarea").fill(text)
        page.locator("#speak").click()
    for page, text in zip(pages, words, strict=True):
        command(page, shlex.quote(f"--text={text}"))
        done(page)
        assert all(len(sound) for sound, _ in players(page))
        page.context.close()
