// Expert ablation: what each removal costs, each expert's load, who takes over, and the predictions that suffer. All
// numbers come from the kernel (`view`); this draws them and sends back expert, domain and order.

const W = 840, LEFT = 66, RIGHT = 12, TOP = 28, GAP = 40, FOOT = 40;

const CSS = `
.lk-ablation svg { cursor: pointer; }
.lk-ablation .mark { stroke-width: 2.4; }
.lk-ablation .held { fill: var(--lk-lit); fill-opacity: .12; pointer-events: none; }
.lk-ablation .ring { fill: none; stroke: currentColor; stroke-width: 1.6; }
.lk-ablation .tick { stroke: currentColor; stroke-width: 2; }
.lk-ablation table { border-collapse: collapse; margin: 4px 0; width: 100%; table-layout: fixed; }
.lk-ablation td, .lk-ablation th { padding: 2px 8px 2px 0; text-align: left; font-weight: 400; vertical-align: top; }
.lk-ablation th { opacity: .75; }
.lk-ablation .context { font-family: var(--jp-code-font-family, ui-monospace, monospace); font-size: 12px; overflow-wrap: anywhere; }
.lk-ablation mark { background: none; color: inherit; font-weight: 700; border-bottom: 3px solid var(--lk-lit); }
.lk-ablation .rest { opacity: .6; }
`;

function render({ model, el: host }) {
  const domains = model.get("domains"), E = model.get("view").order.length, wide = (W - LEFT - RIGHT) / E;
  const removed = model.get("view").effects.some((effect) => effect !== null);
  const sorts = removed ? ["number", "load", "effect"] : ["number", "load"];
  const heights = removed ? [150, 80, 80] : [100, 100];
  const tops = heights.map((_, i) => TOP + heights.slice(0, i).reduce((sum, h) => sum + h + GAP, 0));
  const bottom = tops.at(-1) + heights.at(-1), H = bottom + FOOT, every = Math.ceil(E / 24);
  const mid = (i) => LEFT + (i + 0.5) * wide;

  el("style", {}, host, CSS);
  const { root, bar, body, says, sampled } = frame(host, model, "Expert ablation",
    "← → expert · ↑ ↓ domain · S order of the experts · or click an expert");
  root.classList.add("lk-ablation");
  readableWhenNarrow(root);
  const pickExpert = dropdown(bar, "Expert", [...Array(E).keys()], model.get("expert"), (e) => send(model, { expert: e }));
  const pickDomain = dropdown(bar, "Domain", domains, domains.indexOf(model.get("domain")), (i) => send(model, { domain: domains[i] }));
  const sorting = choice(bar, "Order of the experts", sorts.map((name) => `By ${name}`), sorts.indexOf(model.get("sort")),
    (i) => send(model, { sort: sorts[i] }));

  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img",
    "aria-label": `${removed ? "Change of the loss without each expert, its" : "Each expert's"} load, and who takes over` }, body);
  const plot = el("g", {}, svg), worst = el("div", {}, body);

  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect(), i = Math.floor((((event.clientX - box.left) * W) / box.width - LEFT) / wide);
    root.focus();
    if (i >= 0 && i < E) send(model, { expert: model.get("view").order[i] });
  });

  function walk(by) {
    return () => {
      const order = model.get("view").order, at = order.indexOf(model.get("expert"));
      send(model, { expert: order[clampTo(at + by, 0, E - 1)] });
    };
  }
  const turn = (by) => () => send(model, { domain: domains[(domains.indexOf(model.get("domain")) + domains.length + by) % domains.length] });
  const resort = () => send(model, { sort: sorts[(sorts.indexOf(model.get("sort")) + 1) % sorts.length] });
  onKeys(root, { ArrowLeft: walk(-1), ArrowRight: walk(1), ArrowUp: turn(-1), ArrowDown: turn(1), s: resort, S: resort });

  const color = (e) => expertColor(model, e, E, model.get("expert"));

  function drawEffects(view, top, height) {
    const [low, high] = view.range, pad = 0.1 * (high - low || 1), y = (v) => top + height * (1 - (v - low + pad) / (high - low + 2 * pad));
    gridLines(plot, ticks(low - pad, high + pad), y, LEFT, W - RIGHT);
    el("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: y(0), y2: y(0) }, plot);
    el("text", { x: 4, y: top - 12 }, plot, `change of the loss of ${model.get("domain")} without the expert (nats), with its 95 % interval`);
    view.order.forEach((e, i) => {
      if (view.effects[e] === null) return;
      const [change, from, to] = view.effects[e];
      if (from !== null) el("line", { class: "mark", x1: mid(i), x2: mid(i), y1: y(from), y2: y(to), stroke: color(e) }, plot);
      const dot = el("circle", { cx: mid(i), cy: y(change), r: clampTo(wide * 0.3, 2, 6), fill: color(e), "data-expert": e }, plot);
      el("title", {}, dot, `expert ${e}: ${plain(change)} nats` + (from === null ? "" : `, ${plain(from)} to ${plain(to)}`));
      if (e === model.get("expert")) el("circle", { class: "ring", cx: mid(i), cy: y(change), r: clampTo(wide * 0.3, 2, 6) + 4 }, plot);
    });
  }

  function drawBars(values, view, top, height, title, line, ticksOf) {
    const most = Math.max(...values, ...(ticksOf ?? [line]), 0.01) * 1.1, y = (v) => top + height * (1 - v / most);
    gridLines(plot, ticks(0, most, 3), y, LEFT, W - RIGHT, (v) => percent(v, most < 0.05 ? 1 : 0));
    el("text", { x: 4, y: top - 12 }, plot, title);
    view.order.forEach((e, i) => {
      const box = { x: mid(i) - wide * 0.38, width: wide * 0.76, y: y(values[e]), height: Math.max(0, y(0) - y(values[e])) };
      el("title", {}, el("rect", { ...box, fill: color(e) }, plot), `expert ${e}: ${percent(values[e])}`);
      if (ticksOf && e !== model.get("expert")) el("line", { class: "tick", x1: box.x, x2: box.x + box.width, y1: y(ticksOf[e]), y2: y(ticksOf[e]) }, plot);
    });
    if (line !== null) el("line", { class: "dash", x1: LEFT, x2: W - RIGHT, y1: y(line), y2: y(line) }, plot);
  }

  function drawWorst(view) {
    worst.replaceChildren();
    if (!view.worst.length) return;
    const table = el("table", { "aria-label": "Tokens after which the loss rose most" }, worst);
    const head = el("tr", {}, el("thead", {}, table));
    const columns = [["rise (nats)", "90px"], ["after this token", ""], ["domain", "110px"]];
    for (const [name, width] of columns) el("th", { scope: "col", style: width && `width: ${width}` }, head, name);
    const rows = el("tbody", {}, table);
    for (const one of view.worst) {
      const line = el("tr", {}, rows);
      el("td", {}, line, `+${plain(one.rise)}`);
      const text = el("td", { class: "context" }, line);
      el("span", {}, text, one.before);
      el("mark", {}, text, one.token);
      el("span", { class: "rest" }, text, one.after);
      el("td", {}, line, one.domain);
    }
  }

  function draw() {
    const view = model.get("view"), held = model.get("expert"), at = view.order.indexOf(held);
    pickExpert.value = held;
    pickDomain.value = domains.indexOf(model.get("domain"));
    sorting.show(sorts.indexOf(model.get("sort")));
    plot.replaceChildren();
    el("rect", { class: "held", x: mid(at) - wide / 2, width: wide, y: TOP - 4, height: bottom - TOP + 4 }, plot);
    if (removed) drawEffects(view, tops[0], heights[0]);
    const [load, heirs] = heights.map((_, i) => i).slice(-2);
    drawBars(view.load, view, tops[load], heights[load], `load of each expert; dashed: even, ${plain(100 / E)} %`, 1 / E, null);
    const title = view.traced ? `who takes over from expert ${held}` : `next best for the tokens of expert ${held}, by the logits`;
    drawBars(view.heirs, view, tops[heirs], heights[heirs], `${title}; marks: in proportion to load`, null, view.by_load);
    view.order.forEach((e, i) => {
      if (i % every === 0 || e === held)
        el("text", { class: "small", x: mid(i), y: bottom + 16, "text-anchor": "middle", "font-weight": e === held ? 700 : 400 }, plot, i % every && wide < 18 ? "" : e);
    });
    el("text", { x: (LEFT + W - RIGHT) / 2, y: H - 6, "text-anchor": "middle" }, plot, "expert");
    drawWorst(view);
    says.textContent = view.note;
    sampled.textContent = model.get("sampled");
  }

  return redrawOn(model, ["view", "expert", "domain", "sort"], draw);
}

export default { render };
