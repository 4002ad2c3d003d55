"""What the drawn pictures of measurements have in common: their frame, and the choice of the metric that is shown."""

STYLE = """
.measured { padding: 12px; border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg);
  background: var(--block-background-fill); }
.pick { display: flex; gap: 8px; align-items: center; color: var(--body-text-color); margin-bottom: 6px; }
.pick select { background: var(--input-background-fill); color: var(--body-text-color); border: 1px solid var(--border-color-primary);
  border-radius: var(--radius-md); min-height: 40px; padding: 4px 8px; max-width: 100%; min-width: 0; }
.hint { margin: 6px 0 0; font-size: 0.85em; color: var(--body-text-color-subdued); }
"""
"""Of an element of class "measured"."""

SCRIPT = """
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
"""
"""Goes before a picture's own script, which defines `chosen` and `value()`."""
