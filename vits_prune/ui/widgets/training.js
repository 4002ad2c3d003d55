const COLOURS = ['#2563eb', '#e4572e', '#2a9d6f', '#8d6cc9', '#c98a00', '#d6478f', '#5f6b7a', '#17a2b8', '#7a5c3e'];
let chosen = '';
const value = () => ({losses: [], checks: [], of: 0, ...props.value});
const grid = (x1, x2, y) => `<line class="grid" x1="${x1}" x2="${x2}" y1="${y}" y2="${y}"/>`;
const words = (x, y, text, anchor, kind) => `<text x="${x}" y="${y}" text-anchor="${anchor}" class="${kind || ''}">${esc(text)}</text>`;
const line = (points, colour) => points.length === 1
  ? `<circle cx="${points[0][0]}" cy="${points[0][1]}" r="3" fill="${colour}"/>`
  : `<polyline points="${points.map((p) => p.join(',')).join(' ')}" fill="none" stroke="${colour}" stroke-width="1.6"/>`;

function losses() {
  const place = find('.losses'), known = value().losses;
  if (!known.length) { place.innerHTML = ''; find('.names').innerHTML = ''; return; }
  const W = Math.min(1400, Math.max(300, place.clientWidth || 720)), H = 250, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 26;
  const all = known.flatMap((one) => one.points.map((point) => Math.log10(point[1])));
  const low = Math.min(...all) - 0.05, high = Math.max(...all) + 0.05;
  const end = Math.max(1, value().of || 0, ...known.flatMap((one) => one.points.map((point) => point[0])));
  const x = (step) => LEFT + (W - LEFT - RIGHT) * step / end, y = (log) => TOP + (H - TOP - BOTTOM) * (high - log) / (high - low);
  let out = '';
  for (let power = Math.floor(low); power <= high; power++) {
    for (const factor of [1, 2, 5]) {
      const log = power + Math.log10(factor);
      if (log < low || log > high || (factor > 1 && high - low > 3)) continue;
      out += grid(LEFT, W - RIGHT, y(log)) + words(LEFT - 6, y(log) + 4, String(Number((factor * 10 ** power).toPrecision(1))), 'end');
    }
  }
  for (let i = 0; i <= 4; i++) {
    const last = i === 4, step = Math.round(end * i / 4);
    out += words(x(end * i / 4), H - 8, step + (last ? ' steps' : ''), last ? 'end' : 'middle');
  }
  known.forEach((one, i) => {
    out += line(one.points.map((point) => [x(point[0]).toFixed(1), y(Math.log10(point[1])).toFixed(1)]), COLOURS[i % COLOURS.length]);
  });
  place.innerHTML = `<svg viewBox="0 0 ${W} ${H}">${out}</svg>`;
  find('.names').innerHTML = known.map((one, i) => {
    const last = one.points[one.points.length - 1][1];
    return `<span><i style="background:${COLOURS[i % COLOURS.length]}"></i>${esc(one.name)} ${Number(last.toPrecision(2))}</span>`;
  }).join('');
}
function check(one) {
  const within = (number) => one.top === null ? number : Math.min(number, one.top);
  const W = 250, H = 150, LEFT = 42, RIGHT = 10, TOP = 26, BOTTOM = 20;
  const drawn = one.points.flatMap((point) => point.slice(1)).concat([one.original]).filter(Number.isFinite).map(within);
  let low = Math.min(...drawn), high = Math.max(...drawn);
  if (!(high > low)) { low -= 0.05; high += 0.05; }
  const pad = 0.08 * (high - low); low -= pad; high += pad;
  const end = Math.max(1, value().of || 0, ...one.points.map((point) => point[0]));
  const x = (step) => LEFT + 6 + (W - LEFT - RIGHT - 12) * step / end;
  const y = (number) => TOP + (H - TOP - BOTTOM) * (high - within(number)) / (high - low);
  let out = words(4, 14, one.title, 'start', 'title');
  for (let i = 0; i <= 2; i++) {
    const level = low + pad + (high - low - 2 * pad) * i / 2;
    out += grid(LEFT, W - RIGHT, y(level)) + words(LEFT - 5, y(level) + 4, nice(level), 'end');
  }
  if (Number.isFinite(one.original)) {
    out += `<line x1="${LEFT}" x2="${W - RIGHT}" y1="${y(one.original)}" y2="${y(one.original)}" stroke="var(--original)" stroke-dasharray="5 4"/>`;
  }
  one.points.forEach((point) => {
    if (!Number.isFinite(point[2])) return;
    out += `<line x1="${x(point[0])}" x2="${x(point[0])}" y1="${y(point[2])}" y2="${y(point[3])}" stroke="var(--pruned)" stroke-opacity="0.45"/>`;
  });
  out += line(one.points.map((point) => [x(point[0]), y(point[1])]), 'var(--pruned)');
  one.points.forEach((point) => {
    const kept = point[0] === value().kept, said = `step ${point[0]}: ${nice(point[1])}` + (kept ? ', kept' : '');
    out += `<circle cx="${x(point[0])}" cy="${y(point[1])}" r="${kept ? 6 : 3.5}" fill="var(--pruned)"><title>${esc(said)}</title></circle>`;
  });
  out += words(LEFT, H - 5, '0', 'start') + words(W - RIGHT, H - 5, end + ' steps', 'end');
  return `<div role="img" aria-label="${esc(one.title)} at checkpoints"><svg viewBox="0 0 ${W} ${H}">${out}</svg></div>`;
}
function refresh() { losses(); find('.checks').innerHTML = value().checks.map(check).join(''); }
watch('value', refresh);
refresh();
