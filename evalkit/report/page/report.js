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
  const hidden = new Set();
  const lit = offerHighlights(models, hidden);
  offerSwitches(models, hidden, lit);
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
function offerSwitches(models, hidden, lit) {
  let singles = false;
  const show = (model) => {
    model.visible = !hidden.has(model.name) && (singles || !model.tags.includes("spread"));
  };
  for (const tool of models.filter((model) => model.type === "HoverTool")) {
    const entries = tool.tooltips;
    tool.tooltips = (source, { index }) => readout(entries, hidden, lit.tag, source, index);
  }
  const press = (button, shown) => {
    const { tag } = button.dataset;
    if (shown) hidden.delete(tag);
    else hidden.add(tag);
    button.setAttribute("aria-pressed", String(shown));
    models.filter((model) => model.name === tag).forEach(show);
  };
  for (const button of document.querySelectorAll("button[data-tag]")) {
    button.addEventListener("click", () => {
      press(button, hidden.has(button.dataset.tag));
      const family = button.closest(".family");
      if (family) tell(family);
    });
  }
  const members = (family) => [...family.querySelectorAll("button[data-tag]")];
  const tell = (family) => {
    const any = members(family).some((button) => !hidden.has(button.dataset.tag));
    family.querySelector(".all").setAttribute("aria-pressed", String(any));
  };
  for (const family of document.querySelectorAll(".family")) {
    const all = family.querySelector(".all");
    all.addEventListener("click", () => {
      const shown = all.getAttribute("aria-pressed") === "false";
      for (const button of members(family)) press(button, shown);
      tell(family);
    });
  }
  byId("spread")?.addEventListener("click", ({ currentTarget }) => {
    singles = !singles;
    currentTarget.setAttribute("aria-pressed", String(singles));
    models.filter((model) => model.tags.includes("spread")).forEach(show);
  });
}

// The curves of one tag are drawn thick and the others of their charts faint, while the pointer or
// the focus is on what names it, or the pointer on its line. The floor stays as it is.
function offerHighlights(models, hidden) {
  const lit = { tag: null };
  const charts = models.filter((model) => model.type === "Figure");
  const looks = new Map();
  for (const { glyph } of models.filter((model) => model.type === "GlyphRenderer")) {
    const { line_alpha, line_width, fill_alpha } = glyph;
    looks.set(glyph, { line_alpha, line_width, fill_alpha });
  }
  const draw = ({ glyph, name }, tag) => {
    const look = looks.get(glyph);
    const alpha = tag === null || name === tag ? 1 : 0.12;
    if (look.line_alpha !== undefined) glyph.line_alpha = faded(look.line_alpha, alpha);
    if (look.fill_alpha !== undefined) glyph.fill_alpha = faded(look.fill_alpha, alpha);
    if (look.line_width !== undefined) glyph.line_width = faded(look.line_width, name === tag ? 2 : 1);
  };
  const light = (tag) => {
    if (tag === lit.tag) return;
    lit.tag = tag;
    for (const { renderers } of charts) {
      const curves = renderers.filter(({ name }) => name !== null && name !== "floor");
      const known = curves.some(({ name }) => name === tag);
      for (const curve of curves) draw(curve, known ? tag : null);
    }
    for (const place of document.querySelectorAll("[data-lights]")) {
      place.classList.toggle("lit", place.dataset.lights === tag);
    }
  };
  for (const place of document.querySelectorAll("[data-lights]")) {
    const { lights } = place.dataset;
    for (const event of ["pointerenter", "focusin"]) place.addEventListener(event, () => light(lights));
    for (const event of ["pointerleave", "focusout"]) place.addEventListener(event, () => light(null));
  }
  for (const chart of charts) {
    chart.on_event("mousemove", ({ x, y }) => light(nearest(chart, hidden, x, y)));
    chart.on_event("mouseleave", () => light(null));
  }
  return lit;
}

// A number of a glyph, or what holds one as its value, times a factor.
function faded(look, factor) {
  if (typeof look === "number") return factor * look;
  return typeof look?.value === "number" ? { ...look, value: factor * look.value } : look;
}

// The tag of the line that passes the pointer within a fiftieth of the chart's height, if any.
function nearest(chart, hidden, x, y) {
  const across = chart.x_scale.type === "LogScale" ? Math.log : Number;
  const up = chart.y_scale.type === "LogScale" ? Math.log : Number;
  const height = Math.abs(up(chart.y_range.end) - up(chart.y_range.start));
  let [found, least] = [null, height / 50];
  for (const { glyph, name, data_source } of chart.renderers) {
    if (glyph.type !== "Line" || name === null || hidden.has(name)) continue;
    const { x: xs, y: ys } = data_source.data;
    for (let place = 0; place + 1 < xs.length; place++) {
      if (x < xs[place] || x > xs[place + 1] || xs[place] === xs[place + 1]) continue;
      const share = (across(x) - across(xs[place])) / (across(xs[place + 1]) - across(xs[place]));
      const off = Math.abs(up(y) - (1 - share) * up(ys[place]) - share * up(ys[place + 1]));
      if (off < least) [found, least] = [name, off];
    }
  }
  return found;
}

// The values of the curves shown, where the pointer is: a row per entry of (name, "@column").
function readout(entries, hidden, lit, source, index) {
  const table = document.createElement("table");
  Object.assign(table.style, { borderSpacing: "6px 1px", maxWidth: "24rem", overflowWrap: "anywhere" });
  for (const [name, reference] of entries) {
    const tag = reference.slice(1);
    if (hidden.has(tag)) continue;
    const row = table.insertRow();
    if (tag === lit) row.style.fontWeight = "600";
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

// Rows are ordered within their group.
function order(table) {
  const head = [...table.tHead.rows[0].cells].find((cell) => cell.ariaSort);
  if (!head) return;
  const [place, sign] = [head.cellIndex, head.ariaSort === "ascending" ? 1 : -1];
  for (const body of table.tBodies) {
    const rows = rowsOf(body);
    rows.sort((one, other) => comparison(one.cells[place], other.cells[place], sign));
    body.append(...rows);
  }
}

function rowsOf(part) {
  return [...part.rows].filter((row) => row.parentElement.tagName === "TBODY" && row.className !== "group");
}

function sortBy(head) {
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  order(head.closest("table"));
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

function press(button) {
  const pressed = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(pressed));
  return pressed;
}

// Above a table: which of its rows are shown, whether in groups, and whether with all columns.
function offerTools() {
  for (const tools of document.querySelectorAll(".tools")) {
    const place = tools.nextElementSibling.nextElementSibling;
    const table = place.querySelector("table");
    tools.hidden = tools.childElementCount === 1;
    offerGroups(tools, table, offerSearch(tools, table));
    table.classList.toggle("thin", tools.querySelector(".every") !== null);
    tools.querySelector(".every")?.addEventListener("click", ({ currentTarget }) => {
      table.classList.toggle("thin", !press(currentTarget));
      hint(place);
    });
  }
}

// Shows the rows that hold every word, in what they say or in the title of their group.
function offerSearch(tools, table) {
  const [field, told] = [tools.querySelector("input"), tools.querySelector("output")];
  const texts = new Map();
  for (const body of table.tBodies) {
    const title = body.querySelector(".group")?.textContent ?? "";
    for (const row of rowsOf(body)) texts.set(row, `${title} ${row.textContent}`.toLowerCase());
  }
  const search = () => {
    const words = (field?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    for (const [row, text] of texts) row.hidden = !words.every((word) => text.includes(word));
    for (const body of table.tBodies) body.hidden = rowsOf(body).every((row) => row.hidden);
    const shown = [...texts.keys()].filter((row) => !row.hidden).length;
    told.textContent = words.length ? `${shown} of ${texts.size} rows` : "";
  };
  field?.addEventListener("input", search);
  return search;
}

function offerGroups(tools, table, search) {
  const homes = new Map();
  for (const body of table.tBodies) for (const row of rowsOf(body)) homes.set(row, body);
  const together = document.createElement("tbody");
  tools.querySelector(".by-group")?.addEventListener("click", ({ currentTarget }) => {
    const grouped = press(currentTarget);
    if (!grouped) table.append(together);
    for (const [row, home] of homes) (grouped ? home : together).append(row);
    if (grouped) together.remove();
    order(table);
    search();
  });
}

// A word above each table that has columns out of sight.
function hint(place) {
  place.previousElementSibling.hidden = place.scrollWidth <= place.clientWidth;
}

function hintAtScrolling() {
  if (typeof ResizeObserver === "undefined") return;
  const watcher = new ResizeObserver((entries) => entries.forEach(({ target }) => hint(target)));
  for (const place of document.querySelectorAll(".scroll")) watcher.observe(place);
}

offerDownloads();
offerSorting();
offerTools();
hintAtScrolling();
drawCharts();
