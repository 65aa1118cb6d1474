"use strict";
// The page works without this file: figures are drawn already, and every number is in the tables.

const byId = (id) => document.getElementById(id);
const stored = (id) => JSON.parse(byId(id).textContent);

// Paper shows what is folded away.

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => closed.forEach((details) => (details.open = false)));

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

// A box that scrolls says so, and can be reached by keyboard.
const boxes = [...document.querySelectorAll(".scroll")];
const reachable = () =>
  boxes.forEach((box) => {
    const wide = box.scrollWidth > box.clientWidth + 2;
    box.classList.toggle("wide", wide);
    box.tabIndex = wide ? 0 : -1;
  });
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
    const front = `front-${choice ? choice.value : 0}`;
    for (const mark of document.querySelectorAll(`[id^="${front}-point-"]`))
      mark.classList.toggle("chosen", mark.id === `${front}-point-${slider.value}`);
  };

  const choose = () => {
    const pair = current();
    slider.max = pair.points.length - 1;
    slider.value = Math.floor(pair.points.length / 2);
    byId("front-left").textContent = pair.targets[0];
    byId("front-right").textContent = pair.targets[1];
    document.querySelectorAll(".front").forEach((box, i) => (box.hidden = i !== Number(choice ? choice.value : 0)));
    show();
  };

  slider.addEventListener("input", show);
  choice?.addEventListener("change", choose);
  choose();
}

// Copy: the clipboard's interface where the page may use it, else a selection (pages opened as files).

byId("copy")?.addEventListener("click", async () => {
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
