// Draws the loads of every run at one training step, and two curves over the steps; scrubs and plays. The kernel made
// all the numbers (`view`) and says in words what is seen (`says`).

const W = 840, LEFT = 52, GAP = 14, PANEL = 132, TITLE = 26, FOOT = 34, CURVE = 118;
const DASHES = ["none", "7 4", "2 4", "9 3 2 3", "14 3", "1 6"];

function render({ model, el: host }) {
  const names = model.get("names"), steps = model.get("steps"), layers = model.get("layers");
  const ui = frame(host, model, "Balance over training",
    "← → step · Home End first, last · space play, pause · ↑ ↓ run in hand · 1–6 show, hide a run");
  readableWhenNarrow(ui.root);
  let timer = null, bars = [], marks = [], notice = "";

  const play = el("button", { type: "button", "aria-label": "Play" }, ui.bar, "▶ Play");
  const scrub = slider(ui.bar, "Step", 0, steps.length - 1, 1, 0, (i) => { stop(); goTo(i); });
  const pick = layers.length < 2 ? null
    : dropdown(ui.bar, "Layer", layers, 0, (i) => send(model, { layer: i === layers.length - 1 ? -1 : i }));
  const row = el("div", { role: "group", "aria-label": "Runs shown", class: "bar", style: "margin: 0" }, ui.bar);
  const color = (r) => model.get("palette")[r];
  const toggles = names.map((name, r) => {
    const button = el("button", { type: "button" }, row);
    const svg = el("svg", { viewBox: "0 0 26 8", style: "display: inline-block; width: 26px; margin-right: 6px", "aria-hidden": "true" }, button);
    el("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: color(r), "stroke-width": 3, "stroke-dasharray": DASHES[r] }, svg);
    el("span", {}, button, name);
    button.addEventListener("click", () => toggle(r));
    return button;
  });
  const svg = el("svg", { role: "img", "aria-label": "Load of each expert in each run, and the balance over the steps" }, ui.body);

  const index = () => { const i = steps.indexOf(model.get("step")); return i < 0 ? 0 : i; };
  const goTo = (i) => { const to = clampTo(i, 0, steps.length - 1); if (to !== index()) send(model, { step: steps[to] }); };

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶ Play";
    play.setAttribute("aria-label", "Play");
  }

  function start() {
    if (steps.length < 2) return;
    if (index() === steps.length - 1) goTo(0);
    play.textContent = "⏸ Pause";
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(() => { if (index() >= steps.length - 1) stop(); else goTo(index() + 1); }, clampTo(9000 / steps.length, 80, 600));
  }

  const playOrPause = () => (timer === null ? start() : stop());
  play.addEventListener("click", playOrPause);

  const speak = () => { ui.says.textContent = model.get("says") + notice; };

  function toggle(r) {
    const shown = model.get("shown"), name = names[r];
    const next = shown.includes(name) ? shown.filter((n) => n !== name) : names.filter((n) => n === name || shown.includes(n));
    notice = next.length ? "" : ` ${name} is the only run shown; show another one before you hide it.`;
    if (next.length) send(model, { shown: next });
    else speak();
  }

  function hold(by) {
    const shown = model.get("shown"), i = shown.indexOf(model.get("run"));
    send(model, { run: shown[(i + by + shown.length) % shown.length] });
  }

  const byKey = (i) => () => { stop(); goTo(i()); };
  const keys = {
    ArrowLeft: byKey(() => index() - 1), ArrowRight: byKey(() => index() + 1),
    PageUp: byKey(() => index() - 10), PageDown: byKey(() => index() + 10),
    Home: byKey(() => 0), End: byKey(() => steps.length - 1),
    " ": playOrPause, ArrowUp: () => hold(-1), ArrowDown: () => hold(1),
  };
  names.forEach((_, r) => { keys[r + 1] = () => toggle(r); });
  onKeys(ui.root, keys);

  // One panel of bars: the load of each expert of run r; `move` sets the heights.
  function panel(r, x0, y0, wide) {
    const view = model.get("view"), E = view.runs[r].load[0].length, even = 1 / E;
    const top = Math.max(view.load_top, even) * 1.12;
    const y = (v) => y0 + PANEL * (1 - v / top), held = names[r] === model.get("run");
    const group = el("g", { "data-run": names[r], style: "cursor: pointer" }, svg);
    el("rect", { x: x0 - 4, y: y0 - TITLE, width: wide + 8, height: TITLE + PANEL + FOOT, fill: "transparent" }, group);
    el("rect", { x: x0, y: y0 - 17, width: 10, height: 10, fill: color(r) }, group);
    const title = el("text", { x: x0 + 15, y: y0 - 8, "font-weight": held ? 700 : 400 }, group, names[r]);
    if (held) el("line", { x1: x0, x2: x0 + wide, y1: y0 - 3, y2: y0 - 3, stroke: model.get("lit"), "stroke-width": 2 }, group);
    const first = x0 === LEFT;
    for (const t of ticks(0, top, 3)) {
      el("line", { class: "rule", x1: x0, x2: x0 + wide, y1: y(t), y2: y(t) }, group);
      if (first) el("text", { class: "small", x: x0 - 6, y: y(t) + 4, "text-anchor": "end" }, group, percent(t, top < 0.1 ? 1 : 0));
    }
    const step = wide / E, rects = [...Array(E).keys()].map((e) => el("rect", { x: x0 + (e + 0.1) * step, width: step * 0.8 }, group));
    el("line", { class: "dash", x1: x0, x2: x0 + wide, y1: y(even), y2: y(even) }, group);
    el("text", { class: "small halo", x: x0 + wide, y: y(even) - 4, "text-anchor": "end" }, group, `1/E = ${plain(100 * even)} %`);
    el("line", { class: "axis", x1: x0, x2: x0 + wide, y1: y(0), y2: y(0) }, group);
    for (let e = 0; e < E; e += Math.ceil(E / 8)) el("text", { class: "small", x: x0 + (e + 0.5) * step, y: y(0) + 14, "text-anchor": "middle" }, group, e + (view.ranked ? 1 : 0));
    el("text", { class: "small", x: x0 + wide / 2, y: y(0) + 28, "text-anchor": "middle" }, group, view.ranked ? "rank of the expert in its layer" : "expert");
    group.addEventListener("click", () => send(model, { run: names[r] }));
    bars.push({ r, rects, y, title });
  }

  // One curve over the steps for each run shown, from `low` to `high`, `even` being the value of an even load.
  function curves(field, label, x0, y0, wide, low, high, even) {
    const view = model.get("view"), first = steps[0], last = steps[steps.length - 1];
    const x = (s) => x0 + (last > first ? (wide * (s - first)) / (last - first) : wide / 2);
    const y = (v) => y0 + CURVE * (1 - (v - low) / (high - low));
    const group = el("g", { style: "cursor: ew-resize; touch-action: none", "data-curve": field }, svg);
    const ground = el("rect", { x: x0, y: y0, width: wide, height: CURVE, fill: "transparent" }, group);
    el("text", { x: x0, y: y0 - 9 }, group, label);
    gridLines(group, ticks(low, high, 3).filter((t) => t <= Math.max(high, even) + 1e-9), y, x0, x0 + wide);
    el("line", { class: "dash", x1: x0, x2: x0 + wide, y1: y(even), y2: y(even) }, group);
    el("line", { class: "axis", x1: x0, x2: x0 + wide, y1: y0 + CURVE, y2: y0 + CURVE }, group);
    const marked = last > first ? ticks(first, last, 4).filter(Number.isInteger) : [first];
    for (const s of marked) el("text", { class: "small", x: x(s), y: y0 + CURVE + 15, "text-anchor": "middle" }, group, s);
    el("text", { class: "small", x: x0 + wide / 2, y: y0 + CURVE + 30, "text-anchor": "middle" }, group, "training step");
    const cursor = el("line", { y1: y0, y2: y0 + CURVE, stroke: model.get("lit"), "stroke-width": 2 }, group);
    const dots = model.get("shown").map((name) => {
      const r = names.indexOf(name), run = view.runs[r];
      const points = run.steps.map((s, i) => `${x(s).toFixed(1)},${y(run[field][i]).toFixed(1)}`).join(" ");
      el("polyline", { points, fill: "none", stroke: color(r), "stroke-width": name === model.get("run") ? 3 : 2, "stroke-dasharray": DASHES[r] }, group);
      return { run, dot: el("circle", { r: 4.5, fill: color(r), stroke: "currentColor" }, group) };
    });
    const toStep = (event) => {
      const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) * W) / box.width;
      const wanted = first + ((at - x0) / wide) * (last - first);
      goTo(steps.reduce((best, s, i) => (Math.abs(s - wanted) < Math.abs(steps[best] - wanted) ? i : best), 0));
    };
    group.addEventListener("pointerdown", (event) => { stop(); ground.setPointerCapture(event.pointerId); toStep(event); });
    ground.addEventListener("pointermove", (event) => { if (event.buttons & 1 && ground.hasPointerCapture(event.pointerId)) toStep(event); });
    marks.push({ field, x, y, cursor, dots });
  }

  function build() {
    const view = model.get("view"), shown = model.get("shown"), n = shown.length;
    if (!view.runs) return;
    svg.replaceChildren();
    [bars, marks] = [[], []];
    const columns = n <= 3 ? n : Math.ceil(n / 2), wide = (W - LEFT - 8 - GAP * (columns - 1)) / columns;
    const high = TITLE + PANEL + FOOT + 6;
    shown.forEach((name, i) => panel(names.indexOf(name), LEFT + (i % columns) * (wide + GAP), TITLE + Math.floor(i / columns) * high, wide));
    const y0 = Math.ceil(n / columns) * high + 30, half = (W - 2 * LEFT - 8) / 2 - 4;
    const low = Math.min(view.entropy_low, 0.99), top = (view.violation_top || 1) * 1.05;
    curves("max_violation", "MaxVio: busiest over mean load, less 1; 0 is even", LEFT, y0, half, 0, top, 0);
    curves("entropy", "normalised entropy of the load; 1 is even", 2 * LEFT + half + 8, y0, half - 8, low - 0.04 * (1 - low), 1 + 0.04 * (1 - low), 1);
    svg.setAttribute("viewBox", `0 0 ${W} ${y0 + CURVE + 36}`);
    toggles.forEach((button, r) => button.setAttribute("aria-pressed", String(shown.includes(names[r]))));
    if (pick) pick.value = (model.get("layer") + layers.length) % layers.length;
    move();
  }

  function move() {
    const view = model.get("view"), i = index();
    for (const { r, rects, y, title } of bars) {
      const run = view.runs[r], load = run.load[run.at[i]], busiest = load.indexOf(Math.max(...load));
      rects.forEach((rect, e) => set(rect, { y: y(load[e]), height: y(0) - y(load[e]), fill: color(r), "fill-opacity": e === busiest ? 1 : 0.55 }));
      title.textContent = `${names[r]}   MaxVio ${run.max_violation[run.at[i]].toFixed(2)}`;
    }
    for (const { field, x, y, cursor, dots } of marks) {
      set(cursor, { x1: x(steps[i]), x2: x(steps[i]) });
      for (const { run, dot } of dots) set(dot, { cx: x(run.steps[run.at[i]]), cy: y(run[field][run.at[i]]) });
    }
    scrub.show(i, `step ${steps[i]}`);
  }

  const offs = [redrawOn(model, ["view", "shown", "run"], build), redrawOn(model, ["step"], move), redrawOn(model, ["says"], speak)];
  return () => { stop(); offs.forEach((off) => off()); };
}

export default { render };
