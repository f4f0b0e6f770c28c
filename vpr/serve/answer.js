"use strict";
/* An answer as a card: the image beside its first match with lines of agreement, how sure it is, the matches. Names are
   only ever set as text. */
const answers = (() => {
  const { element } = figures;
  const SVG = "http://www.w3.org/2000/svg", GAP = 2; // percent of the breadth between the two images
  const LEAST = 0.5; // below this probability the first match is more often wrong than right
  const MOST_LINES = 60; // more hide the images
  const narrow = matchMedia("(max-width: 30rem)");

  const fixed = (value, digits) => value.toFixed(digits);
  function percent(probability) { // no answer is ever certain
    return probability < 0.01 ? "under 1 %" : probability > 0.99 ? "over 99 %" : `${fixed(100 * probability, 0)} %`;
  }
  function degrees({ latitude, longitude }) {
    return latitude === null ? null : `${fixed(latitude, 6)}, ${fixed(longitude, 6)}`;
  }
  function placeInWords(match) {
    if (match.easting === null) return "place unknown";
    return degrees(match) ?? `${fixed(match.easting, 1)} E ${fixed(match.northing, 1)} N`;
  }
  function breakable(name) { // between its parts, if anywhere
    return name.split(/(?<=[/_@])/).flatMap((part) => [part, element("wbr", "")]);
  }
  function picture(address, alt) { // an image in a box, or a sentence where there is none
    const box = element("div", "picture"), image = element("img", "");
    image.alt = alt;
    image.onerror = () => box.replaceChildren("no picture");
    address.then((found) => { image.src = found; }, () => image.onerror());
    box.append(image);
    return box;
  }

  /* How sure an answer is: its class and its words. A number that is no probability has no colour, and claims nothing. */
  function sureness({ confidence, confidence_kind: kind, refused, matches, usual_distance: usual }) {
    const probable = confidence !== null && /probability/.test(kind) && !/no probability/.test(kind);
    const number = probable ? `right with a probability of ${percent(confidence)}` : `score ${confidence === null ? "unknown" : fixed(confidence, 2)}`;
    if (!matches.length) return ["poor", "nothing was found"];
    if (refused || (probable && confidence < LEAST)) return ["poor", `I don't know this place (${number})`];
    if (probable) return [confidence >= 0.9 ? "good" : "fair", number];
    if (/part of the database/.test(kind)) return ["plain", "most similar; how sure is unknown: only a part of the images was searched"];
    const first = matches[0].distance, known = usual !== null && first !== null;
    const beside = known ? `distance ${fixed(first, 2)}; random images: ${fixed(usual, 2)}` : number;
    return ["plain", confidence === null && !known ? "most similar" : `most similar (${beside})`];
  }

  const sizeOf = (address) => new Promise((done, fail) => {
    const image = new Image();
    image.onload = () => done({ address, wide: image.naturalWidth, high: image.naturalHeight });
    image.onerror = () => fail(new Error("this browser cannot show it"));
    image.src = address;
  });
  function svg(tag, attributes) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }
  /* Two images beside each other, one above the other on a narrow page, and lines between points that agree. */
  function pairOf(first, second, agreement, label) {
    const stacked = narrow.matches, made = svg("svg", { role: "img", "aria-label": label });
    const ratio = [first, second].map(({ wide, high }) => wide / high), sum = ratio[0] + ratio[1];
    const boxes = stacked // x, y, breadth, height; the whole is 100 broad
      ? [[0, 0, 100, 100 / ratio[0]], [0, 100 / ratio[0] + GAP, 100, 100 / ratio[1]]]
      : [[0, 0, ((100 - GAP) * ratio[0]) / sum, (100 - GAP) / sum], [((100 - GAP) * ratio[0]) / sum + GAP, 0, ((100 - GAP) * ratio[1]) / sum, (100 - GAP) / sum]];
    const [, top, , height] = boxes[1];
    made.setAttribute("viewBox", `0 0 100 ${top + height}`);
    [first, second].forEach(({ address }, n) => {
      const [x, y, width, high] = boxes[n];
      made.append(svg("image", { href: address, x, y, width, height: high, preserveAspectRatio: "none" }));
    });
    const lines = svg("g", { class: "agreement" }), at = ([x, y], [left, above, wide, high]) => [left + x * wide, above + y * high];
    const strongest = [...agreement].sort((a, b) => a.weight - b.weight).slice(-MOST_LINES); // these are drawn last
    const most = Math.max(...strongest.map(({ weight }) => weight), 1e-9);
    for (const { query, hit, weight } of strongest) {
      const [x1, y1] = at(query, boxes[0]), [x2, y2] = at(hit, boxes[1]), opacity = 0.25 + 0.75 * Math.max(0, weight / most);
      lines.append(svg("line", { x1, y1, x2, y2, class: "under" }), svg("line", { x1, y1, x2, y2, opacity }));
      for (const [cx, cy] of [[x1, y1], [x2, y2]]) lines.append(svg("circle", { cx, cy, r: 0.5 }));
    }
    made.append(lines);
    return made;
  }
  function pair(image, answer, name, unknown) {
    const box = element("div", "pair"), match = answer.matches[0], agreement = answer.agreement ?? [];
    const label = `${name} beside its first match ${match.name}` + (agreement.length ? `; ${agreement.length} points in them look alike` : "");
    Promise.all([sizeOf(image), server.imageAddress(match.image).then(sizeOf)]).then((both) => {
      const draw = () => box.querySelector("svg")?.replaceWith(pairOf(...both, agreement, label));
      box.prepend(pairOf(...both, agreement, label));
      narrow.addEventListener("change", draw);
      if (!agreement.length) return;
      const show = element("label", "switch"), input = element("input", "");
      Object.assign(input, { type: "checkbox", checked: !unknown }); // lines would speak for a place that is not known
      input.onchange = () => box.classList.toggle("plain", !input.checked);
      input.onchange();
      show.append(input, `points that look alike (${agreement.length})`);
      box.append(show);
    }, (error) => box.append(element("p", "note", `The two images cannot be shown beside each other: ${error.message}.`)));
    return box;
  }

  function copyButton(text) {
    const button = element("button", "control", "Copy");
    button.type = "button";
    button.setAttribute("aria-label", `Copy ${text}`);
    button.onclick = async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    return button;
  }
  function matchButton(match, rank, pick) {
    const item = element("li", ""), button = element("button", ""), words = element("div", "words");
    const distance = match.distance === null ? "distance unknown" : `distance ${fixed(match.distance, 3)}`;
    const name = element("strong", ""), score = match.score === null ? [] : [`score ${fixed(match.score, 2)}`];
    name.append(`${rank}. `, ...breakable(match.name));
    words.append(name, ...[...score, distance, placeInWords(match)].map((text) => element("div", "", text)));
    button.type = "button";
    button.title = match.name;
    button.setAttribute("aria-pressed", "false");
    button.dataset.id = match.id;
    button.append(picture(server.imageAddress(match.image), ""), words);
    button.onclick = () => pick(match);
    item.append(button);
    return item;
  }

  /* The card of an image: `image` its address, `name`, `where` words of where was searched, `pick(match)` called for a
     match that is pressed. */
  function card({ image, name, where, answer, pick }) {
    const made = element("article", "card answer"), heading = element("header", ""), [kind, words] = sureness(answer);
    const title = element("h2", "", name + (where ? `, ${where}` : ""));
    heading.append(title, element("span", `sure ${kind}`, words));
    made.append(heading);
    made.setAttribute("aria-label", `${title.textContent}: ${words}`);
    made.tabIndex = -1;
    if (!answer.matches.length) return made;
    const first = answer.matches[0], unknown = kind === "poor", text = degrees(first);
    const place = element("p", unknown ? "place note" : "place");
    if (unknown) made.append(element("p", "note", `${answer.refused ? "Below what this server answers from. " : ""}What came nearest:`));
    made.append(pair(image, answer, name, unknown));
    place.append(placeInWords(first));
    if (text) place.append(copyButton(text));
    if (first.easting !== null) {
      const button = element("button", "control", "On the map");
      button.type = "button";
      button.onclick = () => { pick(first); document.getElementById("map").scrollIntoView({ block: "center" }); };
      place.append(button);
    }
    const metres = text === null ? "" : `UTM ${first.zone ?? ""} ${fixed(first.easting, 1)} E ${fixed(first.northing, 1)} N`;
    place.append(element("small", "", metres));
    const list = element("ol", "matches");
    list.setAttribute("aria-label", "Matches, best first");
    answer.matches.forEach((match, n) => list.append(matchButton(match, n + 1, pick)));
    const milliseconds = Object.values(answer.timing ?? {}), total = answer.timing?.total_ms ?? Math.max(0, ...milliseconds);
    const kinds = element("p", "note", `How sure: ${answer.confidence_kind}. Answered in ${fixed(total, 0)} ms.`);
    made.append(place, list, kinds);
    return made;
  }
  return { card, picture, placeInWords, degrees };
})();
