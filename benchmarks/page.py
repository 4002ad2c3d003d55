"""How quick the page is: opening, the first sound, a new sentence, a changed amount; its weight.

    python benchmarks/page.py [--runs 7] [--threads 2]

Starts `python app.py` and visits it with headless Chromium, each time in a fresh context; it needs
`chromium` and the packages of tests/requirements.txt. Sound is timed at the output of the page's
AudioContext. The rival of Speak and of a changed amount is the bare `VitsModel.forward` of the same
sentence, in a process with the server's environment, while the server is idle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from timing import describe

ROOT = Path(__file__).parents[1]
SENTENCES = [
    f"The {adjective} {noun} slid on the smooth planks this morning."
    for adjective in ("old", "red", "small", "long", "new")
    for noun in ("boat", "canoe", "sled")
]
EMPTY = "import gradio\nwith gradio.Blocks() as demo: pass\ndemo.launch(ssr_mode=False)"
WATCH = """
window.theStage = () =>
  [...document.querySelectorAll('#stage, #stage *')].map((one) => one.stage).find(Boolean);
window.sounds = () => new Promise((resolve) => {
  const samples = new Float32Array(1024);
  let pressed = 0, analyser = null;
  for (const kind of ['click', 'change']) {
    addEventListener(kind, () => { pressed = pressed || performance.now(); }, {capture: true});
  }
  const look = setInterval(() => {
    const stage = theStage();
    if (!stage) return;  // before the first press
    if (!analyser) {
      analyser = stage.context.createAnalyser();
      analyser.fftSize = samples.length;
      stage.output.connect(analyser);
    }
    analyser.getFloatTimeDomainData(samples);
    if (!pressed || !samples.some((one) => Math.abs(one) > 1e-4)) return;
    clearInterval(look);
    stage.output.disconnect(analyser);
    resolve(performance.now() - pressed);
  }, 2);
});
window.hears = (amount) => new Promise((resolve) => {
  const began = performance.now();
  const stage = document.querySelector('#stage [data-heard], #stage[data-heard]');
  const look = setInterval(() => {
    if (stage.dataset.heard !== amount) return;
    clearInterval(look);
    resolve(performance.now() - began);
  }, 2);
});
"""
PLAYABLE = "document.querySelector('#stage .play:not([disabled])') ? performance.now() : 0"


def bare(runs: int) -> None:
    """Print the seconds of the bare forward of each sentence, as JSON."""
    import torch

    from vits_prune import load_voice, speak

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    voice, found = load_voice("joe"), []
    for sentence in SENTENCES[: runs + 1]:
        spoken = speak(voice, sentence)
        ids = torch.tensor([spoken.sentences[0].ids])

        def forward(seed: int, ids: torch.Tensor = ids) -> float:
            torch.manual_seed(seed)
            with torch.no_grad():
                return voice.model(ids).waveform.shape[1] / voice.sampling_rate

        # A seed whose own draws make the sentence as long as the page's: both compute as much.
        seed = min(range(12), key=lambda one: abs(forward(one) - spoken.audio_seconds))
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            forward(seed)
            seconds.append(time.perf_counter() - began)
        found.append(statistics.median(seconds))
    print(json.dumps(found))


@contextlib.contextmanager
def serving(command: list[str], threads: int) -> Iterator[str]:
    """Run a Gradio app; yield its address."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        url = f"http://127.0.0.1:{port}"
        more = {"GRADIO_SERVER_PORT": str(port), "HF_HOME": folder, "TMPDIR": folder}
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**environment(threads), **more},
            stdout=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait()


def environment(threads: int) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path,
            "GRADIO_ANALYTICS_ENABLED": "False"}  # fmt: skip


def weight(browser, url: str, ready: str) -> int:
    """Return the bytes that opening a page transfers, without sound."""
    context = browser.new_context()
    page, urls, sizes = context.new_page(), {}, {}
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.requestWillBeSent", lambda one: urls.update(
        {one["requestId"]: one["request"]["url"]}))  # fmt: skip
    session.on("Network.loadingFinished", lambda one: sizes.update(
        {one["requestId"]: one["encodedDataLength"]}))  # fmt: skip
    page.goto(url)
    page.wait_for_selector(ready)
    page.wait_for_timeout(3_000)
    context.close()
    return round(sum(size for one, size in sizes.items() if ".wav" not in urls.get(one, "")))


def visit(browser, url: str, sentence: str, amount: str) -> dict[str, float]:
    """Open the page and time what a visitor waits for, in milliseconds."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.add_init_script(WATCH)
    page, found = context.new_page(), {}
    page.set_default_timeout(300_000)
    page.goto(url)
    found["opening to Play enabled"] = page.wait_for_function(PLAYABLE).json_value()
    status = page.locator("#status").filter(has_text="Done")
    status.wait_for()
    page.wait_for_timeout(500)

    def timed(press) -> float:
        page.evaluate("window.timed = sounds(), 0")
        press()
        return page.evaluate("timed")

    found["press of Play to sound"] = timed(page.locator("#stage .play").click)
    page.locator("#stage .play").click()
    page.wait_for_timeout(300)
    page.locator("#text textarea").fill(sentence)
    found["Speak to sound, new sentence"] = timed(page.locator("#speak").click)
    status.wait_for()
    page.locator("#stop").click()  # the row need not be made for the next amount
    page.wait_for_function("!stageRun.now")
    page.wait_for_timeout(1_000)
    page.evaluate(f"window.timed = hears('{amount}'), 0")
    page.locator("#amount input[type=range]").fill(amount)
    found["changed amount to its sound"] = page.evaluate("timed")
    context.close()
    return found


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7, help=f"at most {len(SENTENCES) - 1}")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return bare(options.runs)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright, serving(["app.py"], options.threads) as url:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless=new", "--no-sandbox"]
        )
        first = browser.new_page()
        first.goto(url)
        made = "document.querySelectorAll('.track-marks i.made').length >= 20"
        first.wait_for_function(made, timeout=600_000)
        first.close()
        visits = [
            visit(browser, url, sentence, f"{0.31 + 0.05 * (i % 7):.2f}")
            for i, sentence in enumerate(SENTENCES[: options.runs + 1])
        ][1:]
        ours = weight(browser, url, "#stage .play:not([disabled])")
        command = [sys.executable, __file__, "--bare", "--runs", str(options.runs)]
        done = subprocess.run(
            command, env=environment(options.threads), stdout=subprocess.PIPE, check=True, text=True
        )
        forward = [1e3 * seconds for seconds in json.loads(done.stdout)][1:]
        with serving(["-c", EMPTY], options.threads) as empty:
            theirs = weight(browser, empty, "gradio-app")
        browser.close()
    print(f"{options.runs} visits, {options.threads} threads; median (spread), milliseconds")
    for name in visits[0]:
        print(f"{name}: {describe([one[name] for one in visits])}")
    print(f"bare forward of the same sentence: {describe(forward)}")
    for name in ("Speak to sound, new sentence", "changed amount to its sound"):
        over = [one[name] - 1.3 * rival for one, rival in zip(visits, forward, strict=True)]
        print(f"{name}, beyond 1.3 times the bare forward: {describe(over)}")
    print(f"page without sound: {ours / 1e6:.2f} MB, an empty Gradio page {theirs / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
