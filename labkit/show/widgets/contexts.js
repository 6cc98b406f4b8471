// One word's occurrences as lines with the word in the middle, their experts as numbered chips, and the load of them all
// beside everyone's. The kernel finds, counts and says; this draws.

const CTX_W = 860, CTX_L = 190, CTX_R = 850, CTX_BARS = 130, CTX_TOP = 24, CTX_ROW = 19;
const CTX_CSS = `
.lk .lines { max-height: 300px; overflow-y: auto; border: 1px solid var(--jp-border-color2, #9996); border-radius: 4px; margin-top: 6px; }
.lk .line { display: grid; grid-template-columns: 92px minmax(0, 1fr) auto minmax(0, 1fr) auto; gap: 4px; align-items: center;
  padding: 1px 6px; cursor: pointer; border-left: 4px solid transparent; }
.lk .line[aria-selected=true] { border-left-color: var(--lk-lit); background: var(--jp-layout-color2, rgba(128, 128, 128, .15)); }
.lk .line .where { font-size: 11px; opacity: .75; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.lk .line .text { font: 12.5px var(--jp-code-font-family, monospace); white-space: pre; overflow: hidden; }
.lk .line .left { display: flex; justify-content: flex-end; }
.lk .line .key { font-weight: 800; }
.lk .line .text span:hover { text-decoration: underline; }
.lk .chips { display: flex; gap: 2px; }
.lk .chip { min-width: 22px; text-align: center; font-size: 11px; padding: 0 2px; border-radius: 3px; border-bottom: 2px solid transparent; }
.lk input[type=text] { width: 130px; color: inherit; background: var(--jp-layout-color1, Canvas);
  border: 1px solid var(--jp-border-color1, #999); border-radius: 4px; padding: 2px 6px; }
.lk .column { cursor: pointer; }
`;

function render({ model, el: host }) {
  const names = model.get("names"), L = names.length, E = model.get("num_experts"), frequent = model.get("frequent");
  const few = E <= model.get("palette").length, wide = (CTX_R - CTX_L) / E, id = "lk" + Math.random().toString(36).slice(2);
  const ui = frame(host, model, "Same word in other contexts", "↑ ↓ occurrence · ← → expert · [ ] layer · / type a word · N P next or previous word of the list · "
    + "W whole words · click a token to follow it");
  el("style", {}, host, CTX_CSS);
  readableWhenNarrow(ui.root);

  const input = el("input", { type: "text", "aria-label": "Word", spellcheck: "false", autocomplete: "off" }, el("label", {}, ui.bar, "Word "));
  const list = dropdown(ui.bar, "Frequent", ["…", ...frequent], 0, (i) => { if (i > 0) send(model, { word: frequent[i - 1] }); });
  const box = el("label", {}, ui.bar), whole = el("input", { type: "checkbox", "aria-label": "Whole words only" }, box);
  box.append("whole words only");
  const layer = L > 1 ? slider(ui.bar, "Layer", 0, L - 1, 1, model.get("layer"), (v) => send(model, { layer: v })) : null;
  const note = el("p", { class: "says", role: "status" }, ui.body);
  const svg = el("svg", { role: "img" }, ui.body);
  const lines = el("div", { class: "lines", role: "listbox", "aria-label": "Occurrences", tabindex: 0 }, ui.body);
  const error = el("p", { class: "error", role: "alert" }, ui.body);
  let rows = [];

  const x = (e) => CTX_L + (e + 0.5) * wide;
  const own = (e) => expertColor(model, e, E, model.get("lit_expert"));

  function drawBars() {
    const view = model.get("view"), lit = model.get("lit_expert"), word = model.get("word");
    const high = Math.max(...view.share, ...view.baseline, 1e-9), base = CTX_TOP + CTX_BARS;
    const tables = view.rows.flatMap(([name, n, share, all]) => [[`${name}, ${n.toLocaleString("en")}×`, share], [`${name}, all tokens`, all]]);
    const H = base + 34 + tables.length * CTX_ROW + Math.floor(tables.length / 2) * 4;
    const every = E <= 16 ? 1 : 4 * Math.ceil(E / 80);
    svg.replaceChildren();
    set(svg, { viewBox: `0 0 ${CTX_W} ${H}`, "aria-label": `Share of the choices of ${word} for each of ${E} experts, beside that of all tokens` });
    const y = (v) => base - (CTX_BARS * v) / high, barW = Math.min(46, wide * 0.7);
    gridLines(svg, ticks(0, high, 3), y, CTX_L, CTX_R, (v) => `${plain(100 * v)} %`);
    el("text", { x: 4, y: 14 }, svg, `share of choices: bars, this word (${view.matches.toLocaleString("en")}×); lines, all tokens`);
    view.share.forEach((v, e) => {
      const fill = few ? own(e) : e === lit ? model.get("lit") : model.get("grey");
      el("rect", { x: x(e) - barW / 2, y: y(v), width: barW, height: base - y(v), fill, "data-bar": e }, svg);
      el("line", { class: "axis", x1: x(e) - wide * 0.45, x2: x(e) + wide * 0.45, y1: y(view.baseline[e]), y2: y(view.baseline[e]), "stroke-width": 2 }, svg);
      if (e % every === 0 || e === lit) {
        const near = e !== lit && lit >= 0 && Math.abs(e - lit) * wide < 26;
        if (!near) el("text", { class: "small", x: x(e), y: base + 15, "text-anchor": "middle", "font-weight": e === lit ? 800 : 400 }, svg, String(e));
      }
    });
    el("line", { class: "axis", x1: CTX_L, x2: CTX_R, y1: base, y2: base }, svg);
    el("text", { class: "small", x: CTX_L - 8, y: base + 15, "text-anchor": "end" }, svg, "expert");
    const most = Math.max(...tables.flatMap(([, v]) => v), 1e-9);
    tables.forEach(([name, share], i) => drawRow(name, share, most, base + 26 + i * CTX_ROW + Math.floor(i / 2) * 4, i % 2 === 1));
    if (lit >= 0) el("rect", { x: x(lit) - wide / 2, y: CTX_TOP, width: wide, height: H - CTX_TOP - 4, fill: "none", stroke: model.get("lit"), "stroke-width": 1.5 }, svg);
    for (let e = 0; e < E; e++) {
      const hit = el("rect", { class: "column", x: x(e) - wide / 2, y: CTX_TOP, width: wide, height: H - CTX_TOP, fill: "transparent", "data-expert": e }, svg);
      el("title", {}, hit, `expert ${e}: ${percent(view.share[e])} of this word's choices, ${percent(view.baseline[e])} of all`);
      hit.addEventListener("click", () => { send(model, { lit_expert: e }); ui.root.focus({ preventScroll: true }); });
    }
  }

  function drawRow(name, share, most, top, quiet) {
    const text = name.length > 25 ? name.slice(0, 24) + "…" : name;
    el("text", { class: "small", x: CTX_L - 8, y: top + 13, "text-anchor": "end", opacity: quiet ? 0.75 : 1 }, svg, text);
    share.forEach((v, e) => {
      const ground = shade(model, v / most);
      el("rect", { x: x(e) - wide / 2 + 0.5, y: top, width: wide - 1, height: CTX_ROW - 1, fill: ground }, svg);
      if (wide >= 36) el("text", { class: "small", x: x(e), y: top + 13, "text-anchor": "middle", style: `fill: ${inkOn(ground)}` }, svg, `${Math.round(100 * v)} %`);
    });
  }

  function drawLines() {
    const view = model.get("view");
    lines.replaceChildren();
    lines.style.display = view.lines.length ? "" : "none";
    rows = view.lines.map((line, i) => {
      const said = `${line.left.join("")}${line.key.join("")}${line.right.join("")}, ${line.domain}, experts ${line.ids.join(", ")}`;
      const row = el("div", { class: "line", role: "option", id: `${id}o${i}`, "aria-label": said }, lines);
      el("span", { class: "where", title: `token ${line.last}` }, row, line.domain ? `${line.domain} ${line.last}` : String(line.last));
      let at = line.start;
      const piece = (kind, texts) => {
        const cell = el("span", { class: `text ${kind}` }, row);
        for (const text of texts) {
          const token = at++;
          el("span", { "data-token": token, title: "click to follow" }, cell, text).addEventListener("click", (event) => {
            event.stopPropagation();
            send(model, { follow: token });
          });
        }
      };
      piece("left", line.left);
      piece("key", line.key);
      piece("right", line.right);
      chips(line, row);
      row.addEventListener("click", () => { send(model, { occurrence: i }); lines.focus({ preventScroll: true }); });
      return row;
    });
    drawHand();
  }

  function chips(line, row) {
    const cell = el("span", { class: "chips" }, row), high = Math.max(...line.weights, 1e-9);
    line.ids.forEach((e, k) => {
      const color = few ? own(e) : e === model.get("lit_expert") ? model.get("lit") : model.get("grey");
      const chip = el("span", { class: "chip", title: `choice ${k + 1}: expert ${e}, weight ${plain(line.weights[k])}` }, cell, String(e));
      chip.style.background = translucent(color, 0.12 + 0.5 * clampTo(line.weights[k] / high, 0, 1));
      chip.style.borderBottomColor = e === model.get("lit_expert") ? model.get("lit") : "transparent";
    });
  }

  function drawHand() {
    const at = model.get("occurrence");
    rows.forEach((row, i) => row.setAttribute("aria-selected", String(i === at)));
    if (!rows[at]) return;
    lines.setAttribute("aria-activedescendant", rows[at].id);
    const low = rows[at].offsetTop - lines.offsetTop;
    if (low + rows[at].offsetHeight > lines.scrollTop + lines.clientHeight) lines.scrollTop = low + rows[at].offsetHeight - lines.clientHeight;
    if (low < lines.scrollTop) lines.scrollTop = low;
  }

  function drawWords() {
    const at = model.get("layer"), word = model.get("word");
    error.textContent = "";
    layer?.show(at, names[at]);
    if (document.activeElement !== input && input.getRootNode().activeElement !== input) input.value = shown(word);
    list.value = frequent.indexOf(shown(word)) + 1;
    whole.checked = model.get("whole");
    note.textContent = model.get("view").note;
    ui.says.textContent = model.get("detail");
    ui.sampled.textContent = `${model.get("sampled")} A match is a run of tokens of one sequence that join to the word; type spaces as they are. `
      + "Chips: the experts of its last token, best first, the stronger the more weight.";
  }

  const shown = (word) => word.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const step = (by) => { const at = clampTo(model.get("layer") + by, 0, L - 1); if (at !== model.get("layer")) send(model, { layer: at }); };
  const walk = (by) => {
    const at = clampTo(model.get("occurrence") + by, 0, Math.max(0, rows.length - 1));
    if (at !== model.get("occurrence")) send(model, { occurrence: at });
  };
  const other = (by) => {
    const at = frequent.indexOf(shown(model.get("word"))) + by;
    send(model, { word: frequent[(at + frequent.length) % frequent.length] });
  };
  const take = () => {
    error.textContent = input.value ? "" : "The word is empty; type a word, or a part of one.";
    if (input.value && shown(input.value) !== shown(model.get("word"))) send(model, { word: input.value });
  };
  input.addEventListener("change", take);
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") take();
    if (event.key === "Enter" || event.key === "Escape") lines.focus({ preventScroll: true });
  });
  whole.addEventListener("change", () => send(model, { whole: whole.checked }));
  const flip = () => send(model, { whole: !model.get("whole") });
  onKeys(ui.root, {
    ArrowUp: () => walk(-1), ArrowDown: () => walk(1),
    ArrowLeft: () => send(model, { lit_expert: (model.get("lit_expert") + E - 1) % E || 0 }),
    ArrowRight: () => send(model, { lit_expert: (model.get("lit_expert") + 1) % E }),
    "[": () => step(-1), "]": () => step(1), "/": () => { input.focus(); input.select(); },
    n: () => other(1), N: () => other(1), p: () => other(-1), P: () => other(-1), w: flip, W: flip,
  });

  const stop = [
    redrawOn(model, ["view", "lit_expert"], drawBars), redrawOn(model, ["view", "lit_expert"], drawLines), redrawOn(model, ["occurrence"], drawHand),
    redrawOn(model, ["word", "whole", "layer", "view", "detail", "sampled"], drawWords),
  ];
  return () => stop.forEach((end) => end());
}

export default { render };
