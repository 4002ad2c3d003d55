"""The fader: one sentence spoken at a row of amounts, looped, crossfading from one rendition to the next as the amount is dragged.

All renditions share the original's durations and are started together, each through a gain of its own, so moving the fader only moves
gains: nothing is decoded, started or stopped, and there is neither a click nor a gap.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import gradio as gr

from vits_prune.synthesis.speak import Speech

TEMPLATE = """
<div class="fader" role="group" aria-label="Pruning as one motion">
  <div class="top">
    <button type="button" class="play" disabled aria-label="Play">&#9654;</button>
    <output class="amount">–</output>
    <div class="numbers" aria-live="polite"></div>
  </div>
  <input class="knob" type="range" min="0" max="1" step="0.01" value="0" disabled aria-label="Amount that is heard">
  <canvas class="marks" height="26" aria-hidden="true"></canvas>
  <p class="hint">${value.hint}</p>
</div>
"""

STYLE = """
.fader { display: flex; flex-direction: column; gap: 8px; padding: 12px; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-lg); background: var(--block-background-fill); }
.top { display: flex; flex-wrap: wrap; gap: 14px; align-items: center; }
.fader button { min-height: 44px; min-width: 48px; border-radius: var(--radius-md); border: 1px solid var(--border-color-primary);
  background: var(--button-secondary-background-fill); color: var(--body-text-color); cursor: pointer; }
.fader button:disabled, .fader input:disabled { opacity: 0.45; cursor: not-allowed; }
.fader button:focus-visible, .fader input:focus-visible { outline: 3px solid #2f7ed8; outline-offset: 2px; }
.amount { font-size: 1.6em; font-weight: 700; font-variant-numeric: tabular-nums; min-width: 4em; color: var(--body-text-color); }
.numbers { display: flex; flex-wrap: wrap; gap: 4px 16px; font-variant-numeric: tabular-nums; color: var(--body-text-color); }
.knob { width: 100%; height: 36px; accent-color: #e4572e; touch-action: pan-y; }
.marks { width: 100%; height: 26px; }
.hint { margin: 0; font-size: 0.85em; color: var(--body-text-color-subdued); }
"""

SCRIPT = """
const FADE = 0.02;
let context = null, buffers = [], sources = [], gains = [], playing = false, made = '';
const find = (name) => element.querySelector(name);
const points = () => (props.value && props.value.points) || [];

function bytes(text) { return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer; }
async function load() {
  const key = points().map((point) => point.wav.length + ':' + point.amount).join() + (props.value.key || '');
  if (made === key) return;
  context = context || new (window.AudioContext || window.webkitAudioContext)();
  buffers = await Promise.all(points().map((point) => context.decodeAudioData(bytes(point.wav))));
  made = key;
}
// Between two neighbouring renditions the levels follow a cosine: the sounds are alike, so amplitudes add up, and the sum stays level.
function weights(amount) {
  const list = points(), out = list.map(() => 0);
  let right = list.findIndex((point) => point.amount >= amount);
  if (right < 0) right = list.length - 1;
  const left = Math.max(0, right - 1);
  const span = list[right].amount - list[left].amount;
  const share = span > 0 ? Math.min(1, Math.max(0, (amount - list[left].amount) / span)) : 1;
  const smooth = 0.5 - 0.5 * Math.cos(Math.PI * share);
  out[left] += 1 - smooth;
  out[right] += smooth;
  return out;
}
function setGains(at) {
  weights(Number(find('.knob').value)).forEach((weight, index) => {
    if (!gains[index]) return;
    if (at === 0) gains[index].gain.value = weight;
    else gains[index].gain.setTargetAtTime(weight, context.currentTime, FADE);
  });
}
function start() {
  gains = buffers.map(() => { const gain = context.createGain(); gain.connect(context.destination); return gain; });
  setGains(0);
  const when = context.currentTime + 0.05, loop = Math.min(...buffers.map((buffer) => buffer.duration));
  sources = buffers.map((buffer, index) => {
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.loop = true;
    source.loopEnd = loop;
    source.connect(gains[index]);
    source.start(when);
    return source;
  });
  playing = true;
}
function stop() {
  sources.forEach((source) => { try { source.stop(); } catch (error) {} });
  sources = [];
  playing = false;
}
function show() {
  const able = points().length > 0, knob = find('.knob');
  find('.play').disabled = !able;
  knob.disabled = !able;
  find('.play').textContent = playing ? '\\u23F8' : '\\u25B6';
  find('.play').setAttribute('aria-label', playing ? 'Pause' : 'Play');
  element.dataset.playing = String(playing);
  if (!able) return;
  const amount = Number(knob.value), list = points();
  const nearest = list.reduce((a, b) => (Math.abs(b.amount - amount) < Math.abs(a.amount - amount) ? b : a));
  find('.amount').textContent = Math.round(100 * amount) + '%';
  find('.numbers').replaceChildren(...Object.entries(nearest.numbers).map(([name, value]) => {
    const span = document.createElement('span');
    span.textContent = name + ' ' + value;
    return span;
  }));
  element.dataset.gains = weights(amount).map((weight) => weight.toFixed(3)).join();
}
function drawMarks() {
  const canvas = find('.marks'), list = points();
  if (!canvas || !list.length) return;
  canvas.width = canvas.clientWidth;
  const pen = canvas.getContext('2d'), low = list[0].amount, high = list[list.length - 1].amount;
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = '#8a8f98';
  pen.font = '11px system-ui';
  pen.textAlign = 'center';
  list.forEach((point) => {
    const x = 8 + (canvas.width - 16) * (high > low ? (point.amount - low) / (high - low) : 0);
    pen.fillRect(x - 0.5, 0, 1, 6);
    pen.fillText(Math.round(100 * point.amount), x, 20);
  });
}
function refresh() {
  stop();
  const list = points(), knob = find('.knob');
  if (list.length) {
    knob.min = list[0].amount;
    knob.max = list[list.length - 1].amount;
    knob.value = list[0].amount;
  }
  show();
  drawMarks();
}
element.addEventListener('input', (event) => {
  if (!event.target.matches('.knob')) return;
  if (playing) setGains(1);
  show();
});
element.addEventListener('click', async (event) => {
  if (!event.target.closest('.play') || find('.play').disabled) return;
  if (playing) stop();
  else { await load(); await context.resume(); start(); }
  show();
});
new ResizeObserver(drawMarks).observe(element);
watch('value', refresh);
refresh();
"""

WAITING: dict[str, Any] = {
    "points": [],
    "hint": "Press the button above: the text is spoken at a row of amounts, then drag from one to the next.",
}


def fader() -> gr.HTML:
    """The component; its value is WAITING or what `fader_value` makes."""
    return gr.HTML(
        value=WAITING,
        html_template=TEMPLATE,
        css_template=STYLE,
        js_on_load=SCRIPT,
        elem_id="fader",
    )


def fader_value(
    amounts: Sequence[float], speeches: Sequence[Speech], numbers: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """Renditions of one text at ascending amounts, all with the same durations, and the numbers to show beside each."""
    points = [
        {"amount": round(amount, 4), "wav": _wav(speech), "numbers": shown}
        for amount, speech, shown in zip(amounts, speeches, numbers, strict=True)
    ]
    return {
        "points": points,
        "hint": "Drag, or use the arrow keys: the sentence loops and pruning is heard as one motion.",
    }


def _wav(speech: Speech) -> str:
    """A 16-bit WAV as base64, to travel inside the component's value."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, speech.pcm16(), speech.sampling_rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()
