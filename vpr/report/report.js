"use strict";
/* The report's table of queries: sorted, filtered, turned over and opened; and its map and curve, if it has any. */
const PAGE = 200, MOST_LINES = 1000, UNKNOWN = "–"; // more rows than PAGE in sight make a slow page
const rows = JSON.parse(document.getElementById("outcomes").textContent); // the worst first
const reranked = rows.some((row) => "before" in row);
const FILTERS = {
  all: () => true, missed: (row) => row.rank !== 1, found: (row) => row.rank === 1,
  ...(reranked && { gained: (row) => row.change === "gained", lost: (row) => row.change === "lost" }),
};
const COLUMNS = { // what each heading sorts by; null comes last
  query: (row) => row.query,
  name: (row) => row.name,
  status: (row) => row.rank ?? (row.answerable ? 1e9 : 2e9),
  ...(reranked && { before: (row) => row.before }),
  rank: (row) => row.rank,
  metres: (row) => first(row, "metres"),
  distance: (row) => first(row, "distance"),
  hit: (row) => first(row, "name"),
};
const byId = (id) => document.getElementById(id), all = (selector) => document.querySelectorAll(selector);
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = []; // figures, painted anew where the scheme changes
let places = null, map = null, chosen = null; // where queries and first hits lie; the map; the row that is ringed on it
let state, turned; // turned: queries whose rows are open while the others are closed, or the other way round

const first = (row, key) => (row.hits.length ? row.hits[0][key] : null);
function number(value, digits) {
  const format = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value === null ? UNKNOWN : value.toLocaleString("en", format);
}
function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text; // never as HTML: names may hold anything
  return made;
}

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  const oneOf = (key, allowed) => (allowed.includes(given.get(key)) ? given.get(key) : allowed[0]);
  state = {
    filter: oneOf("filter", Object.keys(FILTERS)),
    sort: oneOf("sort", ["", ...Object.keys(COLUMNS)]),
    order: oneOf("order", ["ascending", "descending"]),
    search: given.get("search") ?? "",
    page: Math.max(1, parseInt(given.get("page"), 10) || 1),
    open: oneOf("open", ["", "all"]),
    scheme: oneOf("scheme", ["", "light", "dark"]),
  };
  turned = new Set();
}
function writeState() {
  const usual = { filter: "all", order: "ascending", page: 1 };
  const changed = Object.entries(state).filter(([key, value]) => value !== (usual[key] ?? ""));
  history.replaceState(null, "", "#" + new URLSearchParams(changed));
}
function change(changes) {
  Object.assign(state, { page: 1 }, changes); // another order or filter starts at its first page
  render();
  writeState();
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return a < b ? -sign : a > b ? sign : 0;
}
function matching() {
  const text = state.search.toLowerCase();
  const has = (name) => name !== null && name.toLowerCase().includes(text);
  const kept = rows.filter((row) => FILTERS[state.filter](row) && (has(row.name) || has(first(row, "name"))));
  const value = COLUMNS[state.sort], sign = state.order === "descending" ? -1 : 1;
  return value ? kept.sort((a, b) => compare(value(a), value(b), sign)) : kept;
}
function render() {
  const kept = matching();
  const pages = Math.max(1, Math.ceil(kept.length / PAGE));
  state.page = Math.min(state.page, pages);
  const start = (state.page - 1) * PAGE, shown = kept.slice(start, start + PAGE);
  document.querySelector("#table tbody").replaceChildren(...shown.flatMap(rowElements));
  const where = `${number(start + 1, 0)}–${number(start + shown.length, 0)} of ${number(kept.length, 0)}`;
  for (const line of all(".where")) line.textContent = kept.length ? where : "No query matches.";
  for (const button of all("[data-step]")) {
    button.hidden = pages === 1;
    button.disabled = button.dataset.step === "1" ? state.page === pages : state.page === 1;
  }
  for (const { dataset, parentElement } of all("[data-column]")) {
    parentElement.setAttribute("aria-sort", dataset.column === state.sort ? state.order : "none");
  }
  for (const input of all("[name=filter]")) input.checked = input.value === state.filter;
  byId("search").value = state.search;
  byId("worst").disabled = !state.sort;
  byId("open").textContent = state.open ? "Close all rows" : "Open all rows";
  paint();
}
function paint() {
  document.documentElement.dataset.scheme = state.scheme || (dark.matches ? "dark" : "light");
  byId("scheme").textContent = document.documentElement.dataset.scheme === "dark" ? "Light" : "Dark";
  for (const figure of drawn) figure.paint();
}

const kindOf = (row) => (row.rank === 1 ? "right" : row.rank ? "late" : row.answerable ? "missed" : "none");
function rowElements(row) {
  const tr = element("tr", "row"), cell = (className, text) => tr.append(element("td", className, text));
  const button = element("button", "", row.query + 1), open = Boolean(state.open) !== turned.has(row.query);
  const kind = kindOf(row);
  tr.dataset.query = row.query;
  tr.ariaCurrent = String(row === chosen);
  button.type = "button";
  button.setAttribute("aria-expanded", open);
  cell("");
  tr.firstChild.append(button);
  cell("name", row.name);
  cell(`status ${kind}`, row.status);
  if (reranked) cell(`number ${row.change}`, number(row.before, 0));
  cell("number", number(row.rank, 0));
  cell("number", number(first(row, "metres"), 1));
  cell("number", number(first(row, "distance"), 3));
  cell("name", first(row, "name") ?? UNKNOWN);
  tr.onclick = (event) => { // selecting a name is not a click
    if (event.target === button || !String(getSelection())) turn(row, tr, button);
  };
  return open ? [tr, detailsElement(row)] : [tr];
}
function turn(row, tr, button) {
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", open);
  if (open) tr.after(detailsElement(row)); else tr.nextSibling.remove();
  if (open) choose(row);
  if (!turned.delete(row.query)) turned.add(row.query);
}
function detailsElement(row) {
  const tr = element("tr", "details"), td = element("td", ""), box = element("div", "");
  const side = element("section", "side"), list = element("ol", "hits");
  td.colSpan = Object.keys(COLUMNS).length;
  for (const hit of row.hits) {
    const item = element("li", "", hit.name);
    const metres = hit.metres === null ? "" : `${number(hit.metres, 1)} m, `;
    const facts = element("small", "", `${metres}distance ${number(hit.distance, 3)}, `);
    facts.append(element("span", `status ${hit.right ? "right" : "missed"}`, hit.right ? "right" : "wrong"));
    list.append(item);
    item.append(facts);
  }
  side.append(row.hits.length ? list : element("p", "note", "Nothing was found."));
  if (map) {
    const button = element("button", "control", "Show on the map");
    button.type = "button";
    button.onclick = () => { choose(row); byId("map").scrollIntoView({ block: "center" }); byId("map").firstChild.focus(); };
    side.append(button);
  }
  box.append(panelElement(row) ?? "", side);
  td.append(box);
  tr.append(td);
  return tr;
}
function panelElement(row) {
  const embedded = byId(`panel-${row.query}`);
  if (!embedded && !row.panel) return null;
  const box = element("div", "panel"), image = element("img", "");
  image.alt = `Query ${row.query + 1} and its first hits`;
  image.src = embedded ? `data:image/jpeg;base64,${embedded.textContent}` : row.panel;
  const lost = embedded ? "Its picture is damaged." : `Not found beside this page: ${row.panel}`;
  image.onerror = () => box.replaceChildren(element("p", "note", lost));
  box.tabIndex = 0; // keys scroll it where the page is narrow
  box.append(image);
  return box;
}

/* The map and the curve. */
const place = ({ x, y }, n) => (x[n] === null ? null : { x: x[n], y: y[n] });
const figureKind = (row) => (kindOf(row) === "right" ? "found" : kindOf(row));
async function drawFigures({ map: lie, curve, map_figure, curve_figure }) {
  if (lie) await drawMap(lie, map_figure);
  if (curve) drawn.push(await figures.recallCurve(byId("curve"), curve_figure, curve));
}
async function drawMap(lie, figure) {
  const shown = { found: true, late: true, missed: true, none: true, lines: false };
  let marked = [];
  map = await figures.placeMap(byId("map"), figure, {
    label: "Map of the test", labels: [`metres east of ${number(lie.west, 0)}`, `metres north of ${number(lie.south, 0)}`],
    onPoint: (layer, n) => { if (layer === "marks") openRow(marked[n].row); },
    about: (layer, n) => (layer === "marks" ? aboutRow(marked[n].row) : null),
  });
  const marks = rows.map((row) => ({ ...place(lie.queries, row.query), kind: figureKind(row), row })).reverse(); // misses on top
  const wrong = rows.filter((row) => row.rank !== 1 && place(lie.hits, row.query)).slice(0, MOST_LINES);
  const refill = () => {
    marked = marks.filter(({ kind }) => shown[kind]);
    map.marks(marked);
    map.lines(shown.lines ? wrong.map(lineOf) : []);
  };
  places = lie;
  map.background(lie.database);
  map.show([...marks, ...lie.database.x.map((x, n) => ({ x, y: lie.database.y[n] }))]);
  const count = (kind) => number(marks.filter((mark) => mark.kind === kind).length, 0);
  const kinds = { found: "found at 1", late: "found at a later rank", missed: "missed", none: "nothing within reach" };
  const entries = Object.entries(kinds).map(([kind, words]) => ({ kind, text: `${words} (${count(kind)})` }));
  entries.push({ kind: "lines", text: "to wrong first hits", on: false });
  const used = entries.filter(({ kind }) => kind === "lines" || count(kind) !== "0");
  byId("map").append(figures.legend(used, (kind, on) => { shown[kind] = on; refill(); }));
  refill();
  drawn.push(map);
  render(); // open rows get their button
}
function lineOf(row) {
  const from = place(places.queries, row.query), to = place(places.hits, row.query);
  return { x0: from.x, y0: from.y, x1: to?.x, y1: to?.y, kind: figureKind(row) };
}
const aboutRow = (row) => `Query ${number(row.query + 1, 0)}: ${row.status}\n${row.name}`;
function choose(row) {
  chosen = row;
  for (const tr of all("tr.row")) tr.ariaCurrent = String(tr.dataset.query === String(row.query));
  if (!map) return;
  const { x0: x, y0: y, x1, y1, kind } = lineOf(row);
  map.choose({ x, y, x1, y1, kind });
  map.reveal([{ x, y }]);
}
function openRow(row) {
  if (!matching().includes(row)) change({ filter: "all", search: "" });
  change({ page: 1 + Math.floor(matching().indexOf(row) / PAGE) });
  const tr = document.querySelector(`tr.row[data-query="${row.query}"]`), button = tr.querySelector("button");
  if (button.getAttribute("aria-expanded") === "false") turn(row, tr, button); else choose(row);
  tr.scrollIntoView({ block: "start" });
  button.focus({ preventScroll: true });
}

for (const part of all(".again")) if (reranked) part.hidden = false; else part.remove();
for (const button of all("[data-column]")) {
  button.onclick = () => {
    const sort = button.dataset.column, again = state.sort === sort && state.order === "ascending";
    change({ sort, order: again ? "descending" : "ascending" });
  };
}
for (const input of all("[name=filter]")) {
  input.nextElementSibling.append(` (${number(rows.filter(FILTERS[input.value]).length, 0)})`);
  input.onchange = () => change({ filter: input.value });
}
for (const button of all("[data-step]")) {
  button.onclick = () => {
    change({ page: state.page + Number(button.dataset.step) });
    byId("queries").scrollIntoView();
  };
}
byId("search").oninput = (event) => change({ search: event.target.value });
byId("worst").onclick = () => change({ sort: "", order: "ascending" });
byId("open").onclick = () => { turned.clear(); change({ open: state.open ? "" : "all", page: state.page }); };
byId("scheme").onclick = () => change({ scheme: byId("scheme").textContent.toLowerCase(), page: state.page });
byId(rows.length ? "queries" : "no-queries").hidden = false;
addEventListener("hashchange", () => { readState(); render(); });
dark.addEventListener("change", paint);
readState();
render();
if (byId("figure-data")) drawFigures(JSON.parse(byId("figure-data").textContent));
