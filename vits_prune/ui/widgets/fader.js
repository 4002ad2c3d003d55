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
  find('.play').textContent = playing ? '\u23F8' : '\u25B6';
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
