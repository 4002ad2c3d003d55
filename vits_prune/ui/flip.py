"""The switch that flips between the two players at the same position: plays both in step and crossfades from one to the other."""

from __future__ import annotations

import gradio as gr

TEMPLATE = """
<div class="flip" role="group" aria-label="Flip between original and pruned">
  <button type="button" class="play" disabled aria-label="Play both in step">&#9654;</button>
  <button type="button" class="which" role="switch" aria-checked="false" disabled>
    <span class="side original">Original</span><span class="side pruned">Pruned</span>
  </button>
  <input class="position" type="range" min="0" max="1" step="0.001" value="0" disabled aria-label="Position">
  <output class="time">0.0 s</output>
  <p class="hint">${value.hint}</p>
</div>
"""

STYLE = """
.flip { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; padding: 10px; border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-lg); background: var(--block-background-fill); }
.flip button { min-height: 40px; min-width: 44px; border-radius: var(--radius-md); border: 1px solid var(--border-color-primary);
  background: var(--button-secondary-background-fill); color: var(--body-text-color); cursor: pointer; }
.flip button:disabled, .flip input:disabled { opacity: 0.45; cursor: not-allowed; }
.flip button:focus-visible, .flip input:focus-visible { outline: 3px solid #2f7ed8; outline-offset: 2px; }
.which { display: flex; padding: 3px; overflow: hidden; }
.side { padding: 6px 12px; border-radius: var(--radius-sm); }
.which[aria-checked="false"] .original { background: #2f7ed8; color: white; }
.which[aria-checked="true"] .pruned { background: #c2410c; color: white; }
.position { flex: 1 1 140px; min-width: 100px; accent-color: #2f7ed8; }
.time { font-variant-numeric: tabular-nums; min-width: 4em; }
.hint { flex-basis: 100%; margin: 0; font-size: 0.85em; color: var(--body-text-color-subdued); }
"""

# The sounds are those of the two players: the files that their download links name.
SCRIPT = """
const FADE = 0.012;
let context = null, buffers = null, loaded = '', sources = [], gains = [], startedAt = 0, offset = 0, playing = false, frame = 0;
const find = (name) => element.querySelector(name);
const link = (id) => document.querySelector('#' + id + ' a[download]');
const showPruned = () => find('.which').getAttribute('aria-checked') === 'true';
const length = () => (buffers ? Math.min(buffers[0].duration, buffers[1].duration) : 0);
const now = () => (playing ? offset + context.currentTime - startedAt : offset);

async function load() {
  const urls = ['original-audio', 'pruned-audio'].map((id) => link(id) && link(id).href);
  if (!urls[0] || !urls[1]) return false;
  if (loaded === urls.join()) return true;
  context = context || new (window.AudioContext || window.webkitAudioContext)();
  buffers = await Promise.all(urls.map(async (url) => context.decodeAudioData(await (await fetch(url)).arrayBuffer())));
  loaded = urls.join();
  return true;
}
function silence() {
  sources.forEach((source) => { source.onended = null; try { source.stop(); } catch (error) {} });
  sources = [];
  cancelAnimationFrame(frame);
}
function pause() {
  offset = Math.min(now(), length());
  playing = false;
  silence();
  draw();
}
function start() {
  silence();
  if (offset >= length() - 0.02) offset = 0;
  gains = [0, 1].map((which) => {
    const gain = context.createGain();
    gain.gain.value = (which === 1) === showPruned() ? 1 : 0;
    gain.connect(context.destination);
    return gain;
  });
  sources = buffers.map((buffer, which) => {
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(gains[which]);
    source.start(context.currentTime, offset);
    return source;
  });
  startedAt = context.currentTime;
  playing = true;
  draw();
}
function draw() {
  const play = find('.play');
  if (!play) return;
  if (playing && now() >= length()) { playing = false; offset = 0; silence(); }
  play.textContent = playing ? '\\u23F8' : '\\u25B6';
  play.setAttribute('aria-label', playing ? 'Pause' : 'Play both in step');
  find('.position').max = Math.max(length(), 0.001);
  find('.position').value = now();
  find('.time').textContent = now().toFixed(1) + ' s';
  if (playing) frame = requestAnimationFrame(draw);
}
function flip() {
  const which = find('.which');
  which.setAttribute('aria-checked', String(!showPruned()));
  element.dataset.side = showPruned() ? 'pruned' : 'original';
  if (!playing) return;
  gains.forEach((gain, index) => {
    const target = (index === 1) === showPruned() ? 1 : 0;
    gain.gain.setTargetAtTime(target, context.currentTime, FADE);
  });
}
function refresh() {
  silence();
  playing = false;
  offset = 0;
  const able = Boolean(props.value && props.value.aligned);
  ['.play', '.which', '.position'].forEach((name) => { find(name).disabled = !able; });
  draw();
}
element.addEventListener('click', async (event) => {
  if (event.target.closest('.which') && !find('.which').disabled) flip();
  if (event.target.closest('.play') && !find('.play').disabled) {
    if (playing) return pause();
    if (!(await load())) return;
    await context.resume();
    start();
  }
});
element.addEventListener('input', async (event) => {
  if (!event.target.matches('.position')) return;
  if (!(await load())) return;
  offset = Number(event.target.value);
  if (playing) start(); else draw();
});
watch('value', refresh);
refresh();
"""

WAITING = {
    "aligned": False,
    "hint": "Speak first. With timing “locked” you can then flip between the two voices while they play.",
}
LOCKED = {
    "aligned": True,
    "hint": "Both play in step: flip with the switch (Tab, then Space), move with the arrow keys.",
}
OWN = {
    "aligned": False,
    "hint": "The two voices have their own durations. Set timing to “locked” to flip between them in place.",
}


def flip_switch() -> gr.HTML:
    """The component; its value is WAITING, LOCKED or OWN."""
    return gr.HTML(
        value=WAITING, html_template=TEMPLATE, css_template=STYLE, js_on_load=SCRIPT, elem_id="flip"
    )
