// Draws the loads that the kernel counted: a map of layers × experts, and the picked layer from busiest to idlest.

const W = 840, LEFT = 66, RIGHT = 10, TOP = 24, PROFILE = 110;
const SORTS = ["number", "layer", "overall"];

function render({ model, el: host }) {
  const layers = model.get("layers"), relative = model.get("relative"), top = model.get("top");
  const L = layers.length, E = relative[0].length, wide = (W - LEFT - RIGHT) / E;
  const high = clampTo(Math.floor(380 / L), 6, 26), bottom = TOP + L * high;
  const barTop = bottom + 52, profileTop = barTop + 62, H = profileTop + PROFILE + 36;
  const colors = model.get("ramp");

  const ui = frame(host, model, "Load map", "← → expert · ↑ ↓ layer · Home End first, last column · S sort · or click a cell");
  readableWhenNarrow(ui.root);
  const sorting = choice(ui.bar, "Sort the experts", ["By number", "By load in this layer", "By overall load"], 0,
    (i) => send(model, { sort: SORTS[i] }));
  const svg = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Load of each expert in each layer" }, ui.body);
  const map = el("g", { style: "cursor: pointer", "data-map": "" }, svg), legend = el("g", {}, svg), profile = el("g", {}, svg);
  const cursor = el("g", { "pointer-events": "none" }, svg);

  // The even share has the middle colour: below it the scale runs from 0 to 1/E, above it from there to the top.
  const place = (v) => (v <= 1 ? v / 2 : 0.5 + (v - 1) / (2 * (top - 1)));
  const level = (v) => clampTo(Math.round(place(v) * (colors.length - 1)), 0, colors.length - 1);

  el("text", { x: LEFT, y: barTop - 2 }, legend, "load as a multiple of the even share 1/E");
  colorLegend(legend, colors, LEFT + 250, barTop - 11, 300, [[0, "0"], [0.5, "1 (even)", true], [1, plain(top)]]);

  function pick(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) * W) / box.width, y = ((event.clientY - box.top) * H) / box.height;
    const column = clampTo(Math.floor((x - LEFT) / wide), 0, E - 1), row = clampTo(Math.floor((y - TOP) / high), 0, L - 1);
    ui.root.focus();
    send(model, { layer: row, expert: model.get("order")[column] });
  }
  map.addEventListener("click", pick);

  const column = () => model.get("order").indexOf(model.get("expert"));
  const toColumn = (i) => send(model, { expert: model.get("order")[clampTo(i, 0, E - 1)] });
  const toLayer = (i) => send(model, { layer: clampTo(i, 0, L - 1) });
  const nextSort = () => send(model, { sort: SORTS[(SORTS.indexOf(model.get("sort")) + 1) % SORTS.length] });
  onKeys(ui.root, {
    ArrowLeft: () => toColumn(column() - 1), ArrowRight: () => toColumn(column() + 1),
    Home: () => toColumn(0), End: () => toColumn(E - 1),
    ArrowUp: () => toLayer(model.get("layer") - 1), ArrowDown: () => toLayer(model.get("layer") + 1),
    s: nextSort, S: nextSort,
  });

  function drawMap() {
    const order = model.get("order");
    map.replaceChildren();
    gridCells(map, relative.map((row) => order.map((e) => level(row[e]))), colors, "none", LEFT, TOP, wide, high);
    el("text", { class: "small", x: 4, y: 14 }, map, "layer");
    const every = Math.ceil(13 / high);
    layers.forEach((name, i) => { if (i % every === 0) el("text", { class: "small", x: LEFT - 6, y: TOP + (i + 0.5) * high + 4, "text-anchor": "end" }, map, name.replace("layer ", "")); });
    axis(map, order, bottom + 14, "expert");
    sorting.show(SORTS.indexOf(model.get("sort")));
    drawPick();
  }

  function axis(group, experts, y, name) {
    const every = Math.ceil(E / 32);
    experts.forEach((e, i) => { if (i % every === 0) el("text", { class: "small", x: LEFT + (i + 0.5) * wide, y, "text-anchor": "middle" }, group, e); });
    el("text", { class: "small", x: LEFT - 6, y, "text-anchor": "end" }, group, name);
  }

  function drawPick() {
    const order = model.get("order"), layer = model.get("layer"), expert = model.get("expert");
    cursor.replaceChildren();
    const at = { x: LEFT + column() * wide, y: TOP + layer * high, width: wide, height: high, fill: "none" };
    el("rect", { ...at, stroke: "#FFFFFF", "stroke-width": 5 }, cursor);
    el("rect", { ...at, stroke: model.get("lit"), "stroke-width": 2.5 }, cursor);
    el("rect", { x: LEFT, y: at.y, width: W - LEFT - RIGHT, height: high, fill: "none", stroke: "currentColor" }, cursor);
    drawProfile(layer, expert);
    ui.says.textContent = model.get("says");
  }

  function drawProfile(layer, expert) {
    const ranking = model.get("ranking"), row = relative[layer], peak = Math.max(row[ranking[0]], 1) * 1.1;
    const y = (v) => profileTop + PROFILE * (1 - v / peak);
    profile.replaceChildren();
    el("text", { x: LEFT, y: profileTop - 8 }, profile, `${layers[layer]}: share of the choices, busiest expert first`);
    gridLines(profile, ticks(0, peak / E, 3).map((t) => t * E), y, LEFT, W - RIGHT, (v) => percent(v / E, peak / E < 0.08 ? 1 : 0));
    ranking.forEach((e, i) => el("rect", { x: LEFT + (i + 0.1) * wide, width: wide * 0.8, y: y(row[e]), height: y(0) - y(row[e]),
      fill: expertColor(model, e, E, expert), stroke: e === expert ? "currentColor" : "none", "stroke-width": 1.5 }, profile));
    const i = ranking.indexOf(expert), x = LEFT + (i + 0.5) * wide;
    el("path", { d: `M${x} ${y(0) + 1}l-5 7h10z`, fill: model.get("lit") }, profile);
    el("line", { class: "dash", x1: LEFT, x2: W - RIGHT, y1: y(1), y2: y(1) }, profile);
    el("text", { class: "small halo", x: W - RIGHT, y: y(1) - 4, "text-anchor": "end" }, profile, `even, 1/E = ${plain(100 / E)} %`);
    el("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: y(0), y2: y(0) }, profile);
    axis(profile, ranking, y(0) + 22, "expert");
  }

  const offs = [redrawOn(model, ["order", "sort"], drawMap), redrawOn(model, ["layer", "expert", "ranking", "says"], drawPick)];
  return () => offs.forEach((off) => off());
}

export default { render };
