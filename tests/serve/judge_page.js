"use strict";
/* The page with the token's form, without answers and with some, judged by axe; the frame around it is told what was
   found. The address says which scheme, and after how many answers. */
const wait = (ready) => new Promise((done) => {
  const timer = setInterval(() => { if (ready()) { clearInterval(timer); done(); } }, 10);
});
const mapDrawn = () => typeof map !== "undefined" && map?.plot.inner_width > 100;
async function imagesOf(count) {
  const canvas = new OffscreenCanvas(64, 48), transfer = new DataTransfer();
  canvas.getContext("2d").fillRect(0, 0, 32, 48);
  const content = await canvas.convertToBlob({ type: "image/jpeg" });
  for (let n = 0; n < count; n++) transfer.items.add(new File([content], `frame_${n}.jpg`, { type: "image/jpeg" }));
  return transfer.files;
}
async function judge() {
  const [scheme, count] = location.hash.slice(1).split(","), told = { token: null, width: innerWidth, scheme };
  if (byId("scheme").textContent.toLowerCase() === scheme) byId("scheme").click();
  await wait(() => mapDrawn() || !byId("token").hidden);
  if (!byId("token").hidden) {
    told.token = await violations();
    byId("token-text").value = "a token of the test";
    byId("token").requestSubmit();
    await wait(mapDrawn);
  }
  told.empty = await violations();
  byId("files").files = await imagesOf(count);
  byId("files").dispatchEvent(new Event("change"));
  await wait(() => document.querySelectorAll(".answer").length === Number(count) && !busy);
  pick(matchAt(0));
  told.answered = await violations();
  told.sure = [...document.querySelectorAll(".sure")].map((each) => each.textContent);
  const shown = (selector) => [...document.querySelectorAll(`${selector} .agreement`)].map((each) => getComputedStyle(each).display);
  told.lines = { unknown: shown(".answer:has(.poor)"), others: shown(".answer:not(:has(.poor))") };
  return told;
}
addEventListener("load", () => {
  judge().catch((error) => ({ error: error.stack })).then((told) => parent.postMessage(told, "*"));
});
