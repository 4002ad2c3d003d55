"""The real app as a process of its own, with a loopback hub and a secret of its owner; visitors."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.conftest import THREADS
from tests.ui.browsing import CHROMIUM, PATIENCE, WATCH
from tests.voices.hf_factory import edit_json, make_checkpoint
from tests.voices.loopback_hub import LoopbackHub, Repository, serving

ROOT = Path(__file__).parents[2]
TOKEN = "hf_serverownersecret"
TINY, CROWD, BERT = "someone/tiny-vits", "someone/crowd-vits", "someone/tiny-bert"


@dataclass(frozen=True)
class Server:
    """The running app."""

    url: str
    hub: LoopbackHub
    folders: dict[str, Path]
    """The checkpoints behind the hub's repositories, by id."""
    log: Path


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """`python app.py` as a Space's owner would run it, for the whole session."""
    base = tmp_path_factory.mktemp("server")
    folders = {
        TINY: make_checkpoint(base / "tiny"),
        CROWD: make_checkpoint(base / "crowd", speakers=3, seed=1),
        BERT: make_checkpoint(base / "bert", seed=2),
    }
    edit_json(folders[BERT] / "config.json", model_type="bert", architectures=["BertModel"])
    with serving() as hub, socket.socket() as probe:
        for repo_id, folder in folders.items():
            hub.repositories[repo_id] = [Repository(folder, licence="cc-by-4.0")]
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        url, log = f"http://127.0.0.1:{port}", base / "log"
        with running(port, hub.url, base, log) as process:
            wait_until_it_answers(url, process, log)
            yield Server(url, hub, folders, log)


@contextlib.contextmanager
def running(port: int, hub_url: str, base: Path, log: Path, more: dict[str, str] | None = None):
    """The app's process, with `more` in its environment."""
    (base / "tmp").mkdir()
    environment = {
        **os.environ,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(base / "hf"),
        "HF_TOKEN": TOKEN,
        "OMP_NUM_THREADS": str(
            THREADS
        ),  # as many as tests/conftest.py gives torch, so that samples may be compared to the bit
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads are slow on a busy machine
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
        "TMPDIR": str(base / "tmp"),
    }
    for name in (
        "HF_HUB_OFFLINE",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "OAUTH_CLIENT_ID",
        "SPACE_ID",
        "GRADIO_TEMP_DIR",
    ):
        environment.pop(name, None)
    environment |= more or {}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(base / "tmp", ignore_errors=True)


def wait_until_it_answers(url: str, process: subprocess.Popen, log: Path) -> None:
    give_up = time.monotonic() + 600
    while True:
        assert process.poll() is None, f"app.py ended:\n{log.read_text(errors='replace')}"
        assert time.monotonic() < give_up, (
            f"app.py does not answer:\n{log.read_text(errors='replace')}"
        )
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)


# Visitors


@pytest.fixture(scope="module")
def browser():
    """Chromium, which plays no sound before a visitor presses something."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: the page is not tested in a browser")
    with sync_playwright() as playwright:
        options = ["--headless=new", "--no-sandbox"]
        options.append("--autoplay-policy=document-user-activation-required")  # a desktop's
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser, server):
    """Open the page as a new visitor; at the end no page may have complained in its console."""
    complaints, contexts = [], []

    def visit(path="/", *, ready=True, **options):
        """Go to an address in a context of its own; wait until the page can play, if `ready`."""
        contexts.append(
            browser.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
        )
        contexts[-1].add_init_script(WATCH)
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda one: complaints.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.url + path)
        if ready:
            expect(page.locator("#stage .play")).to_be_enabled(timeout=PATIENCE)
        return page

    visit.complaints = complaints
    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(visit):
    """A page that was just opened."""
    page = visit()
    yield page
    page.context.close()
