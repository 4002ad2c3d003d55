let chosen = '';
const value = () => ({rows: [], amounts: [], metrics: {}, ...props.value});
function loss(number, better) {  // how much was lost: what became better is no loss
  return better === 'lower' ? Math.max(0, number) : better === 'higher' ? Math.max(0, -number) : Math.abs(number);
}
function draw() {
  const metric = value().metrics[chosen], cells = find('.cells');
  if (!metric) { cells.innerHTML = ''; return; }
  const losses = value().rows.flatMap((row) => row.cells.map((cell) => cell && cell.changes[chosen]).filter(Number.isFinite))
    .map((number) => loss(number, metric.better));
  const worst = Math.max(1e-9, ...losses);
  let out = '<table><thead><tr><th></th>';
  out += value().amounts.map((amount) => `<th scope="col">${Math.round(100 * amount)}%</th>`).join('') + '</tr></thead><tbody>';
  value().rows.forEach((row) => {
    out += `<tr><th scope="row">${esc(row.name)}</th>`;
    row.cells.forEach((cell, i) => {
      if (!cell) { out += '<td></td>'; return; }
      const number = cell.changes[chosen], share = Number.isFinite(number) ? loss(number, metric.better) / worst : 0;
      const back = `color-mix(in srgb, #d7301f ${Math.round(100 * share)}%, #fff3ec)`;
      const shown = Number.isFinite(number) ? (metric.distance || number <= 0 ? '' : '+') + nice(number) : '-';
      const claimed = ['worse', 'better', 'higher', 'lower'].includes(cell.verdicts[chosen]) ? ' •' : '';
      const what = `${row.name} alone at ${Math.round(100 * value().amounts[i])}%: ${metric.title} ${shown}`;
      const label = `${what}, ${cell.verdicts[chosen] || 'not measured'}.${cell.spec ? ' Press to hear.' : ''}`;
      const look = `style="background:${back};color:${share > 0.55 ? '#fff' : '#3b1a10'}" title="${esc(label)}"`;
      out += cell.spec ? `<td><button ${look} data-spec="${esc(JSON.stringify(cell.spec))}" aria-label="${esc(label)}">${shown}${claimed}</button></td>`
        : `<td><span ${look}>${shown}${claimed}</span></td>`;
    });
    out += '</tr>';
  });
  cells.innerHTML = out + '</tbody></table>';
}
element.addEventListener('click', (event) => {
  const cell = event.target.closest ? event.target.closest('button[data-spec]') : null;
  if (cell) trigger('click', {spec: JSON.parse(cell.dataset.spec)});
});
element.addEventListener('change', (event) => { if (event.target.matches('.metric')) { chosen = event.target.value; draw(); } });
function refresh() { pick(); draw(); }
watch('value', refresh);
refresh();
