// Draws the map of pairs from the levels that the kernel made, one character a cell, and the picked pair's tokens.

const SIDE = 440, LEFT = 34, TOP = 20, W = LEFT + SIDE + 8, H = TOP + SIDE + 86;
const MODES = ["lift", "raw"], ORDERS = ["number", "cluster"];

const CSS = `
.lk-pairs .halves { display: flex; flex-wrap: wrap; gap: 8px 20px; }
.lk-pairs .halves > svg { flex: 1 1 380px; max-width: 500px; align-self: flex-start; }
.lk-pairs .halves > div { flex: 1 1 300px; min-width: 0; }
.lk-pairs h4 { margin: 4px 0; font-size: 13px; }
.lk-pairs ol { margin: 0; padding: 0; list-style: none; font: 12px/1.7 var(--jp-code-font-family, monospace); }
.lk-pairs li { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.lk-pairs mark { background: var(--lk-lit); color: #000; padding: 0 2px; border-radius: 2px; }
.lk-pairs li small { opacity: .75; font: 11px var(--jp-ui-font-family, sans-serif); margin-right: 6px; }
.lk-pairs .quiet { opacity: .8; font-size: 12px; margin: 4px 0; }
`;

function render({ model, el: host }) {
  const layers = model.get("layers");
  el("style", {}, host, CSS);
  const ui = frame(host, model, "Co-activation", "← → ↑ ↓ pair · M lift or share · O order · [ ] layer · or click a cell");
  readableWhenNarrow(ui.root);
  ui.root.classList.add("lk-pairs");
  const picker = layers.length < 2 ? null : dropdown(ui.bar, "Layer", layers, model.get("layer"), (i) => send(model, { layer: i }));
  const modes = choice(ui.bar, "What a colour means", ["Lift over chance", "Share of tokens"], 0, (i) => send(model, { mode: MODES[i] }));
  const orders = choice(ui.bar, "Order of the experts", ["By number", "By cluster"], 0, (i) => send(model, { order_by: ORDERS[i] }));
  const halves = el("div", { class: "halves" }, ui.body);
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "How often each two experts are chosen together" }, halves);
  const map = el("g", { style: "cursor: pointer", "data-map": "" }, svg), cursor = el("g", { "pointer-events": "none" }, svg);
  const side = el("div", {}, halves), baseline = el("p", { class: "quiet" });
  const E = () => model.get("order").length, cell = () => SIDE / E();

  map.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect(), order = model.get("order");
    const x = ((event.clientX - box.left) * W) / box.width - LEFT, y = ((event.clientY - box.top) * H) / box.height - TOP;
    if (x < 0 || y < 0 || x >= SIDE || y >= SIDE) return;
    ui.root.focus();
    send(model, { pair: [order[Math.floor(y / cell())], order[Math.floor(x / cell())]] });
  });

  function go(down, right) {
    const order = model.get("order"), [i, j] = model.get("pair");
    const to = (e, by) => order[clampTo(order.indexOf(e) + by, 0, E() - 1)];
    send(model, { pair: [to(i, down), to(j, right)] });
  }

  const flip = (trait, words) => () => send(model, { [trait]: words[1 - words.indexOf(model.get(trait))] });
  const toLayer = (by) => () => send(model, { layer: clampTo(model.get("layer") + by, 0, layers.length - 1) });
  const [mode, order] = [flip("mode", MODES), flip("order_by", ORDERS)];
  onKeys(ui.root, {
    ArrowLeft: () => go(0, -1), ArrowRight: () => go(0, 1), ArrowUp: () => go(-1, 0), ArrowDown: () => go(1, 0),
    m: mode, M: mode, o: order, O: order, "[": toLayer(-1), "]": toLayer(1),
  });

  function drawMap() {
    const view = model.get("view"), order = model.get("order"), lift = model.get("mode") === "lift";
    if (!view.levels || view.levels.length !== order.length) return;
    const colors = model.get(lift ? "diverging" : "ramp"), size = cell(), every = Math.ceil(E() / 22);
    const level = (c) => (c === "." ? -1 : parseInt(c, 36));
    map.replaceChildren();
    gridCells(map, order.map((i) => order.map((j) => level(view.levels[i][j]))), colors, "#80808060", LEFT, TOP, size, size);
    order.forEach((e, i) => {
      if (i % every) return;
      const at = (i + 0.5) * size;
      el("text", { class: "small", x: LEFT + at, y: TOP - 5, "text-anchor": "middle" }, map, e);
      el("text", { class: "small", x: LEFT - 5, y: TOP + at + 4, "text-anchor": "end" }, map, e);
    });
    el("text", { class: "small", x: LEFT, y: TOP + SIDE + 18 }, map, view.title);
    colorLegend(map, colors, LEFT + 40, TOP + SIDE + 50, SIDE - 80, view.marks);
    baseline.textContent = view.baseline;
    modes.show(lift ? 0 : 1);
    orders.show(ORDERS.indexOf(model.get("order_by")));
    if (picker) picker.value = model.get("layer");
    drawPick();
  }

  function drawPick() {
    const order = model.get("order"), size = cell(), [i, j] = model.get("pair").map((e) => order.indexOf(e));
    cursor.replaceChildren();
    for (const [row, column, twin] of [[j, i, true], [i, j, false]]) {
      const at = { x: LEFT + column * size, y: TOP + row * size, width: size, height: size, fill: "none" };
      el("rect", { ...at, stroke: "#FFFFFF", "stroke-width": twin ? 3 : 6 }, cursor);
      el("rect", { ...at, stroke: "#000000", "stroke-width": twin ? 1 : 3, "stroke-dasharray": twin ? "3 2" : "none" }, cursor);
    }
    ui.says.textContent = model.get("says");
    ui.sampled.textContent = model.get("sampled");
    drawSide();
  }

  function drawSide() {
    const [i, j] = model.get("pair"), shares = model.get("shares"), examples = model.get("examples");
    side.replaceChildren(baseline);
    if (shares.length) {
      el("h4", {}, side, `Domains of the tokens of ${i} and ${j}; the line is the share among all tokens`);
      const high = 22 * shares.length + 6, plot = el("svg", { viewBox: `0 0 330 ${high}`, role: "img", "aria-label": "Share of each domain" }, side);
      shares.forEach((s, row) => {
        const y = row * 22 + 4, x = 96 + 150 * s.baseline;
        el("text", { class: "small", x: 90, y: y + 12, "text-anchor": "end" }, plot, s.domain.length > 14 ? s.domain.slice(0, 13) + "…" : s.domain);
        el("rect", { x: 96, y, width: 150 * s.share, height: 15, fill: model.get("lit") }, plot);
        el("line", { class: "axis", x1: x, x2: x, y1: y - 3, y2: y + 18 }, plot);
        el("text", { class: "small", x: 254, y: y + 12 }, plot, `${percent(s.share, 0)} (${s.count})`);
      });
    }
    el("h4", {}, side, examples.length ? "Tokens that chose both, in their context" : "No token chose both.");
    const list = el("ol", {}, side);
    for (const e of examples) {
      const item = el("li", { title: `token ${e.position}${e.domain ? ", " + e.domain : ""}: ${e.before}${e.token}${e.after}` }, list);
      el("small", {}, item, e.position);
      item.append(e.before);
      el("mark", {}, item, e.token);
      item.append(e.after);
    }
  }

  const offs = [redrawOn(model, ["view", "order"], drawMap), redrawOn(model, ["pair", "says", "sampled", "examples", "shares"], drawPick)];
  return () => offs.forEach((off) => off());
}

export default { render };
