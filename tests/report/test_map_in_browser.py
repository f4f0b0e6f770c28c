"""The report's map and curve in Chromium: pressed, moved by mouse, buttons and keys, and what they say of it."""

import json

import numpy as np
import pytest
from report_page import HOSTILE, figures_with

from pittsburgh import Places
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Hit, Outcome
from vpr.report.html import write_report
from vpr.report.interactive import curve_data, map_data

DATABASE = [(1000.0 + 40 * n, 2000.0 + 30 * (n % 2)) for n in range(10)]
QUERIES = [(1005.0 + 40 * n, 2120.0) for n in range(5)]
CURVES = {"before <b>": {1: 0.2, 2: 0.4, 3: 0.6}, "after": {1: 0.4, 2: 0.6, 3: 0.8}}
# All in one page: starting the browser takes longer than the rest together.
SCRIPT = """
const told = { violations }, wait = (ready) => new Promise((done) => {
  const timer = setInterval(() => { if (ready()) { clearInterval(timer); done(); } }, 10);
});
function pierced(x, y) { // the element under the pointer, whatever shadow it is in
  let found = document.elementFromPoint(x, y);
  while (found.shadowRoot?.elementFromPoint(x, y)) found = found.shadowRoot.elementFromPoint(x, y);
  return found;
}
function point(kind, [clientX, clientY], target = pierced(clientX, clientY)) {
  const looks = { clientX, clientY, bubbles: true, composed: true, cancelable: true, pointerId: 1, view: window };
  const buttons = kind === "pointerup" ? 0 : 1;
  target.dispatchEvent(new PointerEvent(kind, { ...looks, button: 0, buttons, pointerType: "mouse", isPrimary: true }));
  return target;
}
const data = (name) => map.plot.document.get_model_by_name(`${name}_data`).data;
const view = () => [map.plot.x_range.start, map.plot.x_range.end, map.plot.y_range.start, map.plot.y_range.end];
const press = (at) => point("pointerup", at, point("pointerdown", at));
const said = () => document.querySelector("#map .tip").textContent;
(async () => {
  await wait(() => drawn.length === 2 && map.plot.inner_width > 100);
  HTMLElement.prototype.setPointerCapture = () => {}; // of a pointer that is not there
  told.first = view();
  told.inner = [map.plot.inner_width, map.plot.inner_height];
  told.marks = data("marks").x.length;
  byId("map").scrollIntoView();
  const mark = (query) => map.pixel({ x: 10 * query + 5 + 30 * query, y: 120 });
  point("pointermove", mark(0));
  told.said = said();
  press(mark(1));
  await wait(() => chosen);
  told.pressed = { row: document.activeElement.closest("tr").dataset.query, link: data("link") };
  const row = document.querySelector('tr.row[data-query="3"]');
  row.querySelector("button").click();
  told.opened = { link: data("link"), current: [...all("[aria-current=true]")].map((tr) => tr.dataset.query) };
  byId("map").scrollIntoView();
  const before = view();
  document.querySelector('[aria-label="Zoom in"]').click();
  told.zoomed = [before, view()];
  byId("map").firstChild.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  told.moved = view();
  const [x, y] = map.pixel({ x: (told.moved[0] + told.moved[1]) / 2, y: (told.moved[2] + told.moved[3]) / 2 });
  const target = point("pointerdown", [x, y]);
  for (let n = 1; n <= 10; n++) point("pointermove", [x + 6 * n, y - 3 * n], target);
  point("pointerup", [x + 60, y - 30], target);
  told.dragged = view();
  [...all("#map .moves button")].at(-1).click();
  told.last = view();
  document.querySelector("#map .legend input").click();
  told.hidden = data("marks").x.length;
  const paper = map.plot.background_fill_color;
  byId("scheme").click();
  told.paper = [paper, map.plot.background_fill_color];
  told.bold = all("b").length;
  document.title = JSON.stringify(told);
})().catch((error) => { document.title = JSON.stringify({ error: error.stack }); });
"""


@pytest.fixture
def told(show, tmp_path):
    """What the page says of all that was done to it."""
    names = [f"d{n}.jpg" for n in range(10)]
    places = Places("a_test", names, [*HOSTILE[:4], "q.jpg"], np.array(DATABASE), np.array(QUERIES), 25.0, 10.0)
    ranks = [1, 2, None, None, 1]
    outcomes = [
        Outcome(query, [Hit(2 * query, 3.0, 0.5, rank == 1)], rank, query != 3) for query, rank in enumerate(ranks)
    ]
    figures = figures_with(map=map_data(places, outcomes), curve=curve_data(CURVES))
    path = tmp_path / "report.html"
    write_report(path, outcomes, PlaceImages(places, "test", [], []), figures)
    listen = """<body><script>const violations = [];
        addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));</script>"""
    path.write_text(path.read_text(encoding="utf-8").replace("<body>", listen, 1), encoding="utf-8")
    return json.loads(show(path, "#scheme=light", SCRIPT).texts["title"])


def metres_per_pixel(view, inner):
    return (view[1] - view[0]) / inner[0], (view[3] - view[2]) / inner[1]


def test_map_answers_to_mouse_buttons_and_keys(told):
    assert "error" not in told, told
    assert told["violations"] == []
    assert told["marks"] == 5 and told["hidden"] == 3, "those found at 1 are hidden"
    for view in (told["first"], told["moved"], told["last"]):
        across, along = metres_per_pixel(view, told["inner"])
        assert across == pytest.approx(along)
    west, east, south, north = told["first"]
    assert west < 0 and east > 360 and south < 0 and north > 120, "all is in sight"
    assert told["said"] == f"Query 1: found at 1\n{HOSTILE[0]}"
    assert told["pressed"]["row"] == "1"
    link = {key: told["pressed"]["link"][key] for key in ("x0", "y0", "x1", "y1")}
    assert link == {"x0": [45], "y0": [120], "x1": [80], "y1": [0]}
    link = {key: told["opened"]["link"][key] for key in ("x0", "y0", "x1", "y1")}
    assert link == {"x0": [125], "y0": [120], "x1": [240], "y1": [0]} and told["opened"]["current"] == ["3"]
    before, after = told["zoomed"]
    assert after[1] - after[0] == pytest.approx((before[1] - before[0]) / 1.5)
    assert sum(after[:2]) == pytest.approx(sum(before[:2])) and sum(after[2:]) == pytest.approx(sum(before[2:]))
    quarter = (after[1] - after[0]) / 4
    assert told["moved"] == pytest.approx([after[0] + quarter, after[1] + quarter, after[2], after[3]])
    metres, _ = metres_per_pixel(told["moved"], told["inner"])
    dragged = [told["moved"][0] - 60 * metres, told["moved"][1] - 60 * metres]
    assert told["dragged"][:2] == pytest.approx(dragged)
    assert told["dragged"][2:] == pytest.approx([value - 30 * metres for value in told["moved"][2:]])
    assert told["last"] == pytest.approx(told["first"])
    assert told["paper"][0] != told["paper"][1]
    assert told["bold"] == 0
