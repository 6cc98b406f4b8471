// Draws each expert's rows as boxes, one a tile, with the padding hatched, and three curves over the heights of a tile.
// The kernel counted everything for every height (`tiles_ME`, `view`), so a drag is drawn before the kernel answers.

const W = 840, LEFT = 52, RIGHT = 10, TOP = 32, PLOT = 200, PANEL_TOP = TOP + PLOT + 96, PANEL = 112, WIDE = 218, GAP = 64;
const H = PANEL_TOP + PANEL + 58, BORDER = 4;
const TILES_CSS = `
.lk .totals { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 2px 0 6px; }
.lk .totals span { display: block; font-size: 12px; opacity: .75; }
.lk .totals b { font-variant-numeric: tabular-nums; }
.lk .cut { stroke: var(--jp-layout-color0, var(--vscode-editor-background, Canvas)); stroke-width: 1.5; fill: none; }
.lk .padding { stroke: currentColor; stroke-opacity: .55; stroke-width: .6; }
`;

function render({ model, el: host }) {
  const rows = model.get("rows_E"), E = rows.length, blocks = model.get("blocks_m"), columns = model.get("blocks_n");
  const few = E <= model.get("palette").length, wide = (W - LEFT - RIGHT) / E, bar = E > 128 ? wide : Math.min(wide * 0.86, 64);
  const id = "lk" + Math.random().toString(36).slice(2), bottom = TOP + PLOT;
  const ui = frame(host, model, "Tiles and padding", "← → expert · Home End first, last · ↑ ↓ rows of a tile · [ ] columns of a tile · M multiprocessors · or hover, click");
  el("style", {}, host, TILES_CSS);
  readableWhenNarrow(ui.root);

  const height = slider(ui.bar, "Rows of a tile", 0, blocks.length - 1, 1, 0, (i) => toHeight(i));
  const across = dropdown(ui.bar, "Columns of a tile", columns, 0, (i) => send(model, { block_n: columns[i] }));
  const machine = el("select", { "aria-label": "Multiprocessors" }, el("label", {}, ui.bar, "Multiprocessors "));
  machine.addEventListener("change", () => send(model, { multiprocessors: Number(machine.value) }));
  const totals = el("div", { class: "totals", role: "list", "aria-label": "Totals" }, ui.body);
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Rows of each expert in tiles" }, ui.body);
  const hatch = el("pattern", { id: `${id}h`, width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, el("defs", {}, svg));
  el("line", { x1: 0, y1: 0, x2: 0, y2: 4, stroke: "currentColor", "stroke-width": 2 }, hatch);
  const plot = el("g", { style: "cursor: pointer", "data-plot": "" }, svg), hand = el("g", { "pointer-events": "none" }, svg), curves = el("g", {}, svg);
  const note = el("p", { class: "says", role: "status" }, ui.body);
  const padding = bar > BORDER ? { class: "padding", fill: `url(#${id}h)` } : { fill: model.get("palette")[0] };  // no room for hatching
  let bars = [], timer = null;

  const at = () => blocks.indexOf(model.get("block_m"));
  const middle = (e) => LEFT + (e + 0.5) * wide;
  const toHeight = (i) => { const block = blocks[clampTo(i, 0, blocks.length - 1)]; if (block !== model.get("block_m")) send(model, { block_m: block }); };
  const toColumns = (i) => send(model, { block_n: columns[clampTo(i, 0, columns.length - 1)] });

  // The drawing follows at once, the kernel hears of it when the pointer rests.
  function hold(e, soon = false) {
    const to = clampTo(e, 0, E - 1);
    clearTimeout(timer);
    if (to === model.get("expert")) return;
    if (!soon) return send(model, { expert: to });
    timer = setTimeout(() => send(model, { expert: to }), 60);
  }

  const pointed = (event) => {
    const box = svg.getBoundingClientRect();
    return Math.floor((((event.clientX - box.left) * W) / box.width - LEFT) / wide);
  };
  plot.addEventListener("pointermove", (event) => hold(pointed(event), true));
  plot.addEventListener("click", (event) => { hold(pointed(event)); ui.root.focus({ preventScroll: true }); });

  function nextMachine() {
    const all = model.get("machines").map(([count]) => count);
    send(model, { multiprocessors: all[(all.indexOf(model.get("multiprocessors")) + 1) % all.length] });
  }

  onKeys(ui.root, {
    ArrowLeft: () => hold(model.get("expert") - 1), ArrowRight: () => hold(model.get("expert") + 1),
    Home: () => hold(0), End: () => hold(E - 1),
    ArrowUp: () => toHeight(at() + 1), ArrowDown: () => toHeight(at() - 1),
    "[": () => toColumns(columns.indexOf(model.get("block_n")) - 1), "]": () => toColumns(columns.indexOf(model.get("block_n")) + 1),
    m: nextMachine, M: nextMachine,
  });

  // The highest column and its scale: every expert padded to the busiest would reach that high.
  function scale() {
    const block = model.get("block_m"), most = Math.max(1, ...model.get("tiles_ME")[at()]) * block, top = most * 1.1;
    return { block, most, top, y: (n) => bottom - (PLOT * n) / top };
  }

  function drawPlot() {
    const tiles = model.get("tiles_ME")[at()], { block, most, top, y } = scale();
    plot.replaceChildren();
    el("rect", { x: LEFT, y: TOP, width: W - LEFT - RIGHT, height: PLOT + 20, fill: "transparent" }, plot);
    el("text", { class: "small", x: LEFT - 8, y: TOP - 12, "text-anchor": "end" }, plot, "rows");
    gridLines(plot, ticks(0, top, 4).filter(Number.isInteger), y, LEFT, W - RIGHT, (n) => n.toLocaleString("en-US"));
    const box = (e, low, high, attrs) => el("rect", { x: middle(e) - bar / 2, width: bar, y: y(high), height: y(low) - y(high), ...attrs }, plot);
    bars = rows.map((n, e) => {
      if (n < tiles[e] * block) box(e, n, tiles[e] * block, { ...padding, "data-padding": tiles[e] * block - n });
      return n ? box(e, 0, n, { "data-rows": n }) : null;
    });
    if ((PLOT * block) / top >= BORDER && bar > BORDER) {
      const cuts = tiles.map((count, e) => [...Array(Math.max(0, count - 1)).keys()].map((j) => `M${(middle(e) - bar / 2).toFixed(2)} ${y((j + 1) * block).toFixed(2)}h${bar.toFixed(2)}`).join(""));
      el("path", { class: "cut", d: cuts.join("") }, plot);
    }
    if (bars.some(Boolean)) el("line", { class: "dash", x1: LEFT, x2: W - RIGHT, y1: y(most), y2: y(most) }, plot);
    el("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: bottom, y2: bottom }, plot);
    const every = Math.ceil(E / 24);
    for (let e = 0; e < E; e += every) el("text", { class: "small", x: middle(e), y: bottom + 22, "text-anchor": "middle" }, plot, e);
    el("text", { class: "small", x: LEFT - 8, y: bottom + 22, "text-anchor": "end" }, plot, "expert");
    legend();
    drawHand();
  }

  function legend() {
    const y = TOP - 20, cell = few ? model.get("palette")[0] : model.get("grey");
    const mark = (x, attrs) => el("rect", { x, y, width: 16, height: 10, ...attrs }, plot);
    mark(LEFT + 150, { fill: cell });
    el("text", { class: "small", x: LEFT + 172, y: y + 9 }, plot, "rows");
    mark(LEFT + 230, padding);
    el("text", { class: "small", x: LEFT + 252, y: y + 9 }, plot, "padding of the last tile");
    el("line", { class: "dash", x1: LEFT + 425, x2: LEFT + 455, y1: y + 5, y2: y + 5 }, plot);
    el("text", { class: "small", x: LEFT + 462, y: y + 9 }, plot, "every expert padded to the busiest one");
  }

  function drawHand() {
    const e = model.get("expert"), x = middle(e);
    hand.replaceChildren();
    bars.forEach((rect, i) => rect?.setAttribute("fill", expertColor(model, i, E, e)));
    el("path", { d: `M${x} ${bottom + 2}l-5 7h10z`, fill: model.get("lit") }, hand);
    const text = `expert ${e}: ${rows[e].toLocaleString("en-US")} row${rows[e] === 1 ? "" : "s"}`;
    el("text", { x: clampTo(x, LEFT + 60, W - 100), y: bottom + 40, "text-anchor": "middle", "font-weight": 700 }, hand, text);
  }

  // One curve over the heights, with another to compare it with; the scale reaches `least` at the least, and has whole numbers only if `whole`.
  function panel(place, { title, mine, other, format, names, least = 0, whole = false }) {
    const x0 = LEFT + place * (WIDE + GAP), i = at(), step = WIDE / blocks.length;
    const values = [...mine, ...(other ?? [])].filter((v) => v !== null), top = Math.max(...values, least) * 1.18;
    const x = (k) => x0 + (k + 0.5) * step, y = (v) => PANEL_TOP + PANEL * (1 - v / top);
    const group = el("g", { style: "cursor: pointer", "data-panel": title }, curves);
    el("rect", { x: x0, y: PANEL_TOP, width: WIDE, height: PANEL + 20, fill: "transparent" }, group);
    el("text", { x: x0 - 36, y: PANEL_TOP - 28 }, group, title);
    gridLines(group, ticks(0, top, 4).filter((v) => !whole || Number.isInteger(v)), y, x0, x0 + WIDE, format);
    el("line", { class: "axis", x1: x0, x2: x0 + WIDE, y1: y(0), y2: y(0) }, group);
    blocks.forEach((block, k) => el("text", { class: "small", x: x(k), y: y(0) + 16, "text-anchor": "middle", "font-weight": k === i ? 800 : 400 }, group, block));
    el("text", { class: "small", x: x0 + WIDE / 2, y: y(0) + 31, "text-anchor": "middle" }, group, "rows of a tile");
    el("line", { x1: x(i), x2: x(i), y1: PANEL_TOP, y2: y(0), stroke: model.get("lit"), "stroke-width": 2 }, group);
    const line = (series, attrs) => el("polyline", { points: series.map((v, k) => `${x(k).toFixed(1)},${y(v).toFixed(1)}`).join(" "), fill: "none", ...attrs }, group);
    if (other?.every((v) => v !== null)) {
      line(other, { class: "dash" });
      other.forEach((v, k) => el("rect", { x: x(k) - 2.5, y: y(v) - 2.5, width: 5, height: 5, fill: "currentColor" }, group));
    }
    line(mine, { stroke: model.get("palette")[0], "stroke-width": 2.5 });
    mine.forEach((v, k) => el("circle", { cx: x(k), cy: y(v), r: k === i ? 5.5 : 3.5, fill: k === i ? model.get("lit") : model.get("palette")[0] }, group));
    el("text", { x: x(i), y: PANEL_TOP - 7, "text-anchor": "middle", "font-weight": 700, "data-now": "" }, group, format(mine[i]));
    names?.forEach((name, k) => {
      const left = x0 - 36 + k * 116;
      el("line", { x1: left, x2: left + 20, y1: y(0) + 46, y2: y(0) + 46, ...(k ? { class: "dash" } : { stroke: model.get("palette")[0], "stroke-width": 2.5 }) }, group);
      el("text", { class: "small", x: left + 26, y: y(0) + 50 }, group, name);
    });
    group.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      ui.root.focus({ preventScroll: true });
      toHeight(Math.floor((((event.clientX - box.left) * W) / box.width - x0) / step));
    });
  }

  function drawCurves() {
    const view = model.get("view");
    curves.replaceChildren();
    panel(0, { title: "rows that are padding", mine: view.waste, other: view.busiest_waste, format: (v) => `${plain(100 * v)} %`, least: 0.05, names: ["in tiles", "to the busiest"] });
    panel(1, { title: `waves of ${model.get("multiprocessors")} programs`, mine: view.waves, format: (v) => v.toLocaleString("en-US"), least: 1, whole: true });
    panel(2, { title: "bytes read per 1,000 FLOP", mine: view.read, other: view.read_wanted, format: (v) => plain(v), names: ["of a tile", "per wanted FLOP"] });
    totals.replaceChildren();
    for (const [name, text] of view.totals[at()]) {
      const pair = el("div", { role: "listitem" }, totals);
      el("span", {}, pair, name);
      el("b", { "data-total": name }, pair, text);
    }
  }

  function drawControls() {
    height.show(at(), `${model.get("block_m")} rows`);
    across.value = columns.indexOf(model.get("block_n"));
    machine.replaceChildren();
    for (const [count, text] of model.get("machines")) el("option", { value: count }, machine, text);
    machine.value = model.get("multiprocessors");
  }

  function drawWords() {
    note.textContent = model.get("note");
    ui.says.textContent = model.get("detail");
    svg.setAttribute("aria-label", `Rows of ${E} expert${E === 1 ? "" : "s"} in tiles of ${model.get("block_m")}. ${model.get("detail")}`);
  }

  const offs = [
    redrawOn(model, ["block_m", "tiles_ME"], drawPlot), redrawOn(model, ["expert"], drawHand), redrawOn(model, ["view", "block_m"], drawCurves),
    redrawOn(model, ["block_m", "block_n", "multiprocessors", "machines"], drawControls), redrawOn(model, ["note", "detail"], drawWords),
  ];
  return () => { clearTimeout(timer); offs.forEach((off) => off()); };
}

export default { render };
