"use strict";
/* The map and the recall curve. Python makes them as empty figures (interactive.py); here they are filled, painted in
   the colours of the style, and moved by mouse, touch, buttons and keys. Names are only ever set as text. */
const figures = (() => {
  const NEAR = 14; // pixels within which a point counts as pointed at; a finger is no finer
  const STEP = 0.25, ZOOM = 1.5; // of the map's breadth, and a factor, for each press of a button or key
  const SYMBOLS = { // of points, by what they mean: so that colour alone tells nothing
    found: { marker: "circle", size: 8, colour: "right", path: "M8 2a6 6 0 1 0 .01 0Z" },
    late: { marker: "triangle", size: 10, colour: "late", path: "M8 2 15 14H1Z" },
    missed: { marker: "x", size: 9, colour: "missed", path: "M3 3 13 13M13 3 3 13" },
    none: { marker: "square", size: 6, colour: "muted", path: "M4 4h8v8H4Z" },
    answer: { marker: "circle", size: 13, colour: "accent", path: "M8 2a6 6 0 1 0 .01 0Z" },
    other: { marker: "diamond", size: 11, colour: "accent", path: "M8 1 14 8 8 15 2 8Z" },
    database: { colour: "dots", path: "M8 5a3 3 0 1 0 .01 0Z" },
    lines: { colour: "missed", path: "M1 13 15 3" },
  };
  const OPEN = ["missed", "lines"]; // drawn by their line alone
  const MOVES = [ // label, what it says, key
    ["+", "Zoom in", "+"], ["−", "Zoom out", "-"], ["←", "Move west", "ArrowLeft"], ["→", "Move east", "ArrowRight"],
    ["↑", "Move north", "ArrowUp"], ["↓", "Move south", "ArrowDown"], ["Whole map", "", "0"],
  ];

  function element(tag, className, text) {
    const made = document.createElement(tag);
    made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function colour(name) { // what a variable of the style comes to in the scheme that is on
    const probe = element("i", "");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const { color } = getComputedStyle(probe);
    probe.remove();
    return color;
  }
  function symbol(kind) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "svg"), looks = SYMBOLS[kind];
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    made.setAttribute("viewBox", "0 0 16 16");
    made.setAttribute("aria-hidden", "true");
    path.setAttribute("d", looks.path);
    path.style.fill = OPEN.includes(kind) ? "none" : `var(--${looks.colour})`;
    path.style.stroke = `var(--${looks.colour})`;
    path.style.strokeWidth = OPEN.includes(kind) ? 3 : 0;
    made.append(path);
    return made;
  }

  async function embedded(box, item, label) {
    const frame = element("div", "plot"), tip = element("div", "tip");
    tip.hidden = true;
    frame.setAttribute("aria-label", label);
    box.append(frame, tip);
    const views = await Bokeh.embed.embed_item(item, frame);
    const view = [...views][0], plot = view.model;
    const model = (name) => plot.document.get_model_by_name(name);
    const fill = (name, columns) => { model(`${name}_data`).data = columns; };
    const say = (text, event) => { // beside the pointer, inside the box
      tip.hidden = !text;
      tip.textContent = text ?? "";
      if (!text) return;
      const left = event.sx + 14 + tip.offsetWidth > box.clientWidth ? event.sx - 14 - tip.offsetWidth : event.sx + 14;
      tip.style.left = `${Math.max(0, left)}px`;
      tip.style.top = `${Math.max(0, event.sy - tip.offsetHeight - 8)}px`;
    };
    plot.on_event("mouseleave", () => say(null));
    view.canvas_view.events_el.tabIndex = -1; // the frame around it takes the keys
    return { frame, view, plot, model, fill, say };
  }
  function paintPlot(plot) {
    const [muted, line, card] = ["muted", "line", "card"].map(colour);
    plot.setv({ background_fill_color: card, border_fill_color: card, outline_line_color: line });
    for (const part of [...plot.below, ...plot.left, ...plot.center]) {
      if (part.type.endsWith("Axis")) {
        part.setv({ axis_label_text_color: muted, major_label_text_color: muted, axis_line_color: line,
          major_tick_line_color: line, axis_label_text_font_size: "12px", major_label_text_font_size: "11px" });
      } else if (part.type === "Grid") part.grid_line_color = line;
    }
  }

  /* A map in `box`. What is told to it: `background({x, y})` the database; `marks([{x, y, kind}])` and
     `lines([{x0, y0, x1, y1, kind}])`, kinds of SYMBOLS; `choose({x, y, x1, y1, kind})` a ring around a mark and a line
     from it to x1, y1, if those are given; null: no mark. `onPoint(layer, index)` is called for a point pressed, `layer`
     marks or database; `about(layer, index)` gives its words, or null. `stretch`: units of the map to a metre; `dots`: the
     colour of the database, where it is not that of the style. */
  async function placeMap(box, item, { label, labels = ["", ""], onPoint, about, stretch = 1, dots }) {
    const { frame, view, plot, model, fill, say } = await embedded(box, item, label);
    const now = { database: { x: [], y: [] }, marks: [], lines: [], chosen: null };
    let extent = [0, 0, 1, 1], whole = true;
    const ranges = [plot.x_range, plot.y_range];
    const [east, north] = [plot.below[0], plot.left[0]];
    if (east && north) [east.axis_label, north.axis_label] = labels;
    const perPixel = () => (plot.x_range.end - plot.x_range.start) / Math.max(1, plot.inner_width);
    const centre = () => ranges.map((range) => (range.start + range.end) / 2);

    function look([x, y], metres) { // from straight above, the same scale both ways
      const across = (metres * plot.inner_width) / 2, along = (metres * plot.inner_height) / 2;
      plot.x_range.setv({ start: x - across, end: x + across });
      plot.y_range.setv({ start: y - along, end: y + along });
    }
    function fit() {
      const [west, south, right, top] = extent, wide = right - west, high = top - south;
      const metres = Math.max(wide / Math.max(1, plot.inner_width - 40), high / Math.max(1, plot.inner_height - 40), 0.05);
      look([(west + right) / 2, (south + top) / 2], metres);
      whole = true;
    }
    function step(key) {
      const { inner_width: width, inner_height: height } = plot, metres = perPixel(), [x, y] = centre();
      const to = {
        "+": () => look([x, y], metres / ZOOM), "=": () => look([x, y], metres / ZOOM), "-": () => look([x, y], metres * ZOOM),
        ArrowLeft: () => look([x - STEP * width * metres, y], metres),
        ArrowRight: () => look([x + STEP * width * metres, y], metres),
        ArrowUp: () => look([x, y + STEP * height * metres], metres),
        ArrowDown: () => look([x, y - STEP * height * metres], metres), 0: fit,
        Enter: () => press(nearest({ x, y }, Infinity)),
      }[key];
      if (!to) return false;
      whole = false;
      to();
      return true;
    }
    const press = ([layer, index]) => { if (index >= 0) onPoint?.(layer, index); };
    function nearest({ x, y }, pixels = NEAR) { // the mark, or else the image of the database, within so many pixels
      const best = (xs, ys, reach) => {
        let least = (reach * perPixel()) ** 2, found = -1;
        for (let n = 0; n < xs.length; n++) {
          const apart = (xs[n] - x) ** 2 + (ys[n] - y) ** 2;
          if (apart <= least) [least, found] = [apart, n];
        }
        return found;
      };
      const mark = best(now.marks.map((each) => each.x), now.marks.map((each) => each.y), NEAR);
      return mark >= 0 ? ["marks", mark] : ["database", best(now.database.x, now.database.y, pixels)];
    }
    const placed = (marks) => {
      const looks = marks.map(({ kind }) => SYMBOLS[kind]), paints = looks.map((each) => colours[each.colour]);
      const open = marks.map(({ kind }) => OPEN.includes(kind));
      return { x: marks.map(({ x }) => x), y: marks.map(({ y }) => y), marker: looks.map((each) => each.marker),
        size: looks.map((each) => each.size), colour: paints,
        edge: paints.map((each, n) => (open[n] ? each : colours.card)), width: open.map((each) => (each ? 2.5 : 0.8)) };
    };
    const joined = (lines) => ({
      ...Object.fromEntries(["x0", "y0", "x1", "y1"].map((key) => [key, lines.map((line) => line[key])])),
      colour: lines.map(({ kind }) => colours[SYMBOLS[kind].colour]),
    });
    let colours = {};
    function paint() {
      const names = new Set([...Object.values(SYMBOLS).map((each) => each.colour), "card", "ink"]);
      colours = Object.fromEntries([...names].map((name) => [name, colour(name)]));
      paintPlot(plot);
      model("database").glyph.fill_color = { value: dots ?? colours.dots };
      fill("marks", placed(now.marks));
      fill("lines", joined(now.lines));
      paintChosen();
    }
    function paintChosen() {
      const { chosen } = now, lined = chosen && Number.isFinite(chosen.x1);
      fill("link", joined(lined ? [{ x0: chosen.x, y0: chosen.y, ...chosen }] : []));
      const ring = { marker: "circle", size: 20, colour: "transparent", edge: colours.ink, width: 2.5 };
      const points = chosen ? [{ ...chosen, ...ring }] : [];
      if (lined) points.push({ x: chosen.x1, y: chosen.y1, ...ring, size: 12, edge: colours[SYMBOLS[chosen.kind].colour] });
      const keys = ["x", "y", "marker", "size", "colour", "edge", "width"];
      fill("chosen", Object.fromEntries(keys.map((key) => [key, points.map((each) => each[key])])));
    }

    const wheel = plot.toolbar.tools.find((tool) => tool.type === "WheelZoomTool");
    const turning = (on) => { if (wheel) wheel.active = on; }; // only when the map is in use does a wheel not move the page
    turning(false);
    for (const kind of ["pointerdown", "touchstart", "focusin"]) box.addEventListener(kind, () => turning(true), true);
    box.addEventListener("pointerleave", () => turning(box.contains(document.activeElement)));
    box.addEventListener("focusout", () => turning(false));
    frame.tabIndex = 0;
    frame.setAttribute("role", "application");
    frame.onkeydown = (event) => {
      if (!event.ctrlKey && !event.metaKey && !event.altKey && step(event.key)) event.preventDefault();
    };
    const moves = element("div", "moves");
    moves.setAttribute("role", "group");
    moves.setAttribute("aria-label", "Move the map");
    for (const [text, says, key] of MOVES) {
      const button = element("button", "control", text);
      button.type = "button";
      if (says) button.title = says, button.setAttribute("aria-label", says);
      button.onclick = () => step(key);
      moves.append(button);
    }
    const ruler = element("span", "ruler");
    moves.append(ruler);
    box.append(moves);
    const measure = () => { // the longest of 1, 2, 5, 10, ... metres that has room
      const most = (120 * perPixel()) / stretch, ten = 10 ** Math.floor(Math.log10(most));
      const metres = [5, 2, 1].map((factor) => factor * ten).find((each) => each <= most);
      ruler.style.width = `${(metres * stretch) / perPixel()}px`;
      ruler.textContent = metres < 1000 ? `${+metres.toPrecision(1)} m` : `${metres / 1000} km`;
    };
    plot.x_range.properties.end.change.connect(measure);

    for (const side of ["inner_width", "inner_height"]) {
      plot.properties[side].change.connect(() => (whole ? fit() : look(centre(), perPixel())));
    }
    plot.on_event("panstart", () => { whole = false; });
    plot.on_event("wheel", () => { if (wheel?.active) whole = false; });
    plot.on_event("pinchstart", () => { whole = false; });
    plot.on_event("tap", (event) => press(nearest(event)));
    plot.on_event("mousemove", (event) => {
      const [layer, index] = nearest(event);
      say(index >= 0 ? about(layer, index) : null, event);
    });
    paint();
    return {
      plot, paint, fit, step,
      pixel: ({ x, y }) => { // of the window, at which a point is drawn
        const { left, top } = frame.getBoundingClientRect(), { x_scale: across, y_scale: along } = view.frame;
        return [left + across.compute(x), top + along.compute(y)];
      },
      background: (columns) => { now.database = columns; fill("database", { x: columns.x, y: columns.y }); },
      marks: (marks) => { now.marks = marks; fill("marks", placed(marks)); },
      lines: (lines) => { now.lines = lines; fill("lines", joined(lines)); },
      choose: (chosen) => { now.chosen = chosen; paintChosen(); },
      show: (points) => { // all of them, and what lies around them
        let [west, south, east, north] = [Infinity, Infinity, -Infinity, -Infinity];
        for (const { x, y } of points) {
          [west, south, east, north] = [Math.min(west, x), Math.min(south, y), Math.max(east, x), Math.max(north, y)];
        }
        const margin = 0.05 * Math.max(east - west, north - south, 20);
        extent = [west - margin, south - margin, east + margin, north + margin];
        fit();
      },
      reveal: (points) => { // without zooming, if they can be seen so
        const outside = ({ x, y }) => x < plot.x_range.start || x > plot.x_range.end || y < plot.y_range.start || y > plot.y_range.end;
        if (points.some(outside)) look([points[0].x, points[0].y], perPixel());
      },
    };
  }

  /* Boxes that hide and show what a map has, and say what its symbols mean: [{kind, label, on}]; `changed(kind, on)`. */
  function legend(entries, changed) {
    const made = element("div", "legend");
    made.setAttribute("role", "group");
    made.setAttribute("aria-label", "What the map shows");
    for (const { kind, text, on = true } of entries) {
      const label = element("label", ""), input = element("input", "");
      Object.assign(input, { type: "checkbox", checked: on });
      input.onchange = () => changed(kind, input.checked);
      label.append(input, symbol(kind), text);
      made.append(label);
    }
    return made;
  }

  /* Recall curves in `box`: [{name, x, y in percent}], at most two, the newest first. */
  async function recallCurve(box, item, curves) {
    const { frame, plot, model, fill, say } = await embedded(box, item, "Recall@N, percent, against N");
    frame.setAttribute("role", "img");
    const looks = ["accent", "muted"], longest = Math.max(...curves.map(({ x }) => x.at(-1)));
    curves.forEach(({ x, y }, n) => fill(`curve${n}`, { x, y }));
    plot.x_range.setv({ start: Math.min(1, longest - 1), end: longest + 0.02 * longest });
    plot.y_range.setv({ start: 0, end: 103 });
    const point = (event) => {
      const at = curves.map(({ x }) => x.reduce((best, each, n) => (Math.abs(each - event.x) < Math.abs(x[best] - event.x) ? n : best), 0));
      fill("chosen", { x: curves.map(({ x }, n) => x[at[n]]), y: curves.map(({ y }, n) => y[at[n]]) });
      const line = ({ name, y }, n) => `${curves.length > 1 ? `${name}: ` : ""}${y[at[n]].toFixed(1)} %`;
      say([`Recall@${curves[0].x[at[0]]}`, ...curves.map(line)].join("\n"), event);
    };
    for (const kind of ["mousemove", "tap"]) plot.on_event(kind, point);
    plot.on_event("mouseleave", () => fill("chosen", { x: [], y: [] }));
    if (curves.length > 1) {
      const keys = element("div", "legend");
      curves.forEach(({ name }, n) => {
        const entry = element("span", "", `${n ? "╌╌ " : "── "}${name}`);
        entry.style.color = `var(--${looks[n]})`;
        keys.append(entry);
      });
      box.append(keys);
    }
    const paint = () => {
      paintPlot(plot);
      looks.forEach((name, n) => { model(`curve${n}`).glyph.line_color = { value: colour(name) }; });
      model("chosen").glyph.setv({ fill_color: { value: colour("ink") }, line_color: { value: colour("card") } });
    };
    paint();
    return { paint };
  }
  return { placeMap, recallCurve, legend, element };
})();
