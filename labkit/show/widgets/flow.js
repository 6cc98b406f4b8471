// Bands from groups to experts, placed by the kernel in a square of height one (`view`), stretched to the drawing here.

const FLOW_W = 860, FLOW_L = 160, FLOW_NODE = 12, FLOW_R = 560, LOAD_L = 612, LOAD_R = 846, FLOW_TOP = 44;
const FLOW_CSS = `
.lk .band { cursor: pointer; fill-opacity: .5; }
.lk .faint .band { fill-opacity: .24; }
.lk .faint .band.on, .lk .band.on { fill-opacity: .95; }
.lk .lost { fill-opacity: .8; }
.lk .faint .lost { fill-opacity: .3; }
.lk [data-node] { stroke: currentColor; stroke-opacity: .4; stroke-width: .6; }
.lk svg.flow:focus-visible { outline-offset: -2px; }
`;

function render({ model, el: host }) {
  const names = model.get("names"), groupNames = model.get("group_names"), L = names.length, G = groupNames.length;
  const E = model.get("view").right.length, few = E <= model.get("palette").length, id = "lk" + Math.random().toString(36).slice(2);
  const plot = clampTo(40 + E * 10, Math.max(240, G * 24), 620), H = FLOW_TOP + plot + 40;
  const [low, high] = model.get("factors"), STEP = 0.05, off = high + STEP;
  const ui = frame(host, model, "Token to expert flow", "↑ ↓ expert · ← → group · [ ] layer · − + capacity · O no limit · P policy · Escape no path · or hover");
  el("style", {}, host, FLOW_CSS);
  readableWhenNarrow(ui.root);

  const layer = L > 1 ? slider(ui.bar, "Layer", 0, L - 1, 1, model.get("layer"), (v) => gently({ layer: v })) : null;
  const capacity = slider(ui.bar, "Capacity factor", low, off, STEP, off, (v) => setFactor(v));
  const POLICY = ["position", "score"];
  const policy = choice(ui.bar, "Who gets a place first", ["first come", "highest score"], 0, (i) => gently({ policy: POLICY[i] }));
  const svg = el("svg", { class: "flow", viewBox: `0 0 ${FLOW_W} ${H}`, tabindex: 0, role: "img", "aria-label": "Bands from groups of tokens to experts" }, ui.body);
  const hatch = el("pattern", { id: `${id}h`, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, el("defs", {}, svg));
  el("rect", { width: 5, height: 5, fill: model.get("grey"), "fill-opacity": 0.35 }, hatch);
  el("line", { x1: 0, y1: 0, x2: 0, y2: 5, stroke: model.get("grey"), "stroke-width": 2.5 }, hatch);
  const bands = el("g", {}, svg), marks = el("g", {}, svg), load = el("g", {}, svg);
  const says = el("p", { class: "says", role: "status" }, ui.body);
  let timer = null, wanted = null, busy = null, waiting = null;
  let nodes = new Map();

  const y = (v) => FLOW_TOP + v * plot;
  const same = (a, b) => a[0] === b[0] && a[1] === b[1];
  const inHand = () => wanted ?? model.get("path");

  // Counting takes the kernel a moment on a long text: send the next change when the last one has been answered.
  function gently(change) {
    const next = { ...waiting, ...change };
    waiting = null;
    if (Object.entries(next).every(([name, value]) => value === model.get(name))) return;
    if (busy) { waiting = next; return; }
    busy = setTimeout(answered, 2000);
    send(model, next);
  }

  function answered() {
    clearTimeout(busy);
    busy = null;
    if (waiting) gently({});
  }

  const now = (name) => (waiting && name in waiting ? waiting[name] : model.get(name));
  const setFactor = (v) => gently({ capacity_factor: v > high + 1e-9 ? null : Math.round(clampTo(v, low, high) * 100) / 100 });

  function hold(path, soon = false) {
    if (same(inHand(), path)) return;
    wanted = path;
    drawHand();
    clearTimeout(timer);
    timer = setTimeout(() => { wanted = null; send(model, { path }); drawHand(); }, soon ? 60 : 0);
  }

  function band(x0, x1, top0, top1, height) {
    const mid = (x0 + x1) / 2, h = Math.max(height, 0.35);
    return `M${x0} ${top0}C${mid} ${top0} ${mid} ${top1} ${x1} ${top1}V${top1 + h}C${mid} ${top1 + h} ${mid} ${top0 + h} ${x0} ${top0 + h}Z`;
  }

  function color(e, share, most) {
    if (few) return expertColor(model, e, E);
    return e === inHand()[1] ? model.get("lit") : shade(model, most ? share / most : 0);
  }

  function draw() {
    const view = model.get("view"), unit = view.unit, total = view.tokens * view.top_k;
    const most = Math.max(...view.right.map(([, n]) => n));
    [bands, marks, load].forEach((group) => group.replaceChildren());
    nodes = new Map();
    for (const [g, e, n, kept, left, right, lost] of view.paths) {
      const group = el("g", { "data-path": `${g},${e}` }, bands), x0 = FLOW_L + FLOW_NODE, tall = unit * plot;
      const parts = [];
      if (kept) parts.push(el("path", { class: "band", d: band(x0, FLOW_R, y(left), y(right), kept * tall) }, group));
      if (n > kept) parts.push(el("path", { class: "band lost", fill: `url(#${id}h)`, d: band(x0, FLOW_R, y(left) + kept * tall, y(lost), (n - kept) * tall) }, group));
      el("title", {}, group, `${groupNames[g]} → expert ${e}: ${n} tokens` + (n > kept ? `, ${n - kept} dropped` : ""));
      group.addEventListener("pointerenter", () => hold([g, e], true));
      group.addEventListener("click", () => { hold([g, e]); svg.focus({ preventScroll: true }); });
      nodes.set(`${g},${e}`, { group, parts, kept: kept > 0, e });
    }
    view.left.forEach(([top, n], g) => {
      el("rect", { x: FLOW_L, y: y(top), width: FLOW_NODE, height: Math.max(1, n * unit * plot), fill: "currentColor", "fill-opacity": 0.6 }, marks);
      const text = groupNames[g].length > 20 ? groupNames[g].slice(0, 19) + "…" : groupNames[g];
      const at = y(top + (n * unit) / 2);
      el("text", { x: FLOW_L - 8, y: at + 4, "text-anchor": "end" }, marks, text);
      if (n * unit * plot > 30) el("text", { class: "small", x: FLOW_L - 8, y: at + 18, "text-anchor": "end", opacity: 0.75 }, marks, percent(n / total));
    });
    el("text", { x: FLOW_L - 8, y: 16, "text-anchor": "end" }, marks, "tokens");
    el("text", { x: FLOW_R + 18, y: 16, "text-anchor": "middle" }, marks, "expert");
    drawLoad(view, total, most);
    drawHand();
  }

  function drawLoad(view, total, most) {
    const unit = view.unit, E1 = 1 / E, limit = view.capacity === null ? 0 : view.capacity / total;
    const top = Math.max(most / total, 1.15 * E1, Math.min(limit, 1.3 * Math.max(most / total, E1))) * 1.04;
    const x = (share) => LOAD_L + ((LOAD_R - LOAD_L) * share) / top;
    let last = -99;
    el("text", { x: LOAD_L, y: 16 }, load, "share of all choices");
    view.right.forEach(([start, n, kept], e) => {
      const tall = Math.max(n ? 1 : 0, n * unit * plot), at = y(start) + tall / 2, bar = clampTo(tall * 0.8, 1.5, 26);
      el("rect", { x: FLOW_R, y: y(start), width: FLOW_NODE, height: tall, "data-node": e }, load);
      if (kept) el("rect", { x: LOAD_L, y: at - bar / 2, width: x(kept / total) - LOAD_L, height: bar, "data-node": e }, load);
      if (n > kept) {
        el("rect", { x: x(kept / total), y: at - bar / 2, width: x(n / total) - x(kept / total), height: bar, fill: `url(#${id}h)` }, load);
        el("rect", { x: FLOW_R, y: y(start) + kept * unit * plot, width: FLOW_NODE, height: (n - kept) * unit * plot, fill: model.get("grey") }, load);
      }
      const label = el("text", { class: "small", x: FLOW_R + FLOW_NODE + 8, y: at + 4, "data-label": e }, load, String(e));
      if (at - last < 11) label.setAttribute("visibility", "hidden");
      else last = at;
    });
    for (const t of ticks(0, top, 3)) {
      el("line", { class: "rule", x1: x(t), x2: x(t), y1: FLOW_TOP, y2: y(1) }, load);
      el("text", { class: "small", x: x(t), y: y(1) + 16, "text-anchor": "middle" }, load, `${plain(100 * t)} %`);
    }
    el("line", { class: "dash", x1: x(E1), x2: x(E1), y1: FLOW_TOP - 6, y2: y(1) }, load);
    el("text", { class: "small halo", x: x(E1), y: y(1) + 32, "text-anchor": "middle" }, load, `even, 1/E = ${plain(100 * E1)} %`);
    if (limit && limit <= top) {
      el("line", { x1: x(limit), x2: x(limit), y1: FLOW_TOP - 6, y2: y(1), stroke: model.get("lit"), "stroke-width": 2 }, load);
      el("text", { class: "small halo", x: Math.min(x(limit), LOAD_R - 24), y: FLOW_TOP - 10, "text-anchor": "middle" }, load, `capacity ${plain(100 * limit)} %`);
    }
  }

  function drawHand() {
    const path = inHand(), view = model.get("view"), total = view.tokens * view.top_k;
    const most = Math.max(...view.right.map(([, n]) => n));
    bands.setAttribute("class", path[0] < 0 ? "" : "faint");
    for (const [key, { group, parts, kept, e }] of nodes) {
      const on = key === `${path[0]},${path[1]}`;
      parts.forEach((part) => part.classList.toggle("on", on));
      if (kept) parts[0].setAttribute("fill", color(e, view.right[e][1], most));
      if (on && bands.lastChild !== group) bands.append(group);
    }
    for (const bar of load.querySelectorAll("[data-node]")) {
      const e = Number(bar.dataset.node);
      bar.setAttribute("fill", color(e, view.right[e][1], most));
    }
    for (const label of load.querySelectorAll("[data-label]"))
      label.setAttribute("font-weight", Number(label.dataset.label) === path[1] ? 800 : 400);
    const chosen = path[0] < 0 ? null : view.paths.find((p) => p[0] === path[0] && p[1] === path[1]);
    const seen = chosen ? `: ${groupNames[path[0]]} to expert ${path[1]}, ${chosen[2]} tokens` : "";
    svg.setAttribute("aria-label", `Bands from ${G} groups of tokens to ${E} experts, ${total} choices${seen}`);
  }

  function drawWords() {
    const factor = model.get("capacity_factor"), at = model.get("layer");
    layer?.show(at, names[at]);
    capacity.show(factor ?? off, factor === null ? "no limit" : plain(factor));
    policy.show(POLICY.indexOf(model.get("policy")));
    policy.buttons.forEach((button) => { button.disabled = factor === null; });
    says.textContent = model.get("view").note;
    ui.says.textContent = model.get("detail") || "Hover over a band, or use the arrow keys, to read it.";
    ui.sampled.textContent = [model.get("sampled"), few ? "Colour is the expert." : "Colour is the expert's load, dark low, bright high; the expert in hand is lit."].join(" ")
      + " A band's width is its number of choices; hatched grey is dropped.";
  }

  // The next path with tokens from here, over experts or over groups.
  function walk(dg, de) {
    const view = model.get("view"), [g, e] = inHand(), first = view.paths[0];
    if (g < 0) return hold([first[0], first[1]]);
    const line = view.paths.filter((p) => (dg ? p[1] === e : p[0] === g)).map((p) => (dg ? p[0] : p[1])).sort((a, b) => a - b);
    const from = dg ? g : e, by = dg || de;
    const next = by > 0 ? line.find((v) => v > from) : line.filter((v) => v < from).pop();
    if (next !== undefined) hold(dg ? [next, e] : [g, next]);
  }

  // From no limit down to the largest factor, from there in equal steps, so that 1 is always one of them.
  function more(by) {
    const factor = now("capacity_factor");
    if (factor === null) return by < 0 ? setFactor(high) : undefined;
    setFactor(by > 0 && factor < high ? Math.min(factor + by, high) : factor + by);
  }

  const step = (by) => gently({ layer: clampTo(now("layer") + by, 0, L - 1) });
  const turn = () => gently({ policy: POLICY[1 - POLICY.indexOf(now("policy"))] });
  onKeys(ui.root, {
    ArrowUp: () => walk(0, -1), ArrowDown: () => walk(0, 1), ArrowLeft: () => walk(-1, 0), ArrowRight: () => walk(1, 0),
    "[": () => step(-1), "]": () => step(1), "-": () => more(-STEP * 5), "+": () => more(STEP * 5), "=": () => more(STEP * 5),
    o: () => setFactor(off), O: () => setFactor(off),
    p: turn, P: turn,
    Escape: () => hold([-1, -1]),
  });

  const stop = [
    redrawOn(model, ["view"], answered), redrawOn(model, ["view"], draw), redrawOn(model, ["path"], drawHand),
    redrawOn(model, ["view", "detail", "layer", "capacity_factor", "policy", "sampled"], drawWords),
  ];
  return () => stop.forEach((end) => end());
}

export default { render };
