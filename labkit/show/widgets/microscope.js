// Draws what the kernel decided (`view`) and sends back token, step, expert and bias. It decides nothing itself.

const STEPS = [
  ["Logits", "What the router's matrix says about this token, before any score function."],
  ["Score + bias", "Solid: the score. Hatched: the bias. Drag a round handle below, or use the arrow keys."],
  ["Top-k", "Score plus bias decides. The dashed line is the lowest value that was chosen."],
  ["Weights", "The weight of each chosen expert, from its score alone: the bias is gone. Hollow: the score it comes from."],
];
const W = 760, LEFT = 62, TOP = 34, PLOT = 170, LANE_TOP = 254, LANE = 110, H = 398;

const CSS = `
.lk-scope svg { touch-action: none; }
.lk-scope [role=tab][aria-selected=true] { border-color: currentColor; font-weight: 700; box-shadow: inset 0 -3px 0 var(--lk-lit); }
.lk-scope .ghost { fill: none; stroke: currentColor; stroke-width: 1.2; stroke-dasharray: 2 2; }
.lk-scope .hatch { stroke: currentColor; stroke-width: 1; }
.lk-scope .knob { stroke: currentColor; stroke-width: 1.5; cursor: ns-resize; }
.lk-scope g[role=slider] { cursor: ns-resize; outline: none; }
.lk-scope g[role=slider]:focus .ring { stroke-opacity: 1; }
.lk-scope .ring { fill: none; stroke: var(--lk-lit); stroke-width: 3; stroke-opacity: 0; }
`;

const clamp = (x, limit) => Math.max(-limit, Math.min(limit, Math.round(x * 100) / 100));
const places = (x) => (x === 0 || Math.abs(x) >= 0.0995 ? x.toFixed(2) : Math.abs(x) < 5e-4 ? x.toExponential(1) : x.toPrecision(2));
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

function render({ model, el: host }) {
  const E = model.get("bias").length, wide = (W - LEFT - 12) / E, barW = Math.min(46, wide * 0.7);
  const id = "lk" + Math.random().toString(36).slice(2);
  const x = (e) => LEFT + (e + 0.5) * wide;
  const named = E <= 8, every = Math.ceil(E / 16);
  let bias = [...model.get("bias")], dragging = null, timer = null;

  el("style", {}, host, CSS);
  const { root, bar, body, says } = frame(host, model, "Router microscope",
    "← → expert · ↑ ↓ bias (Shift: five times) · 1–4 or [ ] step · R reset");
  root.classList.add("lk-scope");
  const pick = dropdown(bar, "Token", model.get("labels"), model.get("token"), (token) => send(model, { token }));
  const tabs = el("div", { class: "bar", role: "tablist", "aria-label": "Steps of the decision", style: "margin: 0" }, bar);
  const tab = STEPS.map(([name], i) => {
    const button = el("button", { type: "button", role: "tab", id: `${id}t${i}`, "aria-controls": `${id}p` }, tabs, `${i + 1} ${name}`);
    button.addEventListener("click", () => send(model, { step: i + 1 }));
    return button;
  });
  const reset = el("button", { type: "button", "aria-label": "Reset every bias to zero" }, bar, "Reset bias");
  const caption = el("p", { class: "says" }, body);

  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, id: `${id}p`, role: "tabpanel" }, body);
  const hatch = el("pattern", { id: `${id}h`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, el("defs", {}, svg));
  el("line", { class: "hatch", x1: 0, y1: 0, x2: 0, y2: 6 }, hatch);
  const grid = el("g", {}, svg);
  const unit = el("text", { x: 4, y: 14 }, svg);
  const zero = el("line", { class: "axis", x1: LEFT, x2: W - 12 }, svg);
  const cut = el("line", { class: "dash", x1: LEFT, x2: W - 12 }, svg);
  el("text", { x: 4, y: LANE_TOP - 12 }, svg, "bias of each expert, drag or ↑ ↓");
  const middle = LANE_TOP + LANE / 2;
  el("line", { class: "rule", x1: LEFT, x2: W - 12, y1: middle, y2: middle }, svg);
  const limit = model.get("bias_limit");
  for (const [y, text] of [[LANE_TOP, "+" + limit], [middle, "0"], [LANE_TOP + LANE, "−" + limit]])
    el("text", { class: "small halo", x: LEFT - 8, y: y + 4, "text-anchor": "end" }, svg, text);
  const columns = [...Array(E).keys()].map((e) => column(e));

  function column(e) {
    const bars = el("g", {}, svg);
    const body = el("rect", { width: barW, x: x(e) - barW / 2 }, bars);
    const extra = el("rect", { class: "hatch", width: barW, x: x(e) - barW / 2, fill: `url(#${id}h)` }, bars);
    const ghost = el("rect", { class: "ghost", width: barW, x: x(e) - barW / 2 }, bars);
    const value = el("text", { class: "small halo", x: x(e), "text-anchor": "middle" }, bars);
    const name = el("text", { class: "small halo", x: x(e), y: TOP + PLOT + 17, "text-anchor": "middle" }, svg);
    const slider = el("g", { role: "slider", "aria-orientation": "vertical", "aria-label": `Bias of expert ${e}`,
      "aria-valuemin": -limit, "aria-valuemax": limit, tabindex: -1, "data-expert": e }, svg);
    el("rect", { x: x(e) - wide / 2, y: LANE_TOP - 8, width: wide, height: LANE + 16, fill: "transparent" }, slider);
    el("line", { class: "rule", x1: x(e), x2: x(e), y1: LANE_TOP, y2: LANE_TOP + LANE }, slider);
    const r = Math.max(2.5, Math.min(9, wide * 0.35));
    const knob = el("circle", { class: "knob", cx: x(e), r }, slider);
    const ring = el("circle", { class: "ring", cx: x(e), r: r + 4 }, slider);
    const shown = el("text", { class: "small halo", x: x(e), y: LANE_TOP + LANE + 24, "text-anchor": "middle" }, svg);
    slider.addEventListener("pointerdown", (event) => grab(e, event));
    slider.addEventListener("focus", () => { if (model.get("expert") !== e) send(model, { expert: e }); });
    return { body, extra, ghost, value, name, slider, knob, ring, shown };
  }

  function setBias(e, value, now = true) {
    bias = bias.map((b, i) => (i === e ? clamp(value, limit) : b));
    draw();
    clearTimeout(timer);
    if (now) send(model, { bias: [...bias] });
    else timer = setTimeout(() => send(model, { bias: [...bias] }), 40);
  }

  function toBias(event) {
    const box = svg.getBoundingClientRect();
    return limit * (1 - (2 * (((event.clientY - box.top) * H) / box.height - LANE_TOP)) / LANE);
  }

  function grab(e, event) {
    event.preventDefault();
    columns[e].slider.focus();
    columns[e].slider.setPointerCapture(event.pointerId);
    const move = (ev) => { if (dragging === e) setBias(e, toBias(ev), false); };
    const drop = (ev) => {
      dragging = null;
      columns[e].slider.removeEventListener("pointermove", move);
      if (ev.type === "pointerup") setBias(e, toBias(ev));
    };
    dragging = e;
    columns[e].slider.addEventListener("pointermove", move);
    columns[e].slider.addEventListener("pointerup", drop, { once: true });
    columns[e].slider.addEventListener("pointercancel", drop, { once: true });
  }

  function toZero() {
    bias = bias.map(() => 0);
    draw();
    send(model, { bias: [...bias] });
  }

  function hold(e) {
    send(model, { expert: e });
    columns[e].slider.focus();
  }

  const keys = {
    ArrowLeft: () => hold((model.get("expert") + E - 1) % E),
    ArrowRight: () => hold((model.get("expert") + 1) % E),
    ArrowUp: (big) => setBias(model.get("expert"), bias[model.get("expert")] + model.get("bias_step") * (big ? 5 : 1)),
    ArrowDown: (big) => setBias(model.get("expert"), bias[model.get("expert")] - model.get("bias_step") * (big ? 5 : 1)),
    PageUp: () => keys.ArrowUp(true),
    PageDown: () => keys.ArrowDown(true),
    "[": () => send(model, { step: Math.max(1, model.get("step") - 1) }),
    "]": () => send(model, { step: Math.min(4, model.get("step") + 1) }),
    r: toZero,
    R: toZero,
  };
  for (let s = 1; s <= 4; s++) keys[s] = () => send(model, { step: s });

  onKeys(root, keys);
  reset.addEventListener("click", toZero);

  function parts(view, step) {
    const weight = new Map(view.chosen.map((e, i) => [e, view.weights[i]]));
    const total = view.scores.map((s, e) => s + bias[e]);
    if (step === 1) return { base: view.logits, tops: view.logits, unit: "logit" };
    if (step === 2) return { base: view.scores, tops: total, extra: true, unit: `${view.score_name} + bias` };
    if (step === 3) return { base: total, tops: total, cut: Math.min(...view.chosen.map((e) => total[e])), unit: `${view.score_name} + bias` };
    const w = view.scores.map((_, e) => weight.get(e) ?? 0);
    return { base: w, tops: w, ghosts: view.scores, unit: "weight of the expert's output" };
  }

  function draw() {
    const view = model.get("view"), step = model.get("step"), lit = model.get("expert"), palette = model.get("palette");
    if (!view.scores) return;
    const p = parts(view, step);
    const all = [0, ...p.base, ...p.tops, ...(p.ghosts ?? [])];
    let low = Math.min(...all), high = Math.max(...all);
    const pad = (high - low || 1) * 0.12;
    high += high > 0 ? pad : 0;
    low -= low < 0 ? pad : 0;
    if (high === low) high = low + 1;
    const y = (v) => TOP + PLOT * (1 - (v - low) / (high - low));
    const marks = ticks(low, high);
    grid.replaceChildren();
    for (const t of marks) {
      el("line", { class: "rule", x1: LEFT, x2: W - 12, y1: y(t), y2: y(t) }, grid);
      el("text", { class: "small halo", x: LEFT - 8, y: y(t) + 4, "text-anchor": "end" }, grid, String(parseFloat(t.toFixed(6))).replace("-", "−"));
    }
    set(zero, { y1: y(0), y2: y(0) });
    set(cut, p.cut === undefined ? { visibility: "hidden" } : { visibility: "visible", y1: y(p.cut), y2: y(p.cut) });
    unit.textContent = p.unit;
    const box = (node, a, b) => set(node, { y: Math.min(y(a), y(b)), height: Math.abs(y(a) - y(b)), visibility: "visible" });
    columns.forEach((c, e) => {
      const on = view.chosen.includes(e), color = named ? palette[e] : e === lit ? model.get("lit") : palette[e];
      const faint = step >= 3 && !on;
      box(c.body, 0, p.base[e]);
      set(c.body, { fill: color, "fill-opacity": faint ? 0.35 : 1 });
      if (p.extra && bias[e]) box(c.extra, p.base[e], p.tops[e]);
      else c.extra.setAttribute("visibility", "hidden");
      if (p.ghosts && on) box(c.ghost, 0, p.ghosts[e]);
      else c.ghost.setAttribute("visibility", "hidden");
      const top = Math.max(p.base[e], p.tops[e], 0);
      c.value.textContent = E > 16 ? (on ? "✓" : "") : step < 4 || on ? places(p.tops[e]).replace(/-/g, "−") : "";
      c.value.setAttribute("y", y(top) - 5);
      c.name.textContent = on && E <= 16 ? `✓ ${e}` : e % every === 0 ? e : "";
      c.name.setAttribute("font-weight", on && E <= 16 ? 700 : 400);
      const cy = middle - (bias[e] / limit) * (LANE / 2);
      for (const node of [c.knob, c.ring]) node.setAttribute("cy", Math.max(LANE_TOP, Math.min(LANE_TOP + LANE, cy)));
      c.knob.setAttribute("fill", color);
      c.shown.textContent = E <= 16 || e === lit ? signed(bias[e]) : "";
      set(c.slider, { tabindex: e === lit ? 0 : -1, "aria-valuenow": bias[e], "aria-valuetext": `${signed(bias[e])}, ${on ? "chosen" : "not chosen"}` });
    });
    tab.forEach((button, i) => set(button, { "aria-selected": i + 1 === step, tabindex: i + 1 === step ? 0 : -1 }));
    svg.setAttribute("aria-labelledby", `${id}t${step - 1}`);
    pick.value = model.get("token");
    caption.textContent = STEPS[step - 1][1];
    says.textContent = view.error || view.note;
    says.classList.toggle("error", Boolean(view.error));
  }

  const fromKernel = () => {
    if (dragging === null) bias = [...model.get("bias")];
    draw();
  };
  return redrawOn(model, ["view", "bias", "step", "expert", "token"], fromKernel);
}

export default { render };
