// A text whose tokens are coloured by what the kernel says in `window`; `detail` is the token in hand. Draws, decides nothing.

const RIBBON_CSS = `
.lk .ribbon { max-height: 300px; overflow-y: auto; border: 1px solid var(--jp-border-color2, #9996); border-radius: 4px;
  padding: 6px 8px; line-height: 1.95; font-family: var(--jp-code-font-family, monospace); font-size: 13px; position: relative; }
.lk .tok { white-space: pre; padding: 2px 0 1px; border-bottom: 3px solid transparent; cursor: pointer; border-radius: 2px; }
.lk .spaced .tok { margin-right: 2px; padding: 2px 2px 1px; }
.lk .tok[aria-selected=true] { outline: 2px solid currentColor; outline-offset: 1px; font-weight: 700; }
.lk .domain { font: 600 11px var(--jp-ui-font-family, sans-serif); opacity: .75; margin-right: 6px; user-select: none; }
.lk .legend { display: flex; flex-wrap: wrap; gap: 2px 10px; margin: 4px 0; font-size: 12px; }
.lk .legend span { display: inline-flex; align-items: center; gap: 4px; }
.lk .legend i { width: 14px; height: 12px; border-radius: 2px; display: inline-block; }
.lk .strip { max-height: 420px; overflow: auto; margin-top: 8px; }
.lk .strip table { border-collapse: separate; border-spacing: 2px; margin: 0; font-size: 12px; }
.lk .strip caption { text-align: left; font-weight: 600; padding: 2px 0; white-space: nowrap; }
.lk .strip th { font-weight: 500; text-align: right; padding: 0 6px; white-space: nowrap; background: none; }
.lk .strip td { padding: 1px 6px; text-align: center; cursor: pointer; border-radius: 2px; white-space: nowrap; min-width: 46px; }
.lk .strip tr[aria-current=true] th { font-weight: 800; }
.lk .strip tr[aria-current=true] td { box-shadow: 0 2px 0 currentColor; }
.lk .strip td small { opacity: .85; }
.lk input[type=number] { width: 84px; color: inherit; background: var(--jp-layout-color1, Canvas);
  border: 1px solid var(--jp-border-color1, #999); border-radius: 4px; padding: 2px 4px; }
`;
function render({ model, el: host }) {
  const T = model.get("num_tokens"), E = model.get("num_experts"), names = model.get("names"), L = names.length;
  const few = E <= model.get("palette").length, id = "lk" + Math.random().toString(36).slice(2);
  const K = Math.min(9, model.get("detail").ids[0].length), choices = K > 1 ? `1–${K} light that choice` : "1 light the choice";
  const ui = frame(host, model, "Token ribbon", `← → token · ↑ ↓ layer · PageUp PageDown page · Home End · ${choices} of the token `
    + "· 0 light none · or click");
  el("style", {}, host, RIBBON_CSS);

  const layer = L > 1 ? slider(ui.bar, "Layer", 0, L - 1, 1, model.get("layer"), (v) => toLayer(v)) : null;
  const lit = dropdown(ui.bar, "Light", ["no expert", ...Array.from({ length: E }, (_, e) => `expert ${e}`)],
    model.get("lit_expert") + 1, (i) => send(model, { lit_expert: i - 1 }));
  const go = el("input", { type: "number", min: 0, max: T - 1, step: 1, "aria-label": "Go to token" }, el("label", {}, ui.bar, "Token "));
  const pages = el("div", { role: "group", "aria-label": "Page", class: "bar", style: "margin: 0" }, ui.bar);
  const back = el("button", { type: "button", "aria-label": "Page before" }, pages, "◀");
  const next = el("button", { type: "button", "aria-label": "Page after" }, pages, "▶");
  const legend = el("div", { class: "legend" }, ui.body);
  const text = el("div", { class: "ribbon", role: "listbox", "aria-label": "Text", tabindex: 0 }, ui.body);
  const strip = el("div", { class: "strip", role: "group", "aria-label": "Choices of the token by layer" }, ui.body);
  const error = el("p", { class: "error", role: "alert" }, ui.body);
  let spans = [];

  function color(view, i) {
    const weight = view.shown[i] / view.high, chosen = model.get("lit_expert");
    if (chosen >= 0) {
      if (!view.chosen[i]) return { background: "transparent", borderBottomColor: translucent(model.get("grey"), 0.5), color: "inherit" };
      const own = expertColor(model, chosen, E, chosen);
      return { background: translucent(own, 0.12 + 0.5 * weight), borderBottomColor: own, color: "inherit" };
    }
    if (few) {
      const own = expertColor(model, view.first[i], E);
      return { background: translucent(own, 0.4), borderBottomColor: own, color: "inherit" };
    }
    const ground = shade(model, weight);
    return { background: ground, borderBottomColor: "transparent", color: inkOn(ground) };
  }

  function drawText() {
    const view = model.get("window"), starts = new Map(view.breaks);
    const letters = view.texts.reduce((n, t) => n + t.length, 0) / view.texts.length < 1.6;
    text.replaceChildren();
    text.classList.toggle("spaced", !letters);
    spans = view.texts.map((t, i) => {
      if (starts.has(i)) {
        if (i > 0) el("hr", { style: "margin: 4px 0; opacity: .25" }, text);
        if (starts.get(i)) el("span", { class: "domain", "aria-hidden": "true" }, text, starts.get(i));
      }
      const said = `token ${view.start + i}, first expert ${view.first[i]}`;
      const span = el("span", { class: "tok", role: "option", id: `${id}t${i}`, title: said, "aria-label": `${t}, ${said}` }, text, t);
      Object.assign(span.style, color(view, i));
      span.addEventListener("click", () => { send(model, { token: view.start + i }); text.focus({ preventScroll: true }); });
      if (t.includes("⏎")) el("br", {}, text);
      else if (letters && t === "␣") el("wbr", {}, text);
      else if (!letters) el("wbr", {}, text);
      return span;
    });
    set(text, { "aria-label": `Text, tokens ${view.start} to ${view.start + spans.length - 1} of ${T}` });
    back.disabled = view.start === 0;
    next.disabled = view.start + spans.length >= T;
    drawLegend(view);
    drawToken();
  }

  function drawLegend(view) {
    legend.replaceChildren();
    const chosen = model.get("lit_expert"), name = names[model.get("layer")];
    const entry = (ground, words) => {
      const item = el("span", {}, legend);
      el("i", { style: `background: ${ground}` }, item);
      item.append(words);
    };
    if (chosen >= 0) {
      const own = expertColor(model, chosen, E, chosen);
      entry(`linear-gradient(90deg, ${translucent(own, 0.12)}, ${translucent(own, 0.62)})`, `expert ${chosen} of ${name}: weight 0 to ${plain(view.high, 2)}`);
      entry(translucent(model.get("grey"), 0.5), "not chosen");
    } else if (few) {
      for (let e = 0; e < E; e++) entry(expertColor(model, e, E), `expert ${e}`);
      el("span", {}, legend, `(first choice in ${name})`);
    } else entry(`linear-gradient(90deg, ${model.get("ramp").join(",")})`, `weight of the first choice in ${name}, 0 to ${plain(view.high, 2)}`);
  }

  function drawToken() {
    const view = model.get("window"), at = model.get("token") - view.start;
    error.textContent = "";
    spans.forEach((span, i) => span.setAttribute("aria-selected", String(i === at)));
    if (!spans[at]) return;
    text.setAttribute("aria-activedescendant", spans[at].id);
    const box = spans[at].getBoundingClientRect(), frameBox = text.getBoundingClientRect();
    if (box.bottom > frameBox.bottom) text.scrollTop += box.bottom - frameBox.bottom + 8;
    if (box.top < frameBox.top) text.scrollTop += box.top - frameBox.top - 8;
    go.value = model.get("token");
  }

  function drawStrip() {
    const detail = model.get("detail"), at = model.get("layer"), chosen = model.get("lit_expert");
    const high = Math.max(...detail.weights.flat(), 1e-9);
    strip.replaceChildren();
    const table = el("table", {}, strip);
    el("caption", {}, table, detail.title);
    const head = el("tr", {}, el("thead", {}, table));
    el("th", { scope: "col" }, head, "choice");
    detail.ids[0].forEach((_, k) => el("th", { scope: "col", style: "text-align: center" }, head, String(k + 1)));
    const body = el("tbody", {}, table);
    detail.ids.forEach((row, l) => {
      const line = el("tr", { "aria-current": String(l === at) }, body);
      el("th", { scope: "row" }, line, names[l]).addEventListener("click", () => toLayer(l));
      row.forEach((e, k) => {
        const mine = l === at && e === chosen, weight = detail.weights[l][k];
        const own = few ? expertColor(model, e, E) : mine ? model.get("lit") : model.get("grey");
        const cell = el("td", { title: `${names[l]}: expert ${e}, weight ${plain(weight)}`, "data-expert": e, "data-layer": l,
          style: `background: ${translucent(own, 0.1 + 0.55 * Math.max(0, weight / high))}` + (mine ? `; outline: 2px solid ${model.get("lit")}` : "") }, line);
        el("b", {}, cell, String(e));
        el("small", {}, cell, ` ${weight.toFixed(2)}`);
        cell.addEventListener("click", () => send(model, { layer: l, lit_expert: l === at && e === model.get("lit_expert") ? -1 : e }));
      });
    });
    el("p", { class: "sampled" }, strip, "Bold: the expert; beside it the weight of its output. Expert numbers of different layers have nothing in common.");
    const line = body.children[at];
    if (line && body.offsetHeight > strip.clientHeight) strip.scrollTop = Math.max(0, line.offsetTop - strip.clientHeight / 2);
  }

  function draw() {
    const at = model.get("layer");
    layer?.show(at, names[at]);
    lit.value = model.get("lit_expert") + 1;
    ui.sampled.textContent = model.get("sampled");
    ui.says.textContent = `${model.get("detail").note} ${model.get("window").note}`;
  }

  const move = (t) => { error.textContent = ""; go.value = model.get("token"); send(model, { token: clampTo(t, 0, T - 1) }); };
  const page = (by) => {
    const start = clampTo(model.get("start") + by * model.get("length"), 0, Math.max(0, T - 1));
    if (start !== model.get("start")) send(model, { start });
  };
  const light = (k) => { const row = model.get("detail").ids[model.get("layer")]; if (k < row.length) send(model, { lit_expert: row[k] }); };
  back.addEventListener("click", () => page(-1));
  next.addEventListener("click", () => page(1));
  go.addEventListener("change", () => {
    const wanted = Number(go.value);
    if (go.value !== "" && Number.isInteger(wanted) && wanted >= 0 && wanted < T) return move(wanted);
    error.textContent = `There is no token ${go.value || "without a number"}; give 0 to ${T - 1}.`;
  });
  go.addEventListener("keydown", (event) => event.stopPropagation());
  // Another layer's expert of the same number is another expert: what is lit moves on to the token's first choice there.
  function toLayer(at) {
    if (at === model.get("layer")) return;
    send(model, { layer: at, lit_expert: model.get("lit_expert") < 0 ? -1 : model.get("detail").ids[at][0] });
  }
  const step = (by) => toLayer(clampTo(model.get("layer") + by, 0, L - 1));
  const keys = {
    ArrowLeft: () => move(model.get("token") - 1), ArrowRight: () => move(model.get("token") + 1),
    ArrowUp: () => step(-1), ArrowDown: () => step(1), PageUp: () => page(-1), PageDown: () => page(1),
    Home: () => move(0), End: () => move(T - 1), 0: () => send(model, { lit_expert: -1 }),
  };
  for (let k = 1; k <= 9; k++) keys[k] = () => light(k - 1);
  onKeys(ui.root, keys);

  const stop = [
    redrawOn(model, ["window"], drawText), redrawOn(model, ["token"], drawToken),
    redrawOn(model, ["detail", "layer", "lit_expert"], drawStrip),
    redrawOn(model, ["layer", "lit_expert", "window", "detail", "sampled"], draw),
  ];
  return () => stop.forEach((end) => end());
}

export default { render };
