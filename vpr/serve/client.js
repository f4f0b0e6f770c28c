"use strict";
/* Questions to the server: with a token where it wants one, again where it is busy. The token is kept in memory alone. */
const server = (() => {
  const MOST_TRIES = 30; // while the server is busy
  let token = null, coming = null, wanted = () => Promise.reject(new Error("A token is wanted."));

  const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
  async function words(response) { // an error is one sentence of JSON
    try {
      const { error } = await response.json();
      if (typeof error === "string") return error;
    } catch { /* another server's answer, on the way */ }
    return `the server answers with status ${response.status}`;
  }
  function newToken(refused) { // one question, however many wait for it
    coming ??= wanted(refused).then((given) => { token = given; coming = null; });
    return coming;
  }

  /* The response; `waits(seconds)` is told when the server is busy. Errors have `status` where the server answered. */
  async function ask(path, options = {}, waits = () => {}) {
    for (let tries = 1; ; tries++) {
      const used = token, headers = { ...options.headers, ...(used !== null && { Authorization: `Bearer ${used}` }) };
      let response;
      try {
        response = await fetch(path, { ...options, headers });
      } catch {
        throw new Error("The server does not answer.");
      }
      if (response.ok) return response;
      if (response.status === 401) {
        if (used === token) await newToken(used !== null);
      } else if (response.status === 503 && tries < MOST_TRIES) {
        const seconds = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 0.2), 30);
        waits(seconds);
        await pause(seconds);
      } else throw Object.assign(new Error(await words(response)), { status: response.status });
    }
  }

  async function locate(image, near, waits) {
    const send = async (agreement) => {
      const asked = new URLSearchParams({ top: 5, ...(agreement && { agreement }), ...(near && { near }) });
      const headers = { "Content-Type": image.type || "application/octet-stream" };
      return (await ask(`locate?${asked}`, { method: "POST", body: image, headers }, waits)).json();
    };
    try {
      return await send(true);
    } catch (error) { // where there are no local descriptors the places are found all the same
      if (error.status !== 422) throw error;
      return send(false).catch(() => { throw error; });
    }
  }

  const shown = new Map(); // addresses of images that were fetched with a token
  async function imageAddress(path) {
    const relative = path.replace(/^\/+/, "");
    if (token === null) return relative;
    if (!shown.has(relative)) {
      const got = ask(relative).then((response) => response.blob()).then((blob) => URL.createObjectURL(blob));
      shown.set(relative, got);
      got.catch(() => shown.delete(relative));
    }
    return shown.get(relative);
  }

  return {
    locate, imageAddress,
    json: async (path) => (await ask(path)).json(),
    onToken: (asks) => { wanted = asks; }, // asks(refused) -> promise of a token
  };
})();
