// What every widget's drawing shares. `base.esm` puts this text before a widget's own: no module is imported, no bundler
// is needed. Nothing here knows what a widget shows.

const SVG = "http://www.w3.org/2000/svg";
const SVG_NAMES = new Set(["svg", "g", "rect", "line", "text", "circle", "path", "defs", "pattern", "title", "polyline"]);

const HOUSE_CSS = `
.lk { color: var(--jp-content-font-color1, var(--vscode-editor-foreground, CanvasText)); max-width: 860px;
  font: 13px/1.45 var(--jp-ui-font-family, system-ui, sans-serif); padding: 4px; }
.lk .bar { display: flex; flex-wrap: wrap; gap: 6px 12px; align-items: center; margin: 2px 0 6px; }
.lk button, .lk select, .lk input { font: inherit; }
.lk button, .lk select { color: inherit; padding: 3px 10px; border-radius: 4px; cursor: pointer; max-width: 260px;
  border: 1px solid var(--jp-border-color1, #999); background: var(--jp-layout-color1, Canvas); }
.lk button[aria-pressed=true] { border-color: currentColor; font-weight: 700; box-shadow: inset 0 -3px 0 var(--lk-lit); }
.lk label { display: inline-flex; gap: 6px; align-items: center; }
.lk input[type=range] { width: 180px; accent-color: var(--lk-lit); }
.lk :focus-visible, .lk:focus-visible { outline: 3px solid var(--lk-lit); outline-offset: 1px; }
.lk:focus-visible { outline-offset: -3px; }
.lk svg { display: block; width: 100%; height: auto; user-select: none; }
.lk canvas { display: block; max-width: 100%; }
.lk text { fill: currentColor; font-size: 12px; }
.lk text.small { font-size: 11px; }
.lk.narrow text { font-size: 14px; }
.lk.narrow text.small { font-size: 13px; }
.lk .halo { paint-order: stroke; stroke-width: 3px; stroke-linejoin: round;
  stroke: var(--jp-layout-color0, var(--vscode-editor-background, Canvas)); }
.lk .rule { stroke: currentColor; stroke-opacity: .25; }
.lk .axis { stroke: currentColor; stroke-width: 1.2; }
.lk .dash { stroke: currentColor; stroke-width: 1.2; stroke-dasharray: 5 4; fill: none; }
.lk .says, .lk .keys, .lk .sampled { margin: 4px 0; overflow-wrap: anywhere; }
.lk .keys, .lk .sampled { opacity: .75; font-size: 12px; }
.lk .error { color: var(--jp-error-color1, #b00020); font-weight: 600; }
`;

// A new node, HTML or SVG by its name, with attributes, appended to `parent`, holding `text`.
function el(name, attrs = {}, parent = null, text = null) {
  const node = SVG_NAMES.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attrs)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const set = (node, attrs) => { for (const [k, v] of Object.entries(attrs)) node.setAttribute(k, v); };
const minus = (text) => String(text).replace(/-/g, "−");
const plain = (x, digits = 3) => minus(Number.isFinite(x) ? String(parseFloat(x.toPrecision(digits))) : "none");
const percent = (x, digits = 1) => `${minus((100 * x).toFixed(digits))} %`;
const clampTo = (x, low, high) => Math.max(low, Math.min(high, x));

// Round numbers between low and high, about `count` of them.
function ticks(low, high, count = 4) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const out = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) out.push(Math.abs(t) < step / 1e3 ? 0 : t);
  return out;
}

// The colour of expert e of E: its own up to eight, else grey, or lit if it is the one in hand.
function expertColor(model, e, E, lit = -1) {
  if (E <= model.get("palette").length) return model.get("palette")[e];
  return e === lit ? model.get("lit") : model.get("grey");
}

// The colour of a quantity t in [0, 1], from the palette's sequential ramp.
function shade(model, t) {
  const ramp = model.get("ramp");
  return ramp[clampTo(Math.round(t * (ramp.length - 1)), 0, ramp.length - 1)];
}

// The frame of a widget: { root, bar, body, says, sampled }. `label` names it to a screen reader, `keys` tells its keys.
function frame(host, model, label, keys) {
  el("style", {}, host, HOUSE_CSS);
  const root = el("div", { class: "lk", role: "group", "aria-label": label, tabindex: 0, "data-lm-suppress-shortcuts": "true" }, host);
  root.style.setProperty("--lk-lit", model.get("lit"));
  const bar = el("div", { class: "bar" }, root), body = el("div", {}, root);
  const says = el("p", { class: "says", role: "status", "aria-live": "polite" }, root);
  const sampled = el("p", { class: "sampled" }, root, model.get("sampled"));
  el("p", { class: "keys" }, root, `Keys: ${keys}`);
  return { root, bar, body, says, sampled };
}

// A drop-down with a label; `options` are texts, the value is their position.
function dropdown(parent, label, options, value, onchange) {
  const node = el("select", { "aria-label": label }, el("label", {}, parent, `${label} `));
  options.forEach((text, i) => el("option", { value: i }, node, text));
  node.value = value;
  node.addEventListener("change", () => onchange(Number(node.value)));
  return node;
}

// A slider with a label and the value in words beside it: { input, show(value, text) }.
function slider(parent, label, low, high, step, value, oninput) {
  const wrap = el("label", {}, parent, `${label} `);
  const input = el("input", { type: "range", "aria-label": label, min: low, max: high, step }, wrap);
  const said = el("span", {}, wrap);
  input.value = value;
  input.addEventListener("input", () => oninput(Number(input.value)));
  const show = (v, text) => { input.value = v; said.textContent = text; input.setAttribute("aria-valuetext", text); };
  return { input, show };
}

// A row of buttons of which one is pressed: show(i) presses one.
function choice(parent, label, names, value, onpick) {
  const row = el("div", { role: "group", "aria-label": label, class: "bar", style: "margin: 0" }, parent);
  const buttons = names.map((name, i) => {
    const button = el("button", { type: "button" }, row, name);
    button.addEventListener("click", () => onpick(i));
    return button;
  });
  const show = (i) => buttons.forEach((button, j) => button.setAttribute("aria-pressed", String(i === j)));
  show(value);
  return { row, buttons, show };
}

// Keys on the whole widget. A form control keeps the keys that it needs itself.
function onKeys(root, keys) {
  root.addEventListener("keydown", (event) => {
    const own = { SELECT: true, INPUT: event.key.startsWith("Arrow") || event.key === "Home" || event.key === "End" };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (own[event.target.tagName]) event.stopPropagation();  // else JupyterLab takes the arrow keys from the control
    if (!keys[event.key] || own[event.target.tagName]) return;
    if (event.target.tagName === "BUTTON" && (event.key === "Enter" || event.key === " ")) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key](event.shiftKey);
  });
}

// Send changes to the kernel.
function send(model, change) {
  for (const [key, value] of Object.entries(change)) model.set(key, value);
  model.save_changes();
}

// Redraw whenever one of these traits changes, and once now; returns what anywidget calls to clean up.
function redrawOn(model, names, draw) {
  const events = names.map((name) => `change:${name}`);
  events.forEach((name) => model.on(name, draw));
  draw();
  return () => events.forEach((name) => model.off(name, draw));
}

// A horizontal grid with numbers on the left of a plot: y maps a value to a height.
function gridLines(group, values, y, left, right, format = (v) => plain(v)) {
  for (const v of values) {
    el("line", { class: "rule", x1: left, x2: right, y1: y(v), y2: y(v) }, group);
    el("text", { class: "small", x: left - 8, y: y(v) + 4, "text-anchor": "end" }, group, format(v));
  }
}

// "#RRGGBB" let through to this degree, 0 to 1.
const translucent = (color, alpha) => color + Math.round(255 * clampTo(alpha, 0, 1)).toString(16).padStart(2, "0");

// Black or white: what reads better on this opaque colour, "#RRGGBB".
function inkOn(color) {
  const [r, g, b] = [1, 3, 5].map((i) => (parseInt(color.slice(i, i + 2), 16) / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000000" : "#FFFFFF";
}

// A grid of coloured cells, one path a colour: levels[row][column] is a position in `colors`, −1 a hole in `hole`.
function gridCells(group, levels, colors, hole, x0, y0, wide, high) {
  const paths = new Map();
  levels.forEach((row, r) => row.forEach((level, c) => {
    const d = `M${(x0 + c * wide).toFixed(2)} ${(y0 + r * high).toFixed(2)}h${wide.toFixed(2)}v${high.toFixed(2)}h${(-wide).toFixed(2)}z`;
    paths.set(level, (paths.get(level) ?? "") + d);
  }));
  for (const [level, d] of paths) el("path", { d, fill: level < 0 ? hole : colors[level], "shape-rendering": "crispEdges" }, group);
}

// A legend of colours from low to high; marks are [place in 0…1, text, whether it is the baseline].
function colorLegend(group, colors, x0, y0, wide, marks) {
  const step = wide / colors.length;
  gridCells(group, [colors.map((_, i) => i)], colors, "none", x0, y0, step, 10);
  for (const [place, text, baseline] of marks) {
    const x = x0 + clampTo(place, 0, 1) * wide;
    el("line", { class: "axis", x1: x, x2: x, y1: y0 - (baseline ? 4 : 0), y2: y0 + 14 }, group);
    el("text", { class: "small", x, y: y0 + (baseline ? -7 : 26), "text-anchor": "middle", "font-weight": baseline ? 700 : 400 }, group, text);
  }
}

// Larger letters in a drawing made for 840 units where the page leaves it much less room.
function readableWhenNarrow(root) {
  new ResizeObserver(() => root.classList.toggle("narrow", root.clientWidth > 0 && root.clientWidth < 640)).observe(root);
}
