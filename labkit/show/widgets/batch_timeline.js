// Draws what sequences do over the steps, the pool of blocks at one step, and all steps small above them. The kernel cuts
// out what is drawn (`rows`, `pool`, `whole`); a page of the pool holds many steps, so playing waits for nobody.

const W = 840, LEFT = 74, RIGHT = 12, PLOT = W - LEFT - RIGHT, SMALL_TOP = 18, SMALL = 54, SMALL_H = SMALL_TOP + SMALL + 30;
const KEPT = 0, RESERVED = 1, HELD = 2, DARKER = "#8E8E8E";
const DOES = { prefill: "computes its prompt", decode: "decodes", padding: "computes padding", waiting: "waits", idle: "holds blocks, computes nothing" };
const BATCH_CSS = `
.lk .faint { stroke: currentColor; stroke-opacity: .22; fill: none; }
.lk .wait { stroke: currentColor; stroke-opacity: .5; stroke-width: 1.5; }
.lk .mark { fill: currentColor; stroke: var(--jp-layout-color0, var(--vscode-editor-background, Canvas)); stroke-width: 1; }
.lk .tip { min-height: 1.45em; }
.lk table.ways { border-collapse: collapse; margin: 2px 0 8px; font-size: 12px; }
.lk table.ways th, .lk table.ways td { text-align: right; padding: 1px 10px 1px 0; background: none; font-variant-numeric: tabular-nums; }
.lk table.ways th:first-child { text-align: left; }
.lk .waste { display: inline-block; width: 90px; height: 9px; border: 1px solid currentColor; margin-left: 8px; }
.lk .waste i { display: block; height: 100%; background: repeating-linear-gradient(45deg, currentColor 0 1px, transparent 1px 4px); }
`;

function render({ model, el: host }) {
  const N = model.get("num_rows"), few = N <= model.get("palette").length, ways = model.get("ways"), sizes = model.get("sizes");
  const id = "lk" + Math.random().toString(36).slice(2), many = (n) => n.toLocaleString("en-US");
  const ui = frame(host, model, "Batch timeline", "← → step · PageUp PageDown ten steps · Home End first, last · space play, pause · ↑ ↓ sequence"
    + `, with Shift a page of them · 0 none · [ ] steps shown · P next preemption${ways.length > 1 ? " · W next way" : ""} · or click`);
  el("style", {}, host, BATCH_CSS);
  readableWhenNarrow(ui.root);
  let timer = null, lines = { top: 0, high: 1 }, grid = null, byCell = [];

  const play = el("button", { type: "button", "aria-label": "Play" }, ui.bar, "▶ Play");
  const scrub = slider(ui.bar, "Step", 0, model.get("num_steps") - 1, 1, 0, (s) => { stop(); goTo(s); });
  const zoom = dropdown(ui.bar, "Steps shown", sizes.map(many), 0, (i) => send(model, { shown: sizes[i] }));
  const table = ways.length > 1 ? el("table", { class: "ways" }, ui.body) : null;
  const small = el("svg", { viewBox: `0 0 ${W} ${SMALL_H}`, role: "img", "aria-label": "Tokens computed in every step" }, ui.body);
  const svg = el("svg", { role: "img", "aria-label": "What every sequence does" }, ui.body);
  const blocks = el("svg", { role: "img", "aria-label": "The pool of blocks" }, ui.body);
  const tip = el("p", { class: "says tip" }, ui.body), note = el("p", { class: "says" }, ui.body), detail = el("p", { class: "says", role: "status" }, ui.body);
  const defs = el("defs", {}, svg);
  for (const [name, turns] of [["h", [45]], ["x", [45, 135]]]) {
    const pattern = el("pattern", { id: id + name, width: 5, height: 5, patternUnits: "userSpaceOnUse" }, defs);
    for (const turn of turns) el("path", { d: turn === 45 ? "M-1 1L1 -1M0 5L5 0M4 6L6 4" : "M-1 4L1 6M0 0L5 5M4 -1L6 1", stroke: "currentColor", "stroke-width": 1 }, pattern);
  }
  const plot = el("g", { "data-plot": "", style: "cursor: pointer" }, svg), cursor = el("rect", { fill: "none", stroke: model.get("lit"), "stroke-width": 1.5, "pointer-events": "none" }, svg);
  const bars = el("g", { style: "cursor: ew-resize; touch-action: none", "data-small": "" }, small), now = el("g", { "pointer-events": "none" }, small);

  const step = () => model.get("step"), last = () => model.get("num_steps") - 1;
  const goTo = (s) => { const to = clampTo(Math.round(s), 0, last()); if (to !== step()) send(model, { step: to }); };
  const pick = (row) => { if (row !== model.get("selected")) send(model, { selected: row }); };
  const view = () => model.get("rows");
  const place = (event, node) => { const box = node.getBoundingClientRect(), scale = W / box.width; return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]; };
  const x = (s) => LEFT + ((s - view().first) / model.get("shown")) * PLOT;

  // Up to eight sequences have their own colours; of more, and while one is in hand, the rest are grey.
  function color(row, pool = false) {
    const chosen = model.get("selected");
    if (row >= 0 && few && (chosen < 0 || row === chosen)) return model.get("palette")[row];
    if (row >= 0 && row === chosen) return model.get("lit");
    return pool && row % 2 ? DARKER : model.get("grey");
  }

  // --- playing

  function stop() {
    clearInterval(timer);
    timer = null;
    ui.says.setAttribute("aria-live", "polite");
    play.textContent = "▶ Play";
    play.setAttribute("aria-label", "Play");
  }

  function start() {
    if (last() === 0) return;
    if (step() === last()) goTo(0);
    const seen = Math.min(model.get("shown"), last() + 1), by = Math.max(1, Math.round(seen / 120));
    ui.says.setAttribute("aria-live", "off");
    play.textContent = "⏸ Pause";
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(() => { if (step() >= last()) stop(); else goTo(step() + by); }, clampTo(6000 / Math.min(seen, 120), 80, 400));
  }

  const playOrPause = () => (timer === null ? start() : stop());
  play.addEventListener("click", playOrPause);

  // --- all steps, small

  function drawSmall() {
    const whole = model.get("whole"), { edges } = whole, S = edges[edges.length - 1], wide = (s) => LEFT + (s / S) * PLOT;
    const sums = whole.prefill.map((v, i) => v + whole.decode[i] + whole.wasted[i]), top = Math.max(...sums, 1), base = SMALL_TOP + SMALL;
    bars.replaceChildren();
    el("rect", { x: LEFT, y: SMALL_TOP, width: PLOT, height: SMALL, fill: "transparent" }, bars);
    const under = edges.slice(1).map(() => 0);
    for (const [name, attrs] of [["decode", { fill: "currentColor", "fill-opacity": 0.3 }], ["prefill", { fill: "currentColor", "fill-opacity": 0.75 }], ["wasted", { fill: `url(#${id}h)` }]]) {
      const d = whole[name].map((v, i) => {
        const high = (SMALL * v) / top, y = base - (SMALL * (under[i] += v)) / top;
        return v ? `M${wide(edges[i]).toFixed(2)} ${y.toFixed(2)}H${wide(edges[i + 1]).toFixed(2)}v${high.toFixed(2)}H${wide(edges[i]).toFixed(2)}z` : "";
      }).join("");
      el("path", { d, ...attrs, "data-sum": name }, bars);
    }
    if (whole.held.length) el("polyline", { class: "dash", points: whole.held.map((v, i) => `${((wide(edges[i]) + wide(edges[i + 1])) / 2).toFixed(1)},${(base - SMALL * v).toFixed(1)}`).join(" ") }, bars);
    whole.preempted.forEach((n, i) => { if (n) el("path", { class: "mark", d: `M${wide(edges[i]) - 4} ${SMALL_TOP - 5}h8l-4 7z` }, bars); });
    el("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: base, y2: base }, bars);
    el("text", { class: "small", x: LEFT - 6, y: SMALL_TOP + 9, "text-anchor": "end" }, bars, many(Math.round(top)));
    el("text", { class: "small", x: LEFT - 6, y: base, "text-anchor": "end" }, bars, "0");
    legend(bars, base + 15, [["decode", { fill: "currentColor", "fill-opacity": 0.3 }], ["prompts", { fill: "currentColor", "fill-opacity": 0.75 }],
      ["wasted tokens in a step", { fill: `url(#${id}h)`, stroke: "currentColor", "stroke-width": 0.6 }], ...(whole.held.length ? [["share of blocks held, up to 100 %", null]] : [])]);
    drawNow();
  }

  // Boxes with words on a line; without attributes the dashed line.
  function legend(group, y, entries) {
    let at = LEFT;
    for (const [text, attrs, draw] of entries) {
      if (draw) draw(at, y - 8);
      else if (attrs) el("rect", { x: at, y: y - 8, width: 16, height: 9, ...attrs }, group);
      else el("line", { class: "dash", x1: at, x2: at + 16, y1: y - 4, y2: y - 4 }, group);
      el("text", { class: "small", x: at + 21, y }, group, text);
      at += 31 + text.length * 7.3;
    }
  }

  function drawNow() {
    const { edges } = model.get("whole"), S = edges[edges.length - 1], { first, end } = view(), wide = (s) => LEFT + (s / S) * PLOT;
    now.replaceChildren();
    el("rect", { class: "faint", x: wide(first), y: SMALL_TOP, width: wide(end) - wide(first), height: SMALL, style: "stroke-opacity: .8" }, now);
    el("line", { x1: wide(step() + 0.5), x2: wide(step() + 0.5), y1: SMALL_TOP - 3, y2: SMALL_TOP + SMALL + 3, stroke: model.get("lit"), "stroke-width": 2 }, now);
  }

  const toSmall = (event) => { stop(); goTo(((place(event, small)[0] - LEFT) / PLOT) * (last() + 1) - 0.5); };
  bars.addEventListener("pointerdown", (event) => { bars.setPointerCapture(event.pointerId); toSmall(event); });
  bars.addEventListener("pointermove", (event) => { if (event.buttons & 1 && bars.hasPointerCapture(event.pointerId)) toSmall(event); });

  // --- sequences

  const MARKS = {
    arrived: (at, y) => `M${at} ${y - 5}v10l5 -5z`, preempted: (at, y) => `M${at - 5} ${y - 5}h10l-5 9z`, finished: (at, y) => `M${at - 6} ${y - 3.5}h7v7h-7z`,
    cancelled: (at, y) => `M${at - 7} ${y - 4}l1.5 -1.5l3.5 3.5l3.5 -3.5l1.5 1.5l-3.5 3.5l3.5 3.5l-1.5 1.5l-3.5 -3.5l-3.5 3.5l-1.5 -1.5l3.5 -3.5z`,
    cached: (at, y) => `M${at} ${y}l4 -5l4 5l-4 5z`,
  };
  MARKS.failed = MARKS.cancelled;

  function bar(group, kind, left, right, y, high, fill, wasted) {
    const width = Math.max(right - left, 1.5), box = (share, attrs) => el("rect", { x: left, y: y + (high * (1 - share)) / 2, width, height: high * share, ...attrs }, group);
    if (kind === "waiting") return el("line", { class: "wait", x1: left, x2: left + width, y1: y + high / 2, y2: y + high / 2 }, group);
    if (kind === "idle") return box(0.5, { fill: "none", stroke: fill, "stroke-width": 1.5 });
    if (kind === "padding") return box(0.62, { fill: `url(#${id}h)`, stroke: "currentColor", "stroke-width": 0.5, "stroke-opacity": 0.6 });
    const drawn = box(kind === "prefill" ? 0.95 : 0.62, { fill });
    if (wasted) box(kind === "prefill" ? 0.95 : 0.62, { fill: `url(#${id}x)` });
    else if (kind === "prefill") box(0.95, { fill: `url(#${id}h)` });
    return drawn;
  }

  function drawRows() {
    const { first, end, rows } = view(), top = 30, high = rows.length <= 8 ? 22 : 15, bottom = top + rows.length * high, chosen = model.get("selected");
    lines = { top, high, bottom };
    svg.setAttribute("viewBox", `0 0 ${W} ${bottom + 40}`);
    plot.replaceChildren();
    const shapes = (kind) => (at, y) => el("path", { class: "mark", d: MARKS[kind](at + 6, y + 4) }, plot), sample = (kind, wasted) => (at, y) => bar(plot, kind, at, at + 16, y - 1, 11, model.get("grey"), wasted);
    legend(plot, 12, [["prompt", 0, sample("prefill")], ["decode", 0, sample("decode")], ["waits", 0, sample("waiting")], ["padding", 0, sample("padding")], ["again", 0, sample("decode", 1)],
      ["arrives", 0, shapes("arrived")], ["from cache", 0, shapes("cached")], ["preempted", 0, shapes("preempted")], ["ends", 0, shapes("finished")]]);
    el("rect", { x: 0, y: top, width: W - RIGHT, height: rows.length * high, fill: "transparent" }, plot);
    for (const s of ticks(first, first + model.get("shown"), 8).filter(Number.isInteger)) {
      el("line", { class: "rule", x1: x(s), x2: x(s), y1: top, y2: bottom }, plot);
      el("text", { class: "small", x: x(s), y: bottom + 15, "text-anchor": "middle" }, plot, many(s));
    }
    el("text", { class: "small", x: LEFT + PLOT / 2, y: bottom + 31, "text-anchor": "middle" }, plot, "step");
    rows.forEach((r, i) => {
      const y = top + i * high, group = el("g", { "data-row": r.row }, plot), middle = y + high / 2;
      if (r.row === chosen) el("rect", { x: 0, y, width: W - RIGHT, height: high, fill: model.get("lit"), "fill-opacity": 0.12 }, group);
      const name = r.id.length > 9 ? `${r.id.slice(0, 8)}…` : r.id;
      el("text", { class: "small", x: LEFT - 8, y: middle + 4, "text-anchor": "end", "font-weight": r.row === chosen ? 800 : 400 }, group, name);
      for (const [kind, low, to, , , wasted] of r.runs) set(bar(group, kind, x(low), x(to), y + 1, high - 2, color(r.row), wasted), { "data-kind": kind, "data-first": low, "data-end": to });
      for (const [s, what] of r.marks) {
        const ends = what === "finished" || what === "cancelled" || what === "failed";
        el("path", { class: "mark", d: MARKS[what](ends ? Math.max(x(s + 1), x(s) + 2) : x(s), middle), "data-mark": what, "data-step": s }, group);
      }
    });
    svg.setAttribute("aria-label", `What ${rows.length} sequences do in steps ${first} to ${end - 1}`);
    drawNow();
    moveCursor();
  }

  function moveCursor() {
    const { first, end } = view(), inside = step() >= first && step() < end;
    set(cursor, { x: x(step()), y: lines.top - 3, width: Math.max(PLOT / model.get("shown"), 2), height: lines.bottom - lines.top + 6, visibility: inside ? "visible" : "hidden" });
  }

  // What stands under the pointer: [row of the view or undefined, step].
  function pointed(event) {
    const [px, py] = place(event, svg), { first, end, rows } = view();
    return [rows[Math.floor((py - lines.top) / lines.high)], clampTo(Math.floor(first + ((px - LEFT) / PLOT) * model.get("shown")), first, end - 1), px];
  }

  plot.addEventListener("click", (event) => {
    const [row, at, px] = pointed(event);
    stop();
    if (row && px < LEFT) pick(row.row === model.get("selected") ? -1 : row.row);
    else if (row) send(model, { selected: row.row, step: at });
    ui.root.focus({ preventScroll: true });
  });
  plot.addEventListener("pointermove", (event) => {
    const [row, at] = pointed(event), run = row?.runs.find(([, low, to]) => low <= at && at < to);
    if (!row) return say();
    const marks = row.marks.filter(([s]) => s === at).map(([, what, tokens]) => (what === "cached" ? `, ${many(tokens)} tokens from the cache` : `, ${what}`)).join("");
    if (!run) return say(`Sequence ${row.id}, step ${many(at)}: not there.`);
    const [kind, low, to, from, tokens, wasted] = run, long = to - low > 1 ? `steps ${many(low)} to ${many(to - 1)}` : `step ${many(low)}`;
    const what = tokens ? `, ${many(tokens)} token${tokens === 1 ? "" : "s"} from position ${many(from)}${wasted ? `, ${many(wasted)} wasted` : ""}` : "";
    say(`Sequence ${row.id}, ${long}: ${DOES[kind]}${what}${marks}.`);
  });
  const say = (text = "Point at a bar or a block to read what it is.") => { tip.textContent = text; };
  for (const part of [svg, blocks]) part.addEventListener("pointerleave", () => say());

  // --- the pool

  function readPool() {
    const { cells, segments } = model.get("pool");
    byCell = Array.from({ length: cells }, () => []);
    for (const segment of segments) byCell[segment[0]].push(segment);
    let size = 26, columns = 1;
    for (; size > 6; size -= 1) {
      columns = Math.max(1, Math.floor(PLOT / size));
      if (Math.ceil(cells / columns) * size <= 208) break;
    }
    grid = { size, columns, top: 26 };
    blocks.style.display = cells ? "block" : "none";
    blocks.setAttribute("viewBox", `0 0 ${W} ${grid.top + Math.ceil(cells / columns) * size + 26}`);
    drawPool();
  }

  const diamond = (cx, cy, r) => `M${cx.toFixed(1)} ${(cy - r).toFixed(1)}l${r.toFixed(1)} ${r.toFixed(1)}l${(-r).toFixed(1)} ${r.toFixed(1)}l${(-r).toFixed(1)} ${(-r).toFixed(1)}z`;
  const cellAt = (cell) => byCell[cell].find(([, low, to]) => low <= step() && step() < to);

  function drawPool() {
    const { first, end, cells, per_cell } = model.get("pool"), { size, columns, top } = grid, known = step() >= first && step() < end;
    blocks.replaceChildren();
    if (!cells) return;
    const group = el("g", { "data-pool": known ? step() : -1, opacity: known ? 1 : 0.4, style: "cursor: pointer" }, blocks), paths = new Map(), names = [];
    const add = (key, d) => paths.set(key, (paths.get(key) ?? "") + d), box = (px, py, w, h) => `M${px.toFixed(1)} ${py.toFixed(1)}h${w.toFixed(1)}v${h.toFixed(1)}h${(-w).toFixed(1)}z`;
    const count = { held: 0, shared: 0, kept: 0 };
    for (let cell = 0; cell < cells; cell++) {
      const px = LEFT + (cell % columns) * size, py = top + Math.floor(cell / columns) * size, inner = size - 2, found = cellAt(cell);
      add("faint", box(px + 1, py + 1, inner, inner));
      if (!found) continue;
      const [, , , state, row, holders, n] = found, high = (inner * n) / per_cell, own = color(row, true);
      add(`${state} ${own}`, box(px + 1, py + 1 + inner - high, inner, high));
      const name = model.get("ids")[row] ?? "";
      if (size >= 22 && name.length <= 3) names.push([px + size * 0.46, py + size - 5, name, state === HELD ? inkOn(own) : "currentColor"]);
      if (state === KEPT) { count.kept += n; continue; }
      count.held += n;
      if (holders > 1) { count.shared += 1; add(`dot ${inkOn(own)}`, size >= 22 ? diamond(px + size * 0.76, py + size * 0.24, size * 0.15) : diamond(px + size / 2, py + size / 2, size * 0.28)); }
    }
    for (const [key, d] of paths) {
      const [state, own] = key.split(" ");
      if (state === "faint") el("path", { d, class: "faint" }, group);
      else if (state === "dot") el("path", { d, fill: own }, group);
      else el("path", { d, fill: own, "fill-opacity": [0.28, 0.12, 1][state], "data-state": ["kept", "reserved", "held"][state], ...(Number(state) === RESERVED ? { stroke: own, "stroke-width": 1.5 } : {}) }, group);
    }
    for (const [px, py, name, fill] of names) el("text", { x: px, y: py, "text-anchor": "middle", style: `fill: ${fill}; font-size: 10px; pointer-events: none` }, group, name);
    const title = known ? `Block pool at step ${many(step())}: ${many(count.held)} held, ${many(count.kept)} kept for reuse` : "Block pool: waiting for the kernel";
    el("text", { x: LEFT, y: 16 }, blocks, title);
    const y = top + Math.ceil(cells / columns) * size + 16, sample = (attrs) => (at, low) => el("rect", { x: at + 2, y: low - 1, width: 11, height: 11, ...attrs }, blocks), ink = model.get("grey");
    legend(blocks, y, [["held", 0, sample({ fill: ink })], ["by more than one", 0, (at, low) => { sample({ fill: ink })(at, low); el("path", { d: `M${at + 7.5} ${low + 1}l3.5 3.5l-3.5 3.5l-3.5 -3.5z`, fill: "#000" }, blocks); }],
      ["reserved, nothing in it yet", 0, sample({ fill: ink, "fill-opacity": 0.12, stroke: ink, "stroke-width": 1.5 })], ["kept for reuse", 0, sample({ fill: ink, "fill-opacity": 0.28 })], ["empty", 0, sample({ class: "faint" })]]);
    blocks.setAttribute("aria-label", title);
  }

  function pointedCell(event) {
    const [px, py] = place(event, blocks), { size, columns, top } = grid, column = Math.floor((px - LEFT) / size), line = Math.floor((py - top) / size);
    const cell = line * columns + column;
    return column >= 0 && column < columns && line >= 0 && cell < byCell.length ? cell : -1;
  }

  blocks.addEventListener("pointermove", (event) => {
    const cell = pointedCell(event), { per_cell } = model.get("pool");
    if (cell < 0) return say();
    const found = cellAt(cell), name = per_cell > 1 ? `Blocks ${cell * per_cell} to ${(cell + 1) * per_cell - 1}` : `Block ${cell}`;
    if (!found) return say(`${name}: empty.`);
    const [, low, to, state, row, holders, n] = found, who = row < 0 ? "a sequence before the recording" : `sequence ${model.get("ids")[row] ?? row}`;
    const of = per_cell > 1 ? `${n} of them ` : "", others = holders > 1 ? ` and ${holders - 1} more` : "";
    say(`${name}, steps ${many(low)} to ${many(to - 1)} at least: ${of}${state === KEPT ? `kept, last held by ${who}` : `held by ${who}${others}${state === RESERVED ? ", nothing of use in it yet" : ""}`}.`);
  });
  blocks.addEventListener("click", (event) => {
    const cell = pointedCell(event), found = cell < 0 ? null : cellAt(cell);
    if (found && found[4] >= 0) pick(found[4] === model.get("selected") ? -1 : found[4]);
    ui.root.focus({ preventScroll: true });
  });

  // --- words and controls

  function drawWays() {
    if (!table) return;
    table.replaceChildren();
    const head = el("tr", {}, table);
    for (const text of ["way of batching", "steps", "seconds", "tokens computed", "wasted"]) el("th", { scope: "col" }, head, text);
    ways.forEach(([name, steps, seconds, tokens, wasted], i) => {
      const line = el("tr", {}, table), button = el("button", { type: "button", "aria-pressed": String(i === model.get("way")) }, el("th", { scope: "row" }, line), name);
      button.addEventListener("click", () => toWay(i));
      for (const text of [many(steps), seconds === null ? "–" : seconds.toFixed(2), many(tokens)]) el("td", {}, line, text);
      const cell = el("td", {}, line, percent(wasted));
      el("i", { style: `width: ${100 * wasted}%` }, el("span", { class: "waste", "aria-hidden": "true" }, cell));
    });
  }

  function toWay(i) { stop(); if (i !== model.get("way")) send(model, { way: i }); }

  function drawWords() {
    note.textContent = model.get("note");
    detail.textContent = model.get("detail");
    ui.says.textContent = model.get("says");
    ui.sampled.textContent = model.get("sampled");
    zoom.value = sizes.indexOf(model.get("shown"));
    scrub.input.max = last();
    scrub.show(step(), many(step()));
  }

  // The next sequence in sight, or the first of another page.
  function walk(by, page) {
    const { rows, before, after } = view(), at = rows.findIndex((r) => r.row === model.get("selected")) + by;
    const beyond = by < 0 ? before : after;
    if ((page || at < 0 || at >= rows.length) && beyond >= 0) pick(beyond);
    else if (rows.length) pick(rows[clampTo(page ? (by < 0 ? 0 : rows.length - 1) : at, 0, rows.length - 1)].row);
  }

  const byKey = (to) => () => { stop(); goTo(to()); }, size = (by) => send(model, { shown: sizes[clampTo(sizes.indexOf(model.get("shown")) + by, 0, sizes.length - 1)] });
  const nextLoss = () => { const next = model.get("preempted").find((s) => s > step()) ?? model.get("preempted")[0]; if (next !== undefined) { stop(); goTo(next); } };
  onKeys(ui.root, {
    ArrowLeft: byKey(() => step() - 1), ArrowRight: byKey(() => step() + 1), PageUp: byKey(() => step() - 10), PageDown: byKey(() => step() + 10),
    Home: byKey(() => 0), End: byKey(last), " ": playOrPause, ArrowUp: (shift) => walk(-1, shift), ArrowDown: (shift) => walk(1, shift), 0: () => pick(-1),
    "[": () => size(-1), "]": () => size(1), p: nextLoss, P: nextLoss, w: () => toWay((model.get("way") + 1) % ways.length), W: () => toWay((model.get("way") + 1) % ways.length),
  });

  say();
  const offs = [
    redrawOn(model, ["rows", "selected", "shown"], drawRows), redrawOn(model, ["whole"], drawSmall), redrawOn(model, ["pool"], readPool),
    redrawOn(model, ["step"], () => { moveCursor(); drawNow(); drawPool(); }), redrawOn(model, ["selected"], drawPool), redrawOn(model, ["way"], drawWays),
    redrawOn(model, ["note", "detail", "says", "sampled", "shown", "step", "num_steps"], drawWords),
  ];
  return () => { stop(); offs.forEach((off) => off()); };
}

export default { render };
