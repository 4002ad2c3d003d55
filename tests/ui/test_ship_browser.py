"""The Ship tab in headless Chromium: the table, the zip, the healed voice, and a push by a visitor who is logged in."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import socket
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import TINY, running, wait_until_it_answers
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
from tests.ui.test_heal_browser import begin as heal_begin
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Account, Repository, serving
from vits_prune import PruneSpec, load_voice, prune, speak

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed: the page is not tested in a browser"
)
TOKEN = "hf_visitorsown"
SECRET = "of the app"


def unpacked(page: Page, folder):  # noqa: F811
    link = page.locator("#ship-file a[download]").first
    link.wait_for(timeout=PATIENCE)
    with zipfile.ZipFile(
        io.BytesIO(page.request.get(link.evaluate("a => a.href")).body())
    ) as archive:
        archive.extractall(folder)
    (found,) = folder.iterdir()
    return found


def test_the_zip_of_the_real_voice_is_what_is_heard(page, joe, tmp_path):  # noqa: F811
    open_tab(page, "Ship")
    expect(page.locator("#ship-notice")).to_contain_text("CC0", ignore_case=True)
    expect(page.locator("#ship-read")).to_have_count(0)
    expect(page.locator("#ship-which")).to_have_count(0)
    page.locator("#ship-pack").click()
    folder = unpacked(page, tmp_path)
    assert folder.name == "joe-global-30-dense-fp32"
    expect(page.locator("#ship-python")).to_contain_text('load_voice("joe-global-30-dense-fp32")')
    np.testing.assert_array_equal(
        speak(load_voice(folder), "Hi.").waveform, speak(prune(joe, PruneSpec()), "Hi.").waveform
    )


def test_the_table_fills_row_by_row_and_stop_keeps_it(page, tmp_path):  # noqa: F811
    choose_voice(page, TINY)
    open_tab(page, "Ship")
    page.locator("#ship-compare").click()
    table = page.locator("#ship-table")
    expect(table).to_contain_text("sparse fp16", timeout=PATIENCE)
    expect(page.locator("#ship-status")).to_contain_text(
        re.compile("onnx fp32: .+ … [45].%"), timeout=PATIENCE
    )
    page.locator("#ship-stop").click()
    expect(page.locator("#ship-status")).to_contain_text(
        re.compile(r"Stopped: [45] of 10 formats of tiny-vits-global-30"), timeout=PATIENCE
    )
    expect(table).to_contain_text("the same weights")
    with page.expect_download() as download:
        page.locator("#ship-csv").click()
    assert download.value.suggested_filename == "formats.csv"
    download.value.save_as(tmp_path / "formats.csv")
    assert list(pd.read_csv(tmp_path / "formats.csv")["format"])[:4] == [
        "dense",
        "dense",
        "sparse",
        "sparse",
    ]


def test_the_board_gets_a_command_and_who_is_not_logged_in_a_sentence(page, tmp_path):  # noqa: F811
    choose_voice(page, TINY)
    open_tab(page, "Ship")
    page.locator("#ship-format").get_by_label("piper").check()
    page.locator("#ship-precision").get_by_label("int8").check()
    expect(page.locator("#ship-shell")).to_contain_text(
        "python bench.py tiny-vits.onnx --threads 1,2 --json board.json"
    )
    expect(page.locator("#ship-python")).to_contain_text("global-30-piper-int8")
    page.locator("#ship-pack").click()
    folder = unpacked(page, tmp_path)
    assert {"bench.py", "tiny-vits.onnx", "tiny-vits.onnx.json"} <= {
        path.name for path in folder.iterdir()
    }
    page.locator("#ship-format").get_by_label("sparse").check()
    expect(page.locator("#ship-precision input")).to_have_count(2)
    expect(page.locator("#ship-precision input").first).to_be_checked()
    expect(page.locator("#ship-login")).to_contain_text("Not logged in")
    page.locator("#ship-repo input, #ship-repo textarea").first.fill("small")
    page.locator("#ship-push").click()
    expect(page.locator("#ship-pushing")).to_contain_text(
        "python -m vits_prune push", timeout=PATIENCE
    )
    expect(page.get_by_test_id("toast-body")).to_contain_text("Not logged in")


def test_after_a_healing_the_healed_voice_can_be_chosen(page, tmp_path):  # noqa: F811
    heal_begin(page, "20")
    expect(page.locator("#heal-status")).to_contain_text(
        re.compile(r"step \d+ of \d+, about"), timeout=PATIENCE
    )
    page.locator("#heal-stop").click()
    expect(page.locator("#heal-status")).to_contain_text("is kept", timeout=PATIENCE)
    page.locator("#heal-stop").click()
    open_tab(page, "Ship")
    healed = page.locator("#ship-which").get_by_label("pruned and healed")
    expect(healed).to_be_visible(timeout=PATIENCE)
    healed.check()
    expect(page.locator("#ship-python")).to_contain_text("global-30-healed-dense-fp32")
    page.locator("#ship-pack").click()
    voice = load_voice(unpacked(page, tmp_path))
    assert voice.recipe["healed"]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The app as on a Space, where visitors log in: (its address, the hub, a visitor's cookie)."""
    pytest.importorskip("authlib", reason="gradio[oauth] is not installed")
    itsdangerous = pytest.importorskip("itsdangerous", reason="gradio[oauth] is not installed")
    base = tmp_path_factory.mktemp("space")
    session = {
        "access_token": TOKEN, "scope": "openid profile contribute-repos", "expires_at": int(time.time()) + 3600,
        "userinfo": {"name": "V", "preferred_username": "visitor", "profile": "", "picture": ""},
    }  # fmt: skip
    signer = itsdangerous.TimestampSigner(hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest())
    cookie = signer.sign(base64.b64encode(json.dumps({"oauth_info": session}).encode())).decode()
    more = {
        "SYSTEM": "spaces", "SPACE_ID": "someone/space", "OAUTH_CLIENT_ID": "app", "OAUTH_CLIENT_SECRET": SECRET,
        "OAUTH_SCOPES": "openid profile contribute-repos",
    }  # fmt: skip
    with serving() as hub, socket.socket() as probe:
        hub.repositories[TINY] = [
            Repository(make_checkpoint(base / "tiny"), licence="cc-by-nc-4.0")
        ]
        hub.store, hub.accounts = base / "store", {TOKEN: Account("visitor")}
        hub.store.mkdir()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        url, log = f"http://127.0.0.1:{port}", base / "log"
        with running(port, hub.url, base, log, {**more, "OPENID_PROVIDER_URL": hub.url}) as process:
            wait_until_it_answers(url, process, log)
            yield url, hub, cookie


def test_a_visitor_who_is_logged_in_pushes_with_their_own_token(browser, space, tmp_path):  # noqa: F811
    url, hub, cookie = space
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    context.add_cookies([{"name": "session", "value": cookie, "url": url}])
    page = context.new_page()  # noqa: F811
    page.set_default_timeout(15_000)
    page.goto(url)
    expect(page.locator("#facts")).to_contain_text("joe", timeout=PATIENCE)
    choose_voice(page, TINY)
    open_tab(page, "Ship")
    expect(page.locator("#ship-login")).to_contain_text("Logged in as visitor")
    expect(page.locator("#ship-notice")).to_contain_text("forbids commercial use")
    page.locator("#ship-format").get_by_label("sparse").check()
    page.locator("#ship-repo input, #ship-repo textarea").first.fill("small")
    page.locator("#ship-push").click()
    expect(page.locator("#ship-pushing")).to_contain_text("tick the box", timeout=PATIENCE)
    assert "visitor/small" not in hub.repositories
    page.get_by_test_id("toast-close").click()
    page.locator("#ship-read input").check()
    page.locator("#ship-push").click()
    link = page.locator("#ship-pushing a")
    expect(link).to_have_attribute("href", f"{hub.url}/visitor/small", timeout=PATIENCE)
    saved(page, "pushed-ship", tmp_path)
    assert hub.repositories["visitor/small"][0].private
    assert {"README.md", "model.sparse.safetensors"} <= set(hub.files("visitor/small"))
    owners = {
        headers.get("authorization", "") for method, _, headers in hub.requests if method != "GET"
    }
    assert owners <= {f"Bearer {TOKEN}", ""}
    context.close()


@pytest.mark.parametrize(
    ("name", "theme", "width"),
    [("light", "light", 1360), ("dark", "dark", 1360), ("phone", "light", 390)],
)
def test_it_fits(visit, tmp_path, name, theme, width):  # noqa: F811
    page = visit(f"/?__theme={theme}", viewport={"width": width, "height": 844}, color_scheme=theme)  # noqa: F811
    choose_voice(page, TINY)
    open_tab(page, "Ship")
    page.locator("#ship-format").get_by_label("piper").check()
    page.locator("#ship-compare").click()
    expect(page.locator("#ship-table")).to_contain_text("sparse fp16", timeout=PATIENCE)
    page.locator("#ship-stop").click()
    expect(page.locator("#ship-status")).to_contain_text("Stopped", timeout=PATIENCE)
    expect(page.locator("#ship-shell")).to_contain_text("python -m piper")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    saved(page, f"{name}-ship", tmp_path)
    page.close()
