// Domain lift: above, every expert's lift for one domain over the range of shuffled labels; below, all domains. What is
// brushed is a range of columns; the kernel answers with what those experts take. Nothing is counted here.

const W = 840, LEFT = 104, RIGHT = 12, TOP = 30, PLOT = 190, GAP = 34, FOOT = 40;

const CSS = `
.lk-lift svg { touch-action: none; cursor: crosshair; }
.lk-lift .band { fill: currentColor; fill-opacity: .2; }
.lk-lift .stem { stroke-width: 1.6; }
.lk-lift .dot { stroke-width: 2; }
.lk-lift .brush { fill: var(--lk-lit); fill-opacity: .16; pointer-events: none; }
.lk-lift .hatch { stroke: currentColor; stroke-opacity: .55; stroke-width: 1; }
.lk-lift .row { fill: none; stroke: currentColor; stroke-width: 2; pointer-events: none; }
.lk-lift .cell { stroke: var(--jp-layout-color0, var(--vscode-editor-background, Canvas)); stroke-width: .5; }
.lk-lift .name { cursor: pointer; }
.lk-lift .cursor { fill: var(--lk-lit); }
.lk-lift table { border-collapse: collapse; margin: 4px 0; font-variant-numeric: tabular-nums; }
.lk-lift td, .lk-lift th { padding: 1px 12px 1px 0; text-align: right; font-weight: 400; }
.lk-lift th:first-child { text-align: left; }
.lk-lift thead th { opacity: .75; }
`;

function render({ model, el: host }) {
  const domains = model.get("domains"), layers = model.get("layers"), G = domains.length;
  const E = model.get("view").order.length, wide = (W - LEFT - RIGHT) / E, cellH = clampTo(Math.floor(200 / G), 12, 22);
  const gridTop = TOP + PLOT + GAP, H = gridTop + G * cellH + FOOT, id = "lk" + Math.random().toString(36).slice(2);
  const every = Math.ceil(E / 24), mid = (i) => LEFT + (i + 0.5) * wide;
  let cursor = -1, anchor = 0, dragging = false, pending = null;

  el("style", {}, host, CSS);
  const { root, bar, body, says } = frame(host, model, "Domain lift",
    "← → expert · Shift + ← → brush · Esc no brush · ↑ ↓ domain · [ ] layer · S order · or drag over the experts");
  root.classList.add("lk-lift");
  readableWhenNarrow(root);
  const pickLayer = dropdown(bar, "Layer", layers, model.get("layer"), (i) => send(model, { layer: i }));
  const pickDomain = dropdown(bar, "Domain", domains, domains.indexOf(model.get("domain")), (i) => send(model, { domain: domains[i] }));
  const sorts = ["number", "lift"];
  const sorting = choice(bar, "Order of the experts", ["By number", "By lift"], sorts.indexOf(model.get("sort")),
    (i) => send(model, { sort: sorts[i] }));
  const clear = el("button", { type: "button" }, bar, "Clear brush");
  clear.addEventListener("click", () => brushTo([]));

  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Lift of each expert, and of all domains" }, body);
  const hatch = el("pattern", { id: `${id}h`, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, el("defs", {}, svg));
  el("line", { class: "hatch", x1: 0, y1: 0, x2: 0, y2: 5 }, hatch);
  const plot = el("g", {}, svg), grid = el("g", {}, svg), over = el("g", {}, svg);
  const table = el("div", {}, body);

  const range = (a, b) => model.get("view").order.slice(Math.min(a, b), Math.max(a, b) + 1);

  function brushTo(experts) {
    pending = null;
    send(model, { brush: experts });
  }

  function at(event) {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) * W) / box.width;
    return { x, i: clampTo(Math.floor((x - LEFT) / wide), 0, E - 1), y: ((event.clientY - box.top) * H) / box.height };
  }

  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const place = at(event), row = Math.floor((place.y - gridTop) / cellH);
    event.preventDefault();
    root.focus();
    if (row >= 0 && row < G) send(model, { domain: domains[row] });
    if (place.x < LEFT) return;
    svg.setPointerCapture(event.pointerId);
    dragging = true;
    anchor = cursor = place.i;
    pending = range(anchor, cursor);
    drawOver();
  });
  svg.addEventListener("pointermove", (event) => {
    if (!dragging) return;
    cursor = at(event).i;
    pending = range(anchor, cursor);
    drawOver();
  });
  svg.addEventListener("pointerup", () => {
    if (!dragging) return;
    dragging = false;
    brushTo(pending);
  });
  svg.addEventListener("pointercancel", () => { dragging = false; pending = null; drawOver(); });

  // A brush that came from elsewhere (the kernel, another view, another order) is where the keys go on.
  function followBrush() {
    const order = model.get("view").order, held = model.get("brush").map((e) => order.indexOf(e));
    if (!held.length || held.includes(cursor)) return;
    [anchor, cursor] = [Math.min(...held), Math.max(...held)];
  }

  function step(by) {
    return (extend) => {
      followBrush();
      cursor = clampTo(cursor + by, 0, E - 1);
      if (!extend) anchor = cursor;
      brushTo(range(anchor, cursor));
    };
  }
  const turn = (by) => () => send(model, { domain: domains[(domains.indexOf(model.get("domain")) + G + by) % G] });
  const climb = (by) => () => send(model, { layer: clampTo(model.get("layer") + by, 0, layers.length - 1) });
  const resort = () => send(model, { sort: sorts[1 - sorts.indexOf(model.get("sort"))] });
  onKeys(root, {
    ArrowLeft: step(-1), ArrowRight: step(1), ArrowUp: turn(-1), ArrowDown: turn(1), "[": climb(-1), "]": climb(1),
    s: resort, S: resort, Escape: () => brushTo([]),
  });

  function drawDots(view, row, held) {
    const top = Math.max(view.top * 1.08, 1.3), y = (v) => TOP + PLOT * (1 - v / top);
    plot.replaceChildren();
    gridLines(plot, ticks(0, top), y, LEFT, W - RIGHT);
    el("text", { x: 4, y: 16 }, plot, `lift of ${model.get("domain")} (1 = no preference)`);
    view.order.forEach((e, i) => {
      const low = view.low[row][e], high = view.high[row][e], lift = view.lift[row][e], out = view.outside[row][e];
      el("rect", { class: "band", x: mid(i) - wide / 2, width: wide, y: y(high), height: Math.max(1, y(low) - y(high)) }, plot);
      const color = E <= 8 ? model.get("palette")[e] : held.has(e) ? model.get("lit") : "currentColor";
      el("line", { class: "stem", x1: mid(i), x2: mid(i), y1: y(1), y2: y(lift), stroke: color }, plot);
      const dot = el("circle", { class: "dot", cx: mid(i), cy: y(lift), r: clampTo(wide * 0.3, 1.8, 6), stroke: color,
        fill: out ? color : "var(--jp-layout-color0, Canvas)", "data-expert": e }, plot);
      el("title", {}, dot, `expert ${e}: lift ${plain(lift)}, shuffled labels ${plain(low)} to ${plain(high)}, load ${percent(view.load[e])}`);
    });
    el("line", { class: "dash", x1: LEFT, x2: W - RIGHT, y1: y(1), y2: y(1) }, plot);
    legend(view);
  }

  function legend(view) {
    const right = W - RIGHT, ramp = model.get("ramp");
    el("text", { class: "small", x: right, y: 16, "text-anchor": "end" }, plot, "filled: outside the range of shuffled labels (grey)");
    const x0 = right - 150, y0 = gridTop - 14;
    el("text", { class: "small", x: x0 - 6, y: y0 + 8, "text-anchor": "end" }, plot, "hatched: chance · lift 0");
    ramp.forEach((color, i) => el("rect", { x: x0 + (i * 110) / ramp.length, y: y0, width: 110 / ramp.length + 0.5, height: 9, fill: color }, plot));
    el("text", { class: "small", x: x0 + 116, y: y0 + 8 }, plot, plain(view.top, 2));
  }

  function drawGrid(view, row) {
    grid.replaceChildren();
    domains.forEach((name, g) => {
      const y = gridTop + g * cellH, long = name.length > 14 ? `${name.slice(0, 13)}…` : name;
      const label = el("text", { class: "small name", x: LEFT - 8, y: y + cellH / 2 + 4, "text-anchor": "end", "font-weight": g === row ? 700 : 400 }, grid, long);
      el("title", {}, label, name);
      view.order.forEach((e, i) => {
        const box = { class: "cell", x: mid(i) - wide / 2, y, width: wide, height: cellH };
        const cell = el("rect", { ...box, fill: view.outside[g][e] ? shade(model, view.lift[g][e] / view.top) : `url(#${id}h)` }, grid);
        el("title", {}, cell, `${name}, expert ${e}: lift ${plain(view.lift[g][e])}`);
      });
    });
    el("rect", { class: "row", x: LEFT, y: gridTop + row * cellH, width: W - LEFT - RIGHT, height: cellH }, grid);
    view.order.forEach((e, i) => {
      if (i % every === 0) el("text", { class: "small", x: mid(i), y: gridTop + G * cellH + 15, "text-anchor": "middle" }, grid, e);
    });
    const how = model.get("sort") === "lift" ? `expert, by lift of ${model.get("domain")}` : "expert";
    el("text", { x: (LEFT + W - RIGHT) / 2, y: H - 8, "text-anchor": "middle" }, grid, how);
  }

  function drawOver() {
    const view = model.get("view"), held = new Set(pending ?? model.get("brush"));
    if (pending === null) followBrush();
    over.replaceChildren();
    view.order.forEach((e, i) => {
      if (!held.has(e)) return;
      el("rect", { class: "brush", x: mid(i) - wide / 2, y: TOP, width: wide, height: PLOT + 6 }, over);
      el("rect", { class: "brush", x: mid(i) - wide / 2, y: gridTop + G * cellH, width: wide, height: 20 }, over);
    });
    el("path", { class: "cursor", d: `M${mid(cursor)} ${TOP} l-5 -8 h10 z`, visibility: held.has(view.order[cursor]) ? "visible" : "hidden" }, over);
    return held;
  }

  function drawTable(view) {
    table.replaceChildren();
    const names = Object.keys(view.brushed);
    if (!names.length) return;
    const node = el("table", { "aria-label": "What the brushed experts take" }, table);
    const head = el("tr", {}, el("thead", {}, node));
    ["domain", "share of its choices", "with shuffled labels", "lift"].forEach((text) => el("th", { scope: "col" }, head, text));
    const rows = el("tbody", {}, node);
    for (const name of names) {
      const s = view.brushed[name], line = el("tr", {}, rows);
      el("th", { scope: "row" }, line, name);
      for (const text of [percent(s.share), `${percent(s.low)} to ${percent(s.high)}`, `${plain(s.lift)}${s.outside ? "" : " (chance)"}`])
        el("td", {}, line, text);
    }
  }

  function draw() {
    const view = model.get("view"), row = domains.indexOf(model.get("domain"));
    pickLayer.value = model.get("layer");
    pickDomain.value = row;
    sorting.show(sorts.indexOf(model.get("sort")));
    const held = drawOver();
    drawDots(view, row, held);
    drawGrid(view, row);
    drawTable(view);
    says.textContent = view.note;
  }

  return redrawOn(model, ["view", "layer", "domain", "sort", "brush"], draw);
}

export default { render };
