const value = () => ({rows: [], groups: {}, first: '', ...props.value});
const list = find('.list');
let chosen = '', stale = false;
function shown() {
  const sought = find('.sought').value.trim().toLowerCase(), order = find('.order').value;
  const rows = value().rows.filter((row) => [row.name, value().groups[row.part].name, row.note].some((text) => text.toLowerCase().includes(sought)));
  if (order === 'name') rows.sort((a, b) => a.name.localeCompare(b.name));
  else if (order) rows.sort((a, b) => b[order] - a[order]);
  return rows;
}
function draw() {
  const grouped = !find('.order').value, rows = shown(), top = list.scrollTop;
  let part = '', out = '';
  for (const row of rows) {
    const group = value().groups[row.part], name = grouped ? row.name.slice(row.name.indexOf('.') + 1) : row.name;
    if (grouped && row.part !== part) {
      part = row.part;
      const zeros = group.zeros === null ? '' : `, ${(100 * group.zeros).toFixed(1)}% zero`;
      out += `<div class="group" style="--c:${group.colour}">${esc(group.name)}${zeros}</div>`;
    }
    const share = row.note && !row.share ? 'left alone' : `${(100 * row.share).toFixed(1)}% ${row.word}`;
    out += `<button type="button" tabindex="-1" style="--c:${group.colour}" data-name="${esc(row.name)}" aria-pressed="${row.name === chosen}"
      title="${esc(`${row.name}: ${row.kind}, ${row.shape}, ${row.weights.toLocaleString('en')} weights`)}">
      <span class="name">${esc(name)}</span><span class="track"><i style="width:${(100 * row.share).toFixed(1)}%"></i></span>
      <span class="share">${share}</span>${row.note ? `<span class="note">${esc(row.note)}</span>` : ''}</button>`;
  }
  list.innerHTML = out || (value().rows.length ? 'No layer has this in its name.' : '');
  list.scrollTop = top;
  rove(list.querySelector('[aria-pressed=true]') || list.querySelector('button'));
}
function rove(button) {  // one stop of the Tab key for the whole list
  list.querySelectorAll('[tabindex="0"]').forEach((one) => { one.tabIndex = -1; });
  if (button) button.tabIndex = 0;
}
function choose(name) {
  chosen = name;
  stale = false;
  list.querySelectorAll('button').forEach((one) => one.setAttribute('aria-pressed', one.dataset.name === name));
  trigger('click', {layer: name});
}
function ask() {  // for the weights of the chosen layer, if they are in sight and out of date
  if (!stale || !list.offsetParent || !value().rows.length) return;
  choose(value().rows.some((row) => row.name === chosen) ? chosen : value().first);
  const button = list.querySelector('[aria-pressed=true]');
  if (!button || list.contains(document.activeElement)) return;
  rove(button);
  list.scrollTop = button.offsetTop - list.clientHeight / 2;
}
list.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button) { rove(button); choose(button.dataset.name); }
});
list.addEventListener('keydown', (event) => {
  const buttons = [...list.querySelectorAll('button')], at = buttons.indexOf(event.target);
  const to = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1}[event.key];
  if (at < 0 || !buttons[to]) return;
  event.preventDefault();
  rove(buttons[to]);
  buttons[to].focus();
});
element.addEventListener('input', draw);
new IntersectionObserver(ask).observe(list);
function refresh() { stale = true; draw(); ask(); }
watch('value', refresh);
refresh();
