"use strict";
/* The server's page: images come by drop, paste, choice or camera and go to the server one after another; the answers are
   cards, the map shows the database and the matches of the answer that was looked at last. */
const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("page-data").textContent), dark = matchMedia("(prefers-color-scheme: dark)");
const waiting = []; // [{file, near, where}]
let busy = false, map = null, current = null, picked = null, places = null;

const number = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
function tell(text, kind = "") { // kind: error, shown (beside what the page shows of it anyway), or both
  byId("status").textContent = text;
  byId("status").className = kind;
}

/* Light and dark. */
function paint() {
  const chosen = document.documentElement.dataset.scheme || (dark.matches ? "dark" : "light");
  byId("scheme").textContent = chosen === "dark" ? "Light" : "Dark";
  map?.paint();
}
byId("scheme").onclick = () => {
  document.documentElement.dataset.scheme = byId("scheme").textContent.toLowerCase();
  paint();
};
dark.addEventListener("change", paint);

/* A token where the server wants one. */
server.onToken((refused) => new Promise((done) => {
  byId("token").hidden = false;
  byId("token-words").textContent = refused ? "The server does not take this token." : "This server wants a token.";
  byId("token-text").focus();
  byId("token").onsubmit = (event) => {
    event.preventDefault();
    byId("token").hidden = true;
    done(byId("token-text").value.trim());
    byId("token-text").value = "";
  };
}));

/* Images. */
function take(files, near = null, where = "") {
  const images = [...files].filter(({ type, name }) => type.startsWith("image/") || /\.(jpe?g|png|webp|hei[cf])$/i.test(name));
  if (files.length && !images.length) return tell("That is no image.", "error");
  waiting.push(...images.map((file) => ({ file, near, where })));
  if (!busy) answerAll();
}
async function answerAll() {
  busy = true;
  for (let each = waiting.shift(); each; each = waiting.shift()) {
    const more = waiting.length ? `, ${waiting.length} more to come` : "";
    tell(`Looking for the place of ${each.file.name}${more} …`);
    try {
      const waits = (seconds) => tell(`The server is busy; asking again in ${number(seconds, seconds % 1 ? 1 : 0)} s${more}.`);
      show(each, await server.locate(each.file, each.near, waits));
    } catch (error) {
      tell(`${each.file.name}: ${error.message}`, "error shown");
      byId("answers").prepend(failed(each.file.name, error.message));
    }
    byId("nothing-yet").hidden = true;
  }
  busy = false;
}
function failed(name, words) {
  const card = figures.element("article", "card answer");
  card.append(figures.element("h2", "", name), figures.element("p", "sure poor", words));
  return card;
}
function show({ file, where }, answer) {
  const image = URL.createObjectURL(file); // kept: the card is shown until the page is closed
  const given = { file, answer };
  given.card = answers.card({ image, name: file.name, where, answer, pick: (match) => { look(given); pick(match); } });
  byId("answers").prepend(given.card);
  look(given);
  pick(answer.matches[0] ?? null);
  const [first] = answer.matches, count = number(answer.images);
  byId("about").textContent = `${count} images of places; ${answer.model}`;
  const found = first && !given.card.querySelector(".sure.poor") ? `first match ${first.name}, ${answers.placeInWords(first)}; ` : "";
  tell(`${file.name}${where && `, ${where}`}: ${found}${given.card.querySelector(".sure").textContent}.`, "shown");
}
function look(given) { // its matches are on the map, its image is sent where is searched again
  for (const each of document.querySelectorAll(".answer.current")) each.classList.remove("current");
  current = given;
  given.card.classList.add("current");
  if (!map) return;
  const marks = given.answer.matches.map((match, n) => ({ ...map.place(match), kind: n ? "other" : "answer", match }));
  map.marked = marks.filter(({ x }) => x !== null).reverse(); // the first match is drawn last
  map.marks(map.marked);
}

/* The image that was pressed, on the map or among the matches. */
function pick(match) {
  picked = match;
  byId("picked").hidden = !match;
  for (const button of document.querySelectorAll("[aria-pressed]")) {
    const here = current?.card.contains(button) && button.dataset.id === match?.id;
    button.setAttribute("aria-pressed", String(Boolean(here)));
  }
  if (!match) return;
  byId("picked").querySelector(".picture").replaceWith(answers.picture(server.imageAddress(match.image), match.name));
  byId("picked-name").textContent = match.name;
  byId("picked-place").textContent = answers.placeInWords(match);
  const nowhere = answers.degrees(match) === null;
  byId("again").hidden = byId("again-words").hidden = nowhere;
  const why = nowhere ? "The latitude and longitude of this image are unknown, so nothing is searched around it."
    : current ? "" : "Give an image first: it is then searched for around this place.";
  byId("why-not").textContent = why;
  byId("search-again").disabled = byId("radius").disabled = Boolean(why);
  const place = map?.place(match);
  if (!map || place.x === null) return map?.choose(null);
  map.choose({ ...place, kind: "answer" });
  map.reveal([place]);
}
byId("again").onsubmit = (event) => {
  event.preventDefault();
  const metres = Number(byId("radius").value), near = `${picked.latitude},${picked.longitude},${metres}`;
  take([current.file], near, `within ${number(metres)} m of ${picked.name}`);
};

/* The map. */
async function drawMap() {
  const words = byId("map-words");
  try {
    if (page.figure === null || typeof Bokeh === "undefined") throw new Error("bokeh is missing on the server");
    places = await server.json("map");
    const tiles = page.tiles && places.latitude;
    if (!places.ids.length) throw new Error("no position of the database's images is known");
    const plane = tiles ? mercator(places) : metres(places);
    map = Object.assign(await figures.placeMap(byId("map"), tiles ? page.tiled_figure : page.figure, {
      label: "Map. Arrow keys move it, plus and minus zoom, 0 shows all, Enter picks what is in the middle.",
      labels: plane.labels, stretch: plane.stretch, dots: tiles ? "#4a4f57" : undefined, // on streets, which are never dark
      onPoint: (layer, n) => {
        pick(layer === "marks" ? map.marked[n].match : matchAt(n));
        tell(`${picked.name}, ${answers.placeInWords(picked)}.`, "shown");
      },
      about: (layer, n) => (layer === "marks" ? map.marked[n].match.name : places.names[n]),
    }), { place: plane.place, marked: [] });
    const drawn = { x: [], y: [] };
    for (let n = 0; n < places.ids.length; n++) {
      const { x, y } = map.place(matchAt(n));
      drawn.x.push(x);
      drawn.y.push(y);
    }
    map.background(drawn);
    map.show(drawn.x.map((x, n) => ({ x, y: drawn.y[n] })));
    const part = places.ids.length < places.images ? `, of which ${number(places.ids.length)} with a position are drawn` : "";
    words.textContent = `${number(places.images)} images of the database${part}. Press a point to see its image. Drag, pinch or scroll to move about.`;
    byId("map").append(figures.legend([["database", "database"], ["answer", "first match"], ["other", "further matches"]].map(([kind, text]) => ({ kind, text })), showKind));
    if (tiles) attribution();
    if (page.tiles && !tiles) words.textContent += " No streets: latitude and longitude are unknown.";
    if (current) { look(current); pick(picked); }
  } catch (error) {
    byId("map").hidden = true;
    words.textContent = `There is no map: ${error.message}.`;
  }
}
function showKind(kind, on) {
  const layer = map.plot.document.get_model_by_name(kind === "database" ? "database" : "marks");
  if (kind === "database") { layer.visible = on; return; }
  map.hidden = { ...map.hidden, [kind]: !on };
  map.marks(map.marked.filter((mark) => !map.hidden[mark.kind]));
}
function matchAt(n) { // an image of the map as a match without a distance
  const { ids, names, easting, northing, latitude, longitude, zone } = places;
  return { id: ids[n], name: names[n], image: `/images/${ids[n]}`, zone, distance: null, easting: easting[n], northing: northing[n],
    latitude: latitude?.[n] ?? null, longitude: longitude?.[n] ?? null };
}
function metres({ easting, northing }) { // UTM, from the corner of all
  const west = Math.floor(Math.min(...easting)), south = Math.floor(Math.min(...northing));
  return {
    labels: [`metres east of ${number(west)}`, `metres north of ${number(south)}`], stretch: 1,
    place: (match) => (match.easting === null ? { x: null, y: null } : { x: match.easting - west, y: match.northing - south }),
  };
}
function mercator({ latitude }) { // Web Mercator, in which street tiles are
  const radius = 6378137, turn = Math.PI / 180;
  return {
    labels: ["", ""], stretch: 1 / Math.cos(latitude[0] * turn),
    place: (match) => (match.latitude === null ? { x: null, y: null } : {
      x: radius * match.longitude * turn, y: radius * Math.log(Math.tan(Math.PI / 4 + (match.latitude * turn) / 2)),
    }),
  };
}
function attribution() {
  const line = byId("attribution"), link = figures.element("a", "", page.tiles.attribution);
  line.hidden = false;
  if (page.tiles.link) Object.assign(link, { href: page.tiles.link, rel: "noreferrer" });
  line.append("Streets: ", link);
  map.plot.document.get_model_by_name("tiles").visible = true;
}

byId("choose").onclick = () => byId("files").click();
byId("camera").onclick = () => byId("shot").click();
for (const input of [byId("files"), byId("shot")]) {
  input.onchange = () => { take(input.files); input.value = ""; };
}
addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
addEventListener("dragover", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files);
});
paint();
drawMap();
