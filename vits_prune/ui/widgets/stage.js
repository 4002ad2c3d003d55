// One sound at a time loops; another amount or the other voice takes over at the same position.
const FADE = 0.015, PAUSE = 0.3, EDGE = 0.005, SETTLED = 300;
const find = (name) => element.querySelector(name);
const slider = () => document.querySelector('#amount input[type=range]');
const making = () => !(props.value && props.value.points && props.value.points.length);  // a new row has no sound yet
const value = () => ({points: [], amounts: [], ...(making() ? earlier : props.value)});  // till then the one before sounds
const sounds = new Map();  // by address: {buffer, levels}
let earlier = null, context = null, output = null, current = null, original = false, played = '', settling = 0, drawing = 0, ticking = 0, moving = null, drawn = '';

const amount = () => Number(slider() ? slider().value : value().amount || 0);
const ready = (point) => point && point.sound && sounds.get(point.sound.url);
function nearest(list) {
  return list.reduce((a, b) => (!a || Math.abs(b.amount - amount()) < Math.abs(a.amount - amount()) ? b : a), null);
}
const heard = () => (original ? {sound: value().original} : nearest(value().points.filter(ready)));

// Loading

function audio() {  // at the rate of the voice: a browser's own way to another rate changes the sound
  const sound = ready(heard()), sampleRate = sound ? sound.buffer.sampleRate : 22050;
  if (context && (current || context.sampleRate === sampleRate)) return context;
  if (context) context.close();
  context = new (window.AudioContext || window.webkitAudioContext)({sampleRate});
  output = context.createGain();
  output.connect(context.destination);
  element.stage = {context, output};
  return context;
}
async function load(sound) {
  if (!sound || sounds.has(sound.url)) return;
  const view = new DataView(await (await fetch(sound.url)).arrayBuffer());  // 16-bit WAV
  let at = 12;
  while (view.getUint32(at) !== 0x64617461) at += 8 + view.getUint32(at + 4, true);  // "data"
  const raw = new Int16Array(view.buffer, at + 8, view.getUint32(at + 4, true) / 2);
  const rate = view.getUint32(24, true), edge = Math.round(EDGE * rate);
  const buffer = new AudioBuffer({length: raw.length + Math.round(PAUSE * rate), sampleRate: rate});
  const data = buffer.getChannelData(0);
  for (let i = 0; i < raw.length; i++) data[i] = raw[i] / 32768;
  for (let i = 0; i < edge; i++) {  // no click where the loop closes
    data[i] *= i / edge;
    data[raw.length - 1 - i] *= i / edge;
  }
  sounds.set(sound.url, {buffer, seconds: raw.length / rate, samples: raw.length});
}
async function loadAll(mine) {
  if (making()) return;
  const list = [...value().points].sort((a, b) => Math.abs(a.amount - amount()) - Math.abs(b.amount - amount()));
  const wanted = [list[0] && list[0].sound, value().original, ...list.slice(1).map((point) => point.sound)];
  for (const sound of wanted) {
    if (mine !== props.value) return;
    try { await load(sound); } catch (error) { continue; }  // a closed connection: the next value comes
    show();
    if (sound === wanted[0] && value().play && value().play !== played) {
      played = value().play;
      if (window.stageRun.now) window.stageRun.now.heard = true;
      if (current) pause();  // it begins at the beginning
      await audio().resume();
      play();
    } else if (current) take();
  }
  const used = new Set(wanted.filter(Boolean).map((sound) => sound.url));
  if (current) used.add(current.url);
  for (const url of sounds.keys()) if (!used.has(url)) sounds.delete(url);
}

// Playing

function position(now = context.currentTime) {  // share of the loop, 0 to 1
  const {buffer, at, from} = current, length = buffer.duration;
  return (((now - at + from) % length) + length) % length / length;
}
const whole = (seconds) => Math.round(seconds * context.sampleRate) / context.sampleRate;  // samples are not interpolated
function begin(sound) {  // where another sound is, if one plays
  const {buffer} = sounds.get(sound.url), source = context.createBufferSource(), gain = context.createGain();
  const at = whole(context.currentTime + 0.01), from = current ? whole(position(at) * buffer.duration) : 0;
  source.buffer = buffer;
  source.loop = true;
  gain.gain.setValueAtTime(0, at);
  gain.gain.linearRampToValueAtTime(1, at + FADE);
  source.connect(gain).connect(output);
  source.start(at, from);
  current = {url: sound.url, buffer, source, gain, at, from};
}
function end(one) {
  const at = context.currentTime + 0.01;
  one.gain.gain.cancelScheduledValues(at);
  one.gain.gain.setValueAtTime(1, at);
  one.gain.gain.linearRampToValueAtTime(0, at + FADE);
  one.source.stop(at + FADE + 0.01);
}
function take() {  // let what is wanted take over from what sounds
  const wanted = heard();
  if (!current || !wanted || !ready(wanted) || wanted.sound.url === current.url) return;
  const before = current;
  begin(wanted.sound);
  end(before);
  follow();
  tick();
}
function play() {
  if (current || !ready(heard())) return;
  begin(heard().sound);
  follow();
  tick();
  clearInterval(ticking);
  ticking = setInterval(tick, 100);
  show();
}
function pause() {
  if (!current) return;
  end(current);
  current = null;
  clearInterval(ticking);
  show();
}
function follow() {  // the browser moves the line over the pictures; nothing is computed frame by frame
  const known = sounds.get(current.url), end = `translateX(${find('.strips').clientWidth}px)`;
  const way = [{transform: 'none'}, {transform: end, offset: known.seconds / current.buffer.duration}, {transform: end}];
  if (moving) moving.cancel();
  moving = find('.head').animate(way, {duration: 1000 * current.buffer.duration, iterations: Infinity});
}
window.addEventListener('resize', () => { if (current) { follow(); tick(); } });
function tick() {
  if (!current) return;
  const known = sounds.get(current.url), seconds = position() * current.buffer.duration;
  const lag = 1000 * seconds - moving.currentTime % (1000 * current.buffer.duration);
  if (Math.abs(lag) > 30) moving.currentTime += lag;
  find('.time').textContent = `${Math.min(seconds, known.seconds).toFixed(1)} of ${known.seconds.toFixed(1)} s`;
}
function choose(side) {
  original = side;
  take();
  show();
}

// Seeing

const SIZE = 1024, ROWS = 96, TOP = 8000;
const COS = Float32Array.from({length: SIZE}, (_, i) => Math.cos(2 * Math.PI * i / SIZE));
const SIN = Float32Array.from({length: SIZE}, (_, i) => Math.sin(2 * Math.PI * i / SIZE));
function levels(url) {  // decibels, [columns][ROWS], low frequencies first
  const known = sounds.get(url);
  if (known.levels) return known.levels;
  const data = known.buffer.getChannelData(0), rate = known.buffer.sampleRate, columns = 360;
  const out = [], re = new Float32Array(SIZE), im = new Float32Array(SIZE);
  for (let column = 0; column < columns; column++) {
    const start = Math.round(column / columns * known.samples) - SIZE / 2;
    for (let i = 0; i < SIZE; i++) { re[i] = (data[start + i] || 0) * (0.5 - 0.5 * COS[i]); im[i] = 0; }
    fft(re, im);
    const rows = new Float32Array(ROWS);
    for (let row = 0; row < ROWS; row++) {
      const from = row / ROWS * TOP / rate * SIZE, to = (row + 1) / ROWS * TOP / rate * SIZE;
      let power = 0;
      for (let bin = Math.floor(from); bin <= Math.floor(to); bin++) power = Math.max(power, re[bin] ** 2 + im[bin] ** 2);
      rows[row] = 10 * Math.log10(power + 1e-9) - 20 * Math.log10(SIZE / 4);
    }
    out.push(rows);
  }
  return (known.levels = out);
}
function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
  }
  for (let size = 2; size <= n; size <<= 1) {
    const step = n / size;
    for (let i = 0; i < n; i += size) {
      for (let k = 0; k < size / 2; k++) {
        const wr = COS[k * step], wi = -SIN[k * step], a = i + k, b = a + size / 2;
        const tr = re[b] * wr - im[b] * wi, ti = re[b] * wi + im[b] * wr;
        re[b] = re[a] - tr; im[b] = im[a] - ti; re[a] += tr; im[a] += ti;
      }
    }
  }
}
const heat = (x) => [255 * Math.min(1, 2.2 * x), 255 * Math.max(0, 1.7 * x - 0.7), 255 * (x < 0.45 ? 1.5 * x : Math.max(0.25, 1.1 - x))];
const change = (x) => (x > 0 ? [60 + 195 * x, 60 + 60 * x, 60] : [60, 60 - 80 * x, 60 - 195 * x]);
function paint(canvas, columns, colour) {
  canvas.width = columns.length;
  const pen = canvas.getContext('2d'), image = pen.createImageData(columns.length, ROWS);
  columns.forEach((rows, x) => rows.forEach((level, y) => {
    const at = 4 * ((ROWS - 1 - y) * columns.length + x), [r, g, b] = colour(level);
    image.data.set([r, g, b, 255], at);
  }));
  canvas.height = ROWS;
  pen.putImageData(image, 0, 0);
}
function draw() {
  const point = nearest(value().points.filter(ready)), first = value().original;
  const now = `${first && sounds.has(first.url) ? first.url : ''}|${point ? point.sound.url : ''}`;
  if (now === drawn) return;
  drawn = now;
  const [top, middle, bottom] = element.querySelectorAll('canvas');
  const shade = (level) => heat(Math.min(1, Math.max(0, (level + 85) / 75)));
  const a = first && sounds.has(first.url) && levels(first.url), b = point && levels(point.sound.url);
  for (const canvas of [top, middle, bottom]) canvas.width = 1;  // empties it
  if (a) paint(top, a, shade);
  if (b) paint(middle, b, shade);
  bottom.parentElement.hidden = !value().aligned;
  if (a && b && value().aligned) {
    const limit = (level) => Math.max(-75, level);
    paint(bottom, b.map((rows, x) => rows.map((level, y) => limit(level) - limit(a[x][y]))), (level) => change(Math.max(-1, Math.min(1, level / 30))));
  }
}
function show() {
  const points = value().points, able = points.some(ready), point = nearest(points.filter(ready));
  for (const name of ['.play', '.which', '.hold']) find(name).disabled = !able && !current;
  find('.play b').textContent = current ? 'Pause' : 'Play';
  find('.play span').textContent = current ? '❚❚' : '▶';
  find('.play').setAttribute('aria-label', current ? 'Pause' : 'Play');
  find('.which').setAttribute('aria-checked', String(!original));
  const healed = value().healed ? ', healed' : '', there = point && Math.abs(point.amount - amount()) < 1e-6;
  find('.amount').textContent = `${Math.round(100 * amount())}%${there ? healed : ''}`;
  find('.pruned-name').textContent = point ? `Pruned ${Math.round(100 * point.amount)}%${healed}` : 'Pruned';
  find('.head').hidden = !current;
  player('original', value().original, 'Original', 'original.wav');
  const percent = point ? Math.round(100 * point.amount) : 0, name = value().healed ? 'Pruned and healed' : 'Pruned';
  player('pruned', point && point.sound, `${name}, ${percent}%`, `pruned-${percent}.wav`);
  find('.words').textContent = point ? point.words : '';
  element.dataset.heard = current ? (original ? 'original' : String(point ? point.amount : '')) : '';
  marks();
  clearTimeout(drawing);
  drawing = setTimeout(draw, 0);  // after the buttons: they are what is waited for
}
function player(side, sound, name, file) {
  const box = find(`#${side}-audio`), link = box.querySelector('a'), audio = box.querySelector('audio');
  if (!sound || making()) {  // nothing of the sentence before
    if (link.hasAttribute('href')) {
      link.removeAttribute('href');
      audio.removeAttribute('src');
      audio.load();
    }
    box.querySelector('figcaption').textContent = `${name}: not made yet`;
    return;
  }
  if (link.getAttribute('href') !== sound.url) {
    audio.src = sound.url;
    link.href = sound.url;
  }
  link.download = file;
  box.querySelector('figcaption').textContent = name;
  box.hidden = false;
}
function marks() {  // which amounts are at hand, on the track of the slider
  const track = slider();
  if (!track) return;
  let box = track.parentElement.querySelector('.track-marks');
  if (!box) {
    box = document.createElement('div');
    box.className = 'track-marks';
    box.setAttribute('aria-hidden', 'true');
    track.after(box);
  }
  const made = new Set(value().points.filter(ready).map((point) => point.amount)), most = Number(track.max) || 1;
  const all = [...new Set([...value().amounts, ...made])];
  box.replaceChildren(...all.map((one) => {
    const mark = document.createElement('i');
    mark.style.left = `${100 * one / most}%`;
    mark.className = made.has(one) ? 'made' : '';
    return mark;
  }));
  track.setAttribute('aria-valuetext', `${Math.round(100 * amount())}%`);
  box.dataset.made = made.size;
}

// Pressing

element.addEventListener('click', async (event) => {
  const pressed = event.target.closest('button');
  if (pressed && event.detail) pressed.blur();  // by a pointer: space is to switch, not to press it again
  if (event.target.closest('.play')) {
    if (current) return pause();
    await audio().resume();
    await load(heard() && heard().sound);
    play();
  }
  if (event.target.closest('.which')) choose(!original);
  if (event.target.closest('.link')) {
    const button = find('.link');
    stageAddressNow();
    await navigator.clipboard.writeText(location.href).catch(() => prompt('Copy this link:', location.href));
    button.textContent = 'Link copied';
    setTimeout(() => { button.textContent = 'Copy link'; }, 2000);
  }
});
const holds = (event) => !find('.hold').disabled && event.target.closest('.hold, .strips');
let held = false;
function hold(down) {
  if (held === down) return;
  held = down;
  choose(down);
}
element.addEventListener('pointerdown', (event) => { if (holds(event) && !original) hold(true); });
for (const name of ['pointerup', 'pointercancel', 'blur']) window.addEventListener(name, () => hold(false));
element.addEventListener('keydown', (event) => {
  if (event.target.matches('.hold') && (event.key === ' ' || event.key === 'Enter')) { event.preventDefault(); hold(true); }
});
element.addEventListener('keyup', (event) => { if (event.target.matches('.hold')) hold(false); });
document.addEventListener('keydown', (event) => {
  const at = document.activeElement;
  if (event.key !== ' ' || event.repeat || event.ctrlKey || event.metaKey || event.altKey || find('.which').disabled) return;
  if (at && at !== document.body && at.matches('button, a, summary, textarea, select, [contenteditable], [role], input:not([type=range])')) return;
  event.preventDefault();
  choose(!original);
});
function moved() {
  take();
  show();
  window.dispatchEvent(new Event('stage-amount'));
  clearTimeout(settling);
  settling = setTimeout(settle, SETTLED);
}
function settle() {  // render the very amount, and measure it
  clearTimeout(settling);
  const run = window.stageRun.now, at = run && !run.again ? run.amount : value().amount;
  if (at !== undefined && Math.abs(amount() - at) > 1e-6) window.stageRun.speak(false);
}
document.addEventListener('input', (event) => { if (event.target === slider()) moved(); });
document.addEventListener('change', (event) => { if (event.target === slider()) settle(); });
window.stageMoved = () => {  // the amount was set by something else; a run for a healed voice has the right one
  moved();
  const run = window.stageRun;
  if (run.heals || (run.now && run.now.heals)) clearTimeout(settling);
};

function refresh() {
  if (!making()) earlier = props.value;
  find('.stage').dataset.made = value().points.length;
  show();
  loadAll(props.value);
}
watch('value', refresh);
refresh();
