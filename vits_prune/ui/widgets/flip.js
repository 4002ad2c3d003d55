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
  play.textContent = playing ? '\u23F8' : '\u25B6';
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
