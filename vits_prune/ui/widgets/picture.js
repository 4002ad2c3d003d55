const find = (name) => element.querySelector(name);
const esc = (text) => String(text).replace(/[&<>"]/g, (c) => ({'&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;'}[c]));
const nice = (number) => Math.abs(number) >= 100 ? number.toFixed(0) : Math.abs(number) >= 10 ? number.toFixed(1) : number.toFixed(2);

function pick() {
  const select = find('.metric'), names = Object.keys(value().metrics);
  select.innerHTML = names.map((name) => `<option value="${esc(name)}">${esc(value().metrics[name].title)}</option>`).join('');
  if (!names.includes(chosen)) chosen = names[0] || '';
  select.value = chosen;
  select.disabled = !names.length;
}
