const FADE = 0.02, WAIT = 20000;
let context = null, buffers = {}, sources = [], gains = {}, heard = new Set(), on = '', playing = false;
let shown = '', sent = null, loading = 0;
const find = (name) => element.querySelector(name);
const all = (name) => [...element.querySelectorAll(name)];
const now = () => props.value || {};
const abx = () => now().kind === 'abx';
const needed = () => (abx() ? heard.has('X') && heard.size > 1 : heard.size > 1);

// All sounds of a trial loop in step, and one is loud: changing from one to another keeps the position, and equal sounds add up to the same level.
function start() {
  stop();
  const when = context.currentTime + 0.03, list = Object.entries(buffers);
  const loop = Math.min(...list.map(([, buffer]) => buffer.duration));
  for (const [name, buffer] of list) {
    const gain = gains[name] = context.createGain(), source = context.createBufferSource();
    gain.gain.value = name === on ? 1 : 0;
    source.buffer = buffer;
    source.loop = true;
    source.loopEnd = loop;
    source.connect(gain).connect(context.destination);
    source.start(when);
    sources.push(source);
  }
  playing = true;
  document.querySelector('#stage .play[aria-label="Pause"]')?.click();  // one sound at a time
}
function stop() {
  for (const source of sources) source.stop();
  sources = [];
  playing = false;
}
async function choose(name) {
  if (now().state !== 'trial' || !buffers[name]) return;
  on = name;
  heard.add(name);
  await context.resume();
  if (!playing) start();
  else for (const [other, gain] of Object.entries(gains)) {
    const level = gain.gain, at = context.currentTime;
    level.cancelScheduledValues(at);
    level.setValueAtTime(level.value, at);
    level.linearRampToValueAtTime(other === name ? 1 : 0, at + FADE);
  }
  paint();
}
async function load() {
  const value = now(), mine = ++loading, names = Object.keys(value.sounds);
  context = context || new (window.AudioContext || window.webkitAudioContext)();
  const again = playing;
  stop();
  buffers = {};
  heard = new Set();
  on = '';
  paint();
  try {
    const made = await Promise.all(names.map(async (name) => {
      const answer = await fetch(value.sounds[name].url);
      if (!answer.ok) throw new Error(answer.status);
      return context.decodeAudioData(await answer.arrayBuffer());
    }));
    if (mine !== loading) return;
    buffers = Object.fromEntries(names.map((name, index) => [name, made[index]]));
    say(value.note || '');
    if (again) choose(abx() ? 'X' : 'A');
  } catch (error) {
    if (mine === loading) say('The sounds did not arrive. Trying again …');
    setTimeout(() => { if (mine === loading) load(); }, 2000);
  }
  paint();
}
function say(text) { find('.say').textContent = text; }
function paint() {
  const ready = Object.keys(buffers).length > 0;
  for (const button of all('[data-sound]')) {
    button.hidden = button.dataset.sound === 'X' && !abx();
    button.disabled = !ready;
    button.setAttribute('aria-pressed', String(playing && button.dataset.sound === on));
  }
  for (const button of all('[data-answer]')) {
    const side = button.dataset.answer, key = side === 'A' ? 1 : 2;
    button.textContent = abx() ? `X is ${side} (${key})` : `${side} is better (${key})`;
    button.disabled = !ready || !needed() || sent !== null;
  }
  find('.pause').textContent = playing ? 'Pause' : 'Play';
  find('.pause').disabled = !ready;
  find('.listen').dataset.playing = playing ? on : '';
}
// An answer may get lost on the way: it can then be given again, and the server counts it once.
function send(data) {
  if (sent) return;
  sent = setTimeout(() => { sent = null; say('No reply yet. If it does not come, answer again.'); paint(); }, WAIT);
  say('The next trial is being made …');
  paint();
  trigger('click', { test: now().test, ...data });
}
function answer(side) {
  if (now().state !== 'trial' || sent) return;
  if (!needed()) { say(abx() ? 'Listen to X first, and to A or B.' : 'Listen to both first.'); return; }
  send({ trial: now().trial, answer: side });
}
function refresh() {
  const value = now(), key = JSON.stringify([value.test, value.trial, value.state]);
  clearTimeout(sent);
  sent = null;
  find('.listen').dataset.state = value.state || 'idle';
  find('.hint').hidden = Boolean(value.state);
  find('.trial').hidden = value.state !== 'trial';
  find('.result').hidden = value.state !== 'result';
  if (value.state !== 'trial') stop();
  if (key === shown) { if (value.state === 'trial') paint(); return; }
  shown = key;
  if (value.state === 'trial') {
    find('.count').textContent = `Trial ${value.trial} of ${value.of}`;
    find('progress').value = (value.trial - 1) / value.of;
    say('The sounds are being loaded …');
    load();
    if (value.trial === 1) find('.listen').scrollIntoView({ block: 'nearest' });
  } else if (value.state === 'result') {
    find('.sentence').textContent = value.sentence;
    find('.how').textContent = value.how || '';
    find('.drawing').replaceChildren(...(value.curve ? [curve(value)] : value.share ? [share(value)] : []));
    find('.sentence').focus();
  }
}

const HEIGHT = 280, LEFT = 48, RIGHT = 16, TOP = 12, BOTTOM = 28;
let WIDTH = 720;
function make(name, attributes, text = '') {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}
function picture(title, height) {
  WIDTH = Math.max(300, Math.min(720, find('.drawing').clientWidth));
  return make('svg', { viewBox: `0 0 ${WIDTH} ${height}`, role: 'img', 'aria-label': title });
}
const percent = (share) => `${Number((100 * share).toPrecision(3))}%`;
function curve(value) {
  const last = value.curve[value.curve.length - 1][0], svg = picture(value.sentence, HEIGHT);
  const x = (amount) => LEFT + (WIDTH - LEFT - RIGHT) * Math.min(1, amount / last);
  const y = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share);
  const line = (kind, x1, y1, x2, y2) => svg.append(make('line', { class: kind, x1, y1, x2, y2 }));
  const label = (text, at, from, anchor) => svg.append(make('text', { x: at, y: from, 'text-anchor': anchor }, text));
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    line(share === 0.5 ? 'guess' : 'axis', LEFT, y(share), WIDTH - RIGHT, y(share));
    label(percent(share), LEFT - 6, y(share) + 4, 'end');
  }
  for (let amount = 0; amount <= last + 1e-9; amount += 0.2) label(percent(Math.round(100 * amount) / 100), x(amount), HEIGHT - 8, 'middle');
  const edge = [...value.curve.map((row) => [row[0], row[3]]), ...value.curve.map((row) => [row[0], row[2]]).reverse()];
  svg.append(make('polygon', { class: 'band', points: edge.map(([a, s]) => `${x(a)},${y(s)}`).join(' ') }));
  svg.append(make('polyline', { class: 'line', points: value.curve.map((row) => `${x(row[0])},${y(row[1])}`).join(' ') }));
  for (const point of value.points) {
    line('bar', x(point.amount), y(point.low), x(point.amount), y(point.high));
    const dot = make('circle', { class: 'dot', cx: x(point.amount), cy: y(point.right / point.of), r: 2.5 + Math.min(5, point.of / 2) });
    dot.append(make('title', {}, `${percent(point.amount)}: ${point.right} of ${point.of} right`));
    svg.append(dot);
  }
  const [middle, low, high] = value.threshold;
  if (middle <= last) {
    line('threshold', x(low), y(0.75), x(high), y(0.75));
    line('threshold', x(middle), y(0.75) - 8, x(middle), y(0.75) + 8);
  }
  return svg;
}
function share(value) {
  const svg = picture(value.sentence, 84), [hits, of, low, high] = value.share;
  const x = (part) => LEFT + (WIDTH - 2 * LEFT) * part;
  for (const at of [0, 0.5, 1]) svg.append(make('line', { class: at === 0.5 ? 'guess' : 'axis', x1: x(at), x2: x(at), y1: 24, y2: 60 }));
  svg.append(make('line', { class: 'threshold', x1: x(low), x2: x(high), y1: 42, y2: 42 }));
  svg.append(make('circle', { class: 'dot', cx: x(hits / of), cy: 42, r: 7 }));
  svg.append(make('text', { x: 0, y: 14 }, value.names[1]));
  svg.append(make('text', { x: WIDTH, y: 14, 'text-anchor': 'end' }, value.names[0]));
  svg.append(make('text', { x: x(0.5), y: 78, 'text-anchor': 'middle' }, `${hits} of ${of}, bar: 95%`));
  return svg;
}

element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button || button.disabled) return;
  if (button.dataset.sound) choose(button.dataset.sound);
  else if (button.dataset.answer) answer(button.dataset.answer);
  else if (button.matches('.end')) send({ end: true });
  else if (playing) { stop(); paint(); } else choose(on || (abx() ? 'X' : 'A'));
});
document.addEventListener('keydown', (event) => {
  const typing = event.target.closest?.('input:not([type=radio], [type=checkbox], [type=range]), textarea, [contenteditable=true]');
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (now().state !== 'trial' || element.offsetParent === null) return;
  const key = event.key.toUpperCase(), side = { 1: 'A', 2: 'B' }[key];
  if (!side && !'ABX'.includes(key)) return;
  event.preventDefault();
  if (side) answer(side);
  else choose(key);
});
watch('value', refresh);
refresh();
