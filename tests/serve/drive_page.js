"use strict";
/* What a user does on the page, by mouse where it is wide and by keys where it is narrow; the frame around it is told what
   came of it. Keys that a browser turns into clicks are given as clicks of what has the focus. */
const told = { violations: [], wide: innerWidth > 600 };
addEventListener("securitypolicyviolation", (event) => told.violations.push(event.violatedDirective));
const wait = (ready) => new Promise((done) => {
  const timer = setInterval(() => { if (ready()) { clearInterval(timer); done(); } }, 10);
});
const text = (selector) => document.querySelector(selector)?.textContent;
const data = (name) => map.plot.document.get_model_by_name(`${name}_data`).data;
const view = () => [map.plot.x_range.start, map.plot.x_range.end];
async function image() {
  const canvas = new OffscreenCanvas(64, 48);
  canvas.getContext("2d").fillRect(0, 0, 32, 48);
  return new File([await canvas.convertToBlob({ type: "image/jpeg" })], "<b>query</b>.jpg", { type: "image/jpeg" });
}
const cards = () => document.querySelectorAll(".answer");
const mapDrawn = () => typeof map !== "undefined" && map?.plot.inner_width > 100 && data("database").x.length > 0;
function pierced(x, y) {
  let found = document.elementFromPoint(x, y);
  while (found.shadowRoot?.elementFromPoint(x, y)) found = found.shadowRoot.elementFromPoint(x, y);
  return found;
}
function press([clientX, clientY]) {
  const target = pierced(clientX, clientY), looks = { clientX, clientY, view: window, bubbles: true, composed: true, isPrimary: true };
  for (const [kind, buttons] of [["pointermove", 0], ["pointerdown", 1], ["pointerup", 0]]) {
    target.dispatchEvent(new PointerEvent(kind, { ...looks, pointerId: 1, pointerType: "mouse", buttons }));
  }
}
async function dropped() {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(await image());
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}
function key(name) { // to what has the focus
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
}
function focusable() {
  const all = [...document.querySelectorAll("button, input, a, [tabindex]")];
  return all.filter((each) => each.tabIndex >= 0 && !each.disabled && each.offsetParent !== null);
}
const nameOf = (each) => each.getAttribute("aria-label") || each.textContent.trim() || [...(each.labels ?? [])].map((label) => label.textContent).join("");

async function byMouse() {
  HTMLElement.prototype.setPointerCapture = () => {}; // of a pointer that is not there
  await wait(mapDrawn);
  told.drawn = { x: data("database").x, y: data("database").y };
  await dropped(); // the server is busy at first
  await wait(() => cards().length === 1 && document.querySelector(".answer svg"));
  told.answer = { heading: text(".answer h2"), sure: text(".answer .sure"), place: text(".answer .place"), lines: document.querySelectorAll(".agreement line.under").length };
  told.marks = { x: data("marks").x, y: data("marks").y };
  told.status = text("#status");
  byId("map").scrollIntoView();
  await wait(() => { // the map's place may still change: a press that misses is made again
    if (!text("#picked-name").includes("onerror")) press(map.pixel({ x: 120, y: 0 }));
    return text("#picked-name").includes("onerror");
  });
  told.picked = { name: text("#picked-name"), tip: text("#map .tip"), ring: [data("chosen").x[0], data("chosen").y[0]] };
  byId("radius").value = "60";
  byId("search-again").click();
  await wait(() => cards().length === 2);
  told.again = text(".answer h2");
  told.refused = [text(".answer .sure"), text("#status")];
  await dropped();
  await wait(() => cards().length === 3);
  told.error = text(".answer .sure");
  byId("scheme").click();
  told.scheme = document.documentElement.dataset.scheme;
}
async function byKeys() {
  await wait(() => document.activeElement === document.querySelector("#token-text"));
  for (const token of ["wrong", "a token of the test"]) {
    await wait(() => !byId("token").hidden);
    document.activeElement.value = token;
    byId("token").requestSubmit();
    told.asked = text("#token-words");
  }
  await wait(mapDrawn);
  const transfer = new DataTransfer();
  transfer.items.add(await image());
  byId("choose").focus();
  byId("files").files = transfer.files;
  byId("files").dispatchEvent(new Event("change"));
  await wait(() => document.querySelector(".answer svg image") && document.querySelector(".matches img").src);
  told.images = [document.querySelector(".matches img").src.slice(0, 5), document.querySelectorAll(".answer svg image")[1].getAttribute("href").slice(0, 5)];
  document.querySelectorAll(".matches button")[1].focus();
  document.activeElement.click();
  told.second = text("#picked-name");
  document.querySelector("#map .plot").focus();
  told.before = view();
  key("+");
  told.zoomed = view();
  key("0");
  const spot = { x: data("database").x[0], y: data("database").y[0] };
  for (let n = 0; n < 3; n++) key("+");
  for (let n = 0; n < 40; n++) { // walk to the south-western corner, then pick what lies there
    const [x0, x1, y0, y1] = [...view(), map.plot.y_range.start, map.plot.y_range.end];
    if ((x0 + x1) / 2 > spot.x + (x1 - x0) / 7) key("ArrowLeft");
    if ((y0 + y1) / 2 > spot.y + (y1 - y0) / 7) key("ArrowDown");
  }
  key("Enter");
  told.picked = text("#picked-name");
  told.unnamed = focusable().filter((each) => !nameOf(each)).map((each) => each.outerHTML);
  told.focusable = focusable().length;
  told.wideness = [document.documentElement.scrollWidth, document.documentElement.clientWidth];
}
addEventListener("load", () => {
  (told.wide ? byMouse() : byKeys())
    .catch((error) => { told.error = error.stack; })
    .finally(() => parent.postMessage(told, "*"));
});
