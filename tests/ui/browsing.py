"""What a visitor does on the page in Chromium, and what comes out of its loudspeaker."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from playwright.sync_api import Page, expect
from scipy.signal import fftconvolve, resample_poly

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 120_000
"""Milliseconds that a step may take on a busy machine; nothing waits this long when it works."""
expect.set_options(timeout=15_000)

WATCH = """
window.shifts = [];
new PerformanceObserver((list) => window.shifts.push(...list.getEntries().map((one) => one.value)))
  .observe({type: 'layout-shift', buffered: true});
window.theStage = () =>
  [...document.querySelectorAll('#stage, #stage *')].map((one) => one.stage).find(Boolean);
window.record = async () => {  // from the first press on: no sound is possible before it
  while (!theStage()) await new Promise((done) => setTimeout(done, 1));
  const {context, output} = theStage();
  const tap = `registerProcessor('tap', class extends AudioWorkletProcessor {
    process([input]) {
      this.port.postMessage([currentFrame, input[0] ? input[0].slice() : new Float32Array(128)]);
      return true;
    }
  })`;
  const code = URL.createObjectURL(new Blob([tap], {type: 'text/javascript'}));
  await context.audioWorklet.addModule(code);
  const node = new AudioWorkletNode(context, 'tap'), blocks = window.blocks = [];
  node.port.onmessage = ({data}) => blocks.push(data);
  output.connect(node).connect(context.destination);
};
window.recorded = () => {
  if (!blocks.length) return [0, 0, ''];
  const first = blocks[0][0], last = blocks[blocks.length - 1][0];
  const samples = new Float32Array(last - first + 128);
  for (const [at, block] of blocks) samples.set(block, at - first);
  const bytes = new Uint8Array(samples.buffer), pieces = [];
  for (let i = 0; i < bytes.length; i += 32768) {
    pieces.push(String.fromCharCode(...bytes.subarray(i, i + 32768)));
  }
  return [first, theStage().context.sampleRate, btoa(pieces.join(''))];
};
"""
"""Runs in every page first: notes layout shifts, and can record what the stage plays."""


# Doing


def choose_voice(page: Page, name: str) -> None:
    if not page.locator("#facts").is_visible():
        more_options(page)
    box = page.locator("#voice input")
    box.fill(name)
    box.press("Enter")
    label = re.compile(re.escape(name.partition("/")[2] or name))
    expect(page.locator("#facts")).to_contain_text(label, timeout=PATIENCE)


def choose_method(page: Page, title: str) -> None:
    page.locator("#method input").click()
    page.get_by_role("option", name=title, exact=True).click()


def more_options(page: Page) -> None:
    if page.locator("#readout").is_visible():
        return
    page.get_by_role("button", name="More options").click()
    expect(page.locator("#readout")).to_be_visible()


def command(page: Page, words: str) -> None:
    """Wait until the command that does what the stage shows has some words."""
    if not page.locator("#command").is_visible():
        page.get_by_role("button", name="Copy code").click()
    code = page.locator("#command textarea")
    expect(code).to_have_value(re.compile(re.escape(words)), timeout=PATIENCE)


def number(page: Page, name: str, value: str) -> None:
    """Type a number into a control."""
    page.locator(f"#{name} input[type=number]").fill(value)
    page.keyboard.press("Tab")


def open_tab(page: Page, name: str) -> None:
    """Where the screen is narrow some tabs are under "More tabs"."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
        return
    page.get_by_role("button", name="More tabs").click()
    page.locator(".overflow-dropdown").get_by_role("button", name=name, exact=True).click()


def speak_through(page: Page, text: str = "") -> None:
    """Press Speak and wait until all is measured."""
    if text:
        page.locator("#text textarea").fill(text)
    page.locator("#speak").click()
    expect(page.locator("#status")).not_to_contain_text("Done")  # of what ran before
    done(page)


def done(page: Page) -> None:
    """Wait until the run on the stage is over, without a complaint."""
    toast = page.get_by_test_id("toast-body")
    over = page.locator("#status").filter(has_text="Done").or_(toast)
    expect(over.first).to_be_visible(timeout=PATIENCE)
    assert toast.all_inner_texts() == []


def complaint(page: Page, words: str) -> None:
    """Wait for a sentence about what cannot be done, and close it."""
    toast = page.get_by_test_id("toast-body").filter(has_text=words)
    expect(toast).to_be_visible(timeout=PATIENCE)
    assert "Traceback" not in page.content()
    assert "/tmp" not in toast.inner_text()
    toast.get_by_test_id("toast-close").click()


# Seeing and hearing


def downloaded(page: Page, name: str, **how) -> bytes:
    """Return the file behind a download link."""
    link = page.locator(f"#{name} a[download][href]").first
    link.wait_for(**{"state": "attached", "timeout": PATIENCE, **how})
    answer = page.request.get(link.evaluate("a => a.href"))
    assert answer.ok
    return answer.body()


def unzipped(page: Page, name: str, folder: Path) -> Path:
    """Unpack the zip file behind a download link; return the folder in it."""
    with zipfile.ZipFile(io.BytesIO(downloaded(page, name))) as archive:
        archive.extractall(folder)
    (found,) = folder.iterdir()
    return found


def sound(page: Page, name: str) -> tuple[np.ndarray, int]:
    """Return what a player holds: int16 samples and their rate."""
    return soundfile.read(io.BytesIO(downloaded(page, name)), dtype="int16")


def players(page: Page) -> list[tuple[np.ndarray, int]]:
    return [sound(page, f"{name}-audio") for name in ("original", "pruned")]


def saved(page: Page, name: str, folder: Path) -> None:
    """Keep a picture, in VITS_PRUNE_SCREENSHOTS where that is set."""
    folder = Path(os.environ.get("VITS_PRUNE_SCREENSHOTS") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 20_000


@dataclass(frozen=True)
class Recording:
    """What the stage's audio context played since `record()`."""

    first: int
    """Frame of the context at which it begins."""
    rate: int
    samples: np.ndarray

    @classmethod
    def of(cls, page: Page) -> Recording:
        first, rate, data = page.evaluate("recorded()")
        return cls(first, int(rate), np.frombuffer(base64.b64decode(data), np.float32))

    @property
    def onset(self) -> int:
        """Frame of the context at which the first sound was."""
        return self.first + int(np.argmax(np.abs(self.samples) > 1e-4))

    def between(self, start: float, end: float) -> np.ndarray:
        """Return the samples between two frames of the context."""
        return self.samples[int(start) - self.first : int(end) - self.first]


def frame(page: Page) -> float:
    """Return the frame that the page's audio context is at."""
    return page.evaluate("theStage().context.currentTime * theStage().context.sampleRate")


def looped(waveform: np.ndarray, rate: int, to: int, pause: float = 0.3) -> np.ndarray:
    """Return one round of what the stage plays, at the rate of an audio context."""
    heard = resample_poly(waveform, to, rate)
    return np.concatenate([heard, np.zeros(round(pause * to))]).astype(np.float32)


def fit(heard: np.ndarray, loop: np.ndarray) -> tuple[int, float]:
    """Return where in a loop the sound that was heard begins, and the cosine of the two there."""
    length = len(heard)
    twice = np.concatenate([loop, np.resize(loop, length)]).astype(float)
    products = fftconvolve(twice, heard[::-1], mode="valid")
    squares = np.concatenate([[0.0], np.cumsum(twice**2)])
    norms = np.sqrt(np.maximum(squares[length:] - squares[:-length], 1e-9))
    cosines = products / norms / max(1e-9, float(np.linalg.norm(heard)))
    best = int(cosines.argmax())
    return best, float(cosines[best])
