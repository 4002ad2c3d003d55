const COLOURS = ['var(--pruned)', 'var(--original)', '#2a9d6f', '#8d6cc9'];
const H = 340, LEFT = 58, RIGHT = 14, TOP = 16, BOTTOM = 44;
let W = 720, chosen = '';
const value = () => ({series: [], metrics: {}, ...props.value});
function draw() {
  const metric = value().metrics[chosen], plot = find('.plot');
  if (!metric) { plot.innerHTML = ''; return; }
  const known = value().series.map((series) => ({...series, points: series.points.filter((point) => point.figures[chosen])}));
  W = Math.min(720, Math.max(300, plot.clientWidth || 720));  // letters keep their size on a phone
  const drawn = known.flatMap((series) => series.points.flatMap((point) => point.figures[chosen]));
  const all = drawn.concat(metric.floor || []).filter(Number.isFinite);
  let low = Math.min(...all), high = Math.max(...all);
  if (!(high > low)) { low -= 0.5; high += 0.5; }
  const pad = 0.06 * (high - low), bottom = low - pad, top = high + pad;
  const wide = Math.max(0.05, ...known.flatMap((series) => series.points.map((point) => point.sparsity)));
  const x = (share) => LEFT + (W - LEFT - RIGHT) * share / wide, y = (number) => TOP + (H - TOP - BOTTOM) * (top - number) / (top - bottom);
  let out = '';
  for (let i = 0; i <= 4; i++) {
    const level = bottom + (top - bottom) * i / 4, share = wide * i / 4;
    out += `<line class="grid" x1="${LEFT}" x2="${W - RIGHT}" y1="${y(level)}" y2="${y(level)}"/>`;
    out += `<text x="${LEFT - 6}" y="${y(level) + 4}" text-anchor="end">${nice(level)}</text>`;
    out += `<text x="${x(share)}" y="${H - BOTTOM + 18}" text-anchor="middle">${Math.round(100 * share)}%</text>`;
  }
  if (metric.floor) {
    const [from, to] = metric.floor;
    const height = Math.max(1, y(from) - y(to));
    out += `<rect x="${LEFT}" width="${W - LEFT - RIGHT}" y="${y(to)}" height="${height}" fill="#8a8f98" fill-opacity="0.18"/>`;
    out += `<text x="${W - RIGHT - 4}" y="${y(to) - 4}" text-anchor="end">noise floor: the original with other seeds</text>`;
  }
  known.forEach((series, index) => {
    const colour = COLOURS[index % COLOURS.length];
    const line = series.points.map((p) => `${x(p.sparsity)},${y(p.figures[chosen][0])}`).join(' ');
    out += `<polyline points="${line}" fill="none" stroke="${colour}" stroke-width="2"/>`;
    series.points.forEach((point) => {
      const [middle, from, to] = point.figures[chosen], at = x(point.sparsity);
      const bar = `<line x1="${at}" x2="${at}" y1="${y(from)}" y2="${y(to)}" stroke="${colour}" stroke-opacity="0.6"/>`;
      if (Number.isFinite(from)) out += bar;
      const found = `${metric.title} ${nice(middle)}, ${point.verdicts[chosen]}`;
      const label = `${series.name}, ${Math.round(100 * point.amount)}%: ${found}. Press to hear.`;
      out += `<circle class="point" tabindex="0" role="button" aria-label="${esc(label)}" data-spec="${esc(JSON.stringify(point.spec))}"
        cx="${at}" cy="${y(middle)}" r="6" fill="${colour}"><title>${esc(label)}</title></circle>`;
    });
    if (Number.isFinite(series.knee)) {
      const at = x(series.knee);
      out += `<line x1="${at}" x2="${at}" y1="${TOP}" y2="${H - BOTTOM}" stroke="${colour}" stroke-dasharray="4 4"/>`;
      out += `<text x="${at + 4}" y="${TOP + 12 + 14 * index}">knee, ${esc(series.name)}</text>`;
    }
  });
  if (known.length > 1) known.forEach((series, index) => {
    out += `<text x="${W - RIGHT - 4}" y="${H - BOTTOM - 8 - 15 * index}" text-anchor="end"
      style="fill:${COLOURS[index % COLOURS.length]};font-weight:600">${esc(series.name)}</text>`;
  });
  const share = shareOf(known[0] ? known[0].points : []);
  if (Number.isFinite(share)) {
    out += `<line class="now" x1="${x(share)}" x2="${x(share)}" y1="${TOP}" y2="${H - BOTTOM}"/>`;
    out += `<path class="now" d="M${x(share)},${H - BOTTOM} l-6,8 h12 z"><title>On the stage: amount ${Math.round(100 * amount())}%</title></path>`;
  }
  out += `<text x="${(LEFT + W) / 2}" y="${H - 6}" text-anchor="middle">${esc((value().axis || 'sparsity of the whole voice') + (known.length === 1 ? `: ${known[0].name}` : ''))}</text>`;
  plot.innerHTML = `<svg viewBox="0 0 ${W} ${H}">${out}</svg>`;
}
function amount() {  // under the slider of the stage
  const slider = document.querySelector('#amount input[type=range]');
  return slider ? Number(slider.value) : NaN;
}
function shareOf(points) {  // the sparsity at that amount, between the points around it
  const now = amount();
  for (let i = 1; i < points.length; i++) {
    const [a, b] = [points[i - 1], points[i]];
    if (now >= a.amount && now <= b.amount) return a.sparsity + (b.sparsity - a.sparsity) * (now - a.amount) / (b.amount - a.amount);
  }
  return NaN;
}
function press(target) {
  if (!target || !target.matches || !target.matches('.point')) return;
  trigger('click', {spec: JSON.parse(target.dataset.spec)});
}
element.addEventListener('click', (event) => press(event.target));
element.addEventListener('keydown', (event) => {
  if (!event.target.matches('.point') || (event.key !== 'Enter' && event.key !== ' ')) return;
  event.preventDefault();
  press(event.target);
});
element.addEventListener('change', (event) => { if (event.target.matches('.metric')) { chosen = event.target.value; draw(); } });
function refresh() { pick(); draw(); }
watch('value', refresh);
window.addEventListener('stage-amount', draw);
refresh();
