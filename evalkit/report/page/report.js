"use strict";

const byId = (id) => document.getElementById(id);

// The bytes of a file that the page carries, gzipped as base64.
async function unpacked(id) {
  const packed = Uint8Array.from(atob(byId(id).textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function save(link) {
  const url = URL.createObjectURL(new Blob([await unpacked(link.dataset.content)], { type: "text/csv" }));
  const saver = document.createElement("a");
  saver.href = url;
  saver.download = link.download;
  saver.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function offerDownloads() {
  if (typeof DecompressionStream === "undefined") return; // the links then lead to the files
  for (const link of document.querySelectorAll("a[data-content]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      save(link);
    });
  }
}

async function drawCharts() {
  const { document: content, roots } = JSON.parse(byId("chart-document").textContent);
  // The library is run as an inline script, which the page's policy allows by its hash alone.
  const library = document.createElement("script");
  library.textContent = new TextDecoder().decode(await unpacked("library"));
  document.head.append(library);
  byId("drawn").hidden = false;
  byId("no-charts").hidden = true;
  const places = Object.fromEntries(Object.entries(roots).map(([root, id]) => [root, byId(id)]));
  await Bokeh.embed.embed_items({ charts: content }, [
    { docid: "charts", roots: places, root_ids: Object.keys(places) },
  ]);
  const models = [...Bokeh.documents[0].all_models];
  easeTouch(models);
  offerSwitches(models);
}

// Where fingers scroll the page, a drag across a chart must not zoom, and a tap stands for pointing.
function easeTouch(models) {
  if (!matchMedia("(pointer: coarse)").matches) return;
  for (const model of models) {
    if (model.type === "BoxZoomTool") model.active = false;
  }
  let pointed = null;
  document.addEventListener("click", (event) => {
    const { clientX, clientY } = event;
    const at = (type) => new PointerEvent(type, { clientX, clientY, view: window, isPrimary: true });
    pointed?.dispatchEvent(at("pointerout"));
    pointed = event.target.closest(".chart") ? event.composedPath()[0] : null;
    pointed?.dispatchEvent(at("pointermove"));
  });
}

// A switch shows or hides what carries its tag, in every chart and its table of values.
function offerSwitches(models) {
  const hidden = new Set();
  let singles = false;
  const show = (model) => {
    model.visible = !hidden.has(model.name) && (singles || !model.tags.includes("spread"));
  };
  for (const tool of models.filter((model) => model.type === "HoverTool")) {
    const entries = tool.tooltips;
    tool.tooltips = (source, { index }) => readout(entries, hidden, source, index);
  }
  for (const button of document.querySelectorAll("button[data-tag]")) {
    const { tag } = button.dataset;
    button.addEventListener("click", () => {
      const shown = hidden.delete(tag);
      if (!shown) hidden.add(tag);
      button.setAttribute("aria-pressed", String(shown));
      models.filter((model) => model.name === tag).forEach(show);
    });
  }
  byId("spread")?.addEventListener("click", ({ currentTarget }) => {
    singles = !singles;
    currentTarget.setAttribute("aria-pressed", String(singles));
    models.filter((model) => model.tags.includes("spread")).forEach(show);
  });
}

// The values of the curves shown, where the pointer is: a row per entry of (name, "@column").
function readout(entries, hidden, source, index) {
  const table = document.createElement("table");
  Object.assign(table.style, { borderSpacing: "6px 1px", maxWidth: "24rem", overflowWrap: "anywhere" });
  for (const [name, reference] of entries) {
    const tag = reference.slice(1);
    if (hidden.has(tag)) continue;
    const row = table.insertRow();
    const [look, label, value] = [0, 1, 2].map(() => row.insertCell());
    const swatch = document.querySelector(`button[data-tag="${tag}"] .swatch`);
    if (swatch) look.append(swatch.cloneNode(true));
    label.textContent = name;
    value.textContent = source.get_column(tag)[index];
  }
  return table;
}

// Numbers in their order, then text in its own; what is not a number stays last.
function comparison(first, second, sign) {
  const [one, other] = [first, second].map((cell) => cell.dataset.value);
  if (one !== undefined && other !== undefined) {
    const [left, right] = [Number(one), Number(other)];
    if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right);
    return left === right ? 0 : sign * (left < right ? -1 : 1);
  }
  if (one !== undefined || other !== undefined) return one !== undefined ? -1 : 1;
  const text = (cell) => cell.firstChild?.textContent ?? "";
  return sign * text(first).localeCompare(text(second), "en", { numeric: true });
}

function sortBy(head) {
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = head.closest("table").tBodies[0];
  const place = head.cellIndex;
  const rows = [...body.rows];
  rows.sort((one, other) => comparison(one.cells[place], other.cells[place], ascending ? 1 : -1));
  body.append(...rows);
}

function offerSorting() {
  for (const head of document.querySelectorAll("table.sortable thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.title = "Sort by this column";
    button.addEventListener("click", () => sortBy(head));
    head.replaceChildren(button);
  }
}

// A word above each table that has columns out of sight.
function hintAtScrolling() {
  if (typeof ResizeObserver === "undefined") return;
  const watcher = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth;
    }
  });
  for (const place of document.querySelectorAll(".scroll")) watcher.observe(place);
}

offerDownloads();
offerSorting();
hintAtScrolling();
drawCharts();
