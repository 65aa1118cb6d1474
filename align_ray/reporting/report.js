"use strict";
// The page works without this file, but for its figures: every number is in the tables.

const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const stored = (id) => JSON.parse(byId(id).textContent);

// Figures: their colours come from the style sheet, so that they follow light, dark and paper.

const figures = stored("figures");
const drawn = new Map(); // element id -> name of the figure in it
const PAPER_WIDTH = 690; // pixels of an A4 page between its margins

function themed(figure) {
  const style = getComputedStyle(root);
  const colour = (name) => style.getPropertyValue(name).trim();
  const { data, layout } = structuredClone(figure);
  layout.font.color = colour("--fg");
  layout.colorway = ["--c1", "--c2", "--c3", "--c4"].map(colour);
  for (const [key, axis] of Object.entries(layout))
    if (/^[xy]axis/.test(key)) Object.assign(axis, { linecolor: colour("--muted"), tickcolor: colour("--muted"), gridcolor: colour("--line") });
  for (const shape of layout.shapes ?? []) shape.line.color = colour("--muted");
  for (const trace of data)
    if (trace.type === "heatmap") {
      trace.colorscale = [[0, colour("--cell-low")], [1, colour("--cell-high")]];
      trace.textfont.color = colour("--fg");
    }
  return { data, layout };
}

function draw(id, name = drawn.get(id)) {
  drawn.set(id, name);
  const { data, layout } = themed(figures[name]);
  if (root.dataset.print !== undefined) layout.width = PAPER_WIDTH;
  return Plotly.react(id, data, layout, { responsive: true, displayModeBar: false });
}

for (const element of document.querySelectorAll("[data-figure]")) draw(element.id, element.dataset.figure);
const redraw = () => [...drawn.keys()].forEach((id) => draw(id));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

let closed = [];
addEventListener("beforeprint", () => {
  root.dataset.print = "";
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((details) => (details.open = true));
  redraw();
});
addEventListener("afterprint", () => {
  delete root.dataset.print;
  closed.forEach((details) => (details.open = false));
  redraw();
});

const order = byId("order");
order?.addEventListener("click", () => {
  const clustered = order.getAttribute("aria-pressed") !== "true";
  order.setAttribute("aria-pressed", clustered);
  draw("matrix", clustered ? "matrix" : "matrix-given");
});

// Tables: a button in every column's head sorts the first body; cells without a value stay last.

const key = (row, column) => {
  const cell = row.cells[column];
  const text = cell.querySelector("data")?.value ?? cell.textContent.trim();
  return text === "" || text === "nan" ? null : isNaN(text) ? text : Number(text);
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

// A box that scrolls can be reached by keyboard.
const boxes = [...document.querySelectorAll(".scroll")];
const reachable = () => boxes.forEach((box) => (box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1));
addEventListener("resize", reachable);
document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", reachable));
reachable();

// The Pareto slider: moves along the stored points of one pair of targets.

const slider = byId("front-slider");
if (slider) {
  const { points, pairs } = stored("front-data");
  const choice = byId("front-pair");
  const percent = (value) => `${(100 * value).toFixed(1)}%`;
  const current = () => pairs[choice ? choice.value : 0];

  const show = () => {
    const pair = current();
    const at = pair.points[slider.value];
    const point = points[at];
    for (const cell of document.querySelectorAll("#tradeoff [data-field]")) {
      const { field, name } = cell.dataset;
      const shown = cell.querySelector("data");
      shown.value = point[field][name];
      shown.dataset.path = `search/pareto/${at}/${field}/${name}`;
      shown.textContent = field === "values" ? point[field][name].toFixed(4) : percent(point[field][name]);
      const bar = cell.closest("tr").querySelector(".bar");
      if (bar) bar.style.width = percent(point[field][name]);
    }
    const parts = pair.targets.map((t) => `${t}: ${percent(point.target_weights[t])} of the weight, objective ${point.values[t].toFixed(4)}`);
    slider.setAttribute("aria-valuetext", parts.join("; "));
    figures.front.data[0].selectedpoints = [Number(slider.value)];
    draw("front");
  };

  const choose = () => {
    const pair = current();
    slider.max = pair.points.length - 1;
    slider.value = Math.floor(pair.points.length / 2);
    byId("front-left").textContent = pair.targets[0];
    byId("front-right").textContent = pair.targets[1];
    const [x, y] = pair.targets.map((t) => pair.points.map((k) => points[k].values[t]));
    Object.assign(figures.front.data[0], { x, y });
    figures.front.layout.xaxis.title.text = `objective for ${pair.targets[0]}`;
    figures.front.layout.yaxis.title.text = `objective for ${pair.targets[1]}`;
    show();
  };

  slider.addEventListener("input", show);
  choice?.addEventListener("change", choose);
  choose();
}

// Copy: the clipboard's interface where the page may use it, else a selection (pages opened as files).

byId("copy").addEventListener("click", async () => {
  const text = byId("yaml").textContent;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden";
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    byId("copy").focus();
  }
  byId("copied").textContent = done ? "Copied." : "The browser did not allow it; select the text below.";
});
