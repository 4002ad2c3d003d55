"""The tab Export in headless Chromium: the table, the zip, and a push by a logged-in visitor."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import time

import pandas as pd
import pytest
from playwright.sync_api import expect

from tests.ui.browsing import (
    PATIENCE,
    choose_voice,
    open_tab,
    saved,
    unzipped,
)
from tests.ui.conftest import TINY, running, wait_until_it_answers
from tests.voices.hf_factory import make_checkpoint
from tests.voices.loopback_hub import Account, Repository, serving

pytestmark = pytest.mark.xdist_group("server")
TOKEN = "hf_visitorsown"
SECRET = "of the app"


def test_formats_are_compared_zipped_and_not_pushed_without_a_log_in(page, tmp_path):
    open_tab(page, "Export")
    expect(page.locator("#ship-notice")).to_contain_text("CC0", ignore_case=True)
    for name in ("read", "which"):
        expect(page.locator(f"#ship-{name}")).to_have_count(0)
    python = page.locator("#ship-python")
    expect(python).to_contain_text('load_voice("joe-global-30-dense-fp32")')
    choose_voice(page, TINY)

    page.locator("#ship-compare").click()
    table, status = page.locator("#ship-table"), page.locator("#ship-status")
    expect(table).to_contain_text("sparse fp16", timeout=PATIENCE)
    page.locator("#ship-stop").click()
    words = re.compile(r"Stopped: \d of 10 formats of tiny-vits-global-30")
    expect(status).to_contain_text(words, timeout=PATIENCE)
    expect(table).to_contain_text("the same weights")
    with page.expect_download() as download:
        page.locator("#ship-table-csv").click()
    assert download.value.suggested_filename == "formats.csv"
    download.value.save_as(tmp_path / "formats.csv")
    formats = list(pd.read_csv(tmp_path / "formats.csv")["format"])
    assert formats[:4] == ["dense", "dense", "sparse", "sparse"]

    page.locator("#ship-format").get_by_label("piper").check()
    page.locator("#ship-precision").get_by_label("int8").check()
    shell = page.locator("#ship-shell")
    expect(shell).to_contain_text("bench.py tiny-vits.onnx --threads 1,2 --json board.json")
    expect(shell).to_contain_text("python -m piper")
    expect(python).to_contain_text("global-30-piper-int8")
    page.locator("#ship-zip").click()
    files = {path.name for path in unzipped(page, "ship-file", tmp_path / "zip").iterdir()}
    assert {"bench.py", "tiny-vits.onnx", "tiny-vits.onnx.json"} <= files

    page.locator("#ship-format").get_by_label("sparse").check()
    expect(page.locator("#ship-precision input")).to_have_count(2)
    expect(page.locator("#ship-precision input").first).to_be_checked()
    expect(page.locator("#ship-login")).to_contain_text("Not logged in")
    page.locator("#ship-repo input, #ship-repo textarea").first.fill("small")
    page.locator("#ship-push").click()
    pushing = page.locator("#ship-pushing")
    expect(pushing).to_contain_text("python -m vits_prune push", timeout=PATIENCE)
    expect(page.get_by_test_id("toast-body")).to_contain_text("Not logged in")
    saved(page, "light-export", tmp_path)
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    saved(page, "phone-export", tmp_path)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """The app as on a Space, where visitors log in: (its address, the hub, a visitor's cookie)."""
    pytest.importorskip("authlib", reason="gradio[oauth] is not installed")
    itsdangerous = pytest.importorskip("itsdangerous", reason="gradio[oauth] is not installed")
    base = tmp_path_factory.mktemp("space")
    session = {
        "access_token": TOKEN,
        "scope": "openid profile contribute-repos",
        "expires_at": int(time.time()) + 3600,
        "userinfo": {"name": "V", "preferred_username": "visitor", "profile": "", "picture": ""},
    }
    signer = itsdangerous.TimestampSigner(hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest())
    cookie = signer.sign(base64.b64encode(json.dumps({"oauth_info": session}).encode())).decode()
    more = {
        "SYSTEM": "spaces",
        "SPACE_ID": "someone/space",
        "OAUTH_CLIENT_ID": "app",
        "OAUTH_CLIENT_SECRET": SECRET,
        "OAUTH_SCOPES": session["scope"],
    }
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


@pytest.mark.slow
def test_a_visitor_who_is_logged_in_pushes_with_their_own_token(browser, space, tmp_path):
    url, hub, cookie = space
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    context.add_cookies([{"name": "session", "value": cookie, "url": url}])
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.goto(url)
    expect(page.locator("#stage .play")).to_be_enabled(timeout=PATIENCE)
    choose_voice(page, TINY)
    open_tab(page, "Export")
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
    expect(link).to_have_attribute("href", f"{hub.url}/visitor/small", timeout=3 * PATIENCE)
    saved(page, "pushed-export", tmp_path)
    assert hub.repositories["visitor/small"][0].private
    assert {"README.md", "model.sparse.safetensors"} <= set(hub.files("visitor/small"))
    owners = {
        headers.get("authorization", "") for method, _, headers in hub.requests if method != "GET"
    }
    assert owners <= {f"Bearer {TOKEN}", ""}
    context.close()
