"""The server's page: what it is made of, and what it does in Chromium with a server that answers by its contract."""

import html
import html.parser
import json
import re

import pytest
from stub_server import DEGREES, NAMES, POSITIONS, answer, stub_server

from vpr.common.errors import UserError
from vpr.report import interactive
from vpr.retrieval.answer_features import LIMITED
from vpr.serve import page

TILES = page.Tiles("https://tiles.example:8443/{z}/{x}/{y}.png?style=a&b", "<b>someone</b>", "")


class Elements(html.parser.HTMLParser):
    """Elements with their attributes, and the texts of scripts by id."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._id = [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._id = dict(attributes).get("id")

    def handle_data(self, data):
        self.texts[self._id] = self.texts.get(self._id, "") + data


def policy_of(headers):
    parts = [part.split() for part in headers["content-security-policy"].split("; ")]
    return {name: values for name, *values in parts}


def test_page_loads_only_what_it_has_itself():
    elements = Elements(page.page_html()).elements
    loaded = [each["src"] for tag, each in elements if tag == "script" and "src" in each]
    loaded += [each["href"] for tag, each in elements if tag == "link" and each["rel"] == "stylesheet"]
    assert len(loaded) == 7
    for address in loaded:
        kind, content = page.asset(address.removeprefix("assets/"))
        assert kind.startswith("text/javascript" if address.endswith(".js") else "text/css") and len(content) > 500
    assert not [each for tag, each in elements if any(name.startswith("on") for name in each)], (
        "no handlers in the page"
    )
    own = [file for name, (_, file) in page.ASSETS.items()] + [page.TEMPLATE]
    words = ("http:", "https:", "url(", "@import", "import(", "innerHTML", "outerHTML", "eval(", "localStorage")
    texts = {file.name: file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "") for file in own}
    assert not [(name, word) for name, text in texts.items() for word in words if word in text]


@pytest.mark.parametrize("name", ["", "page.py", "../page.py", "..%2fpage.py", "/etc/passwd", "page.html", "a/b"])
def test_nothing_else_is_an_asset(name):
    assert page.asset(name) is None


def test_policy_lets_no_other_script_and_no_other_host_in():
    plain, tiled = policy_of(page.page_headers()), policy_of(page.page_headers(TILES))
    assert plain["default-src"] == ["'none'"] and plain["script-src"] == plain["connect-src"] == ["'self'"]
    assert plain["img-src"] == ["'self'", "data:", "blob:"]
    assert tiled["img-src"] == [*plain["img-src"], "https://tiles.example:8443"]
    assert {**tiled, "img-src": None} == {**plain, "img-src": None}
    assert page.page_headers()["referrer-policy"] == "no-referrer"


def test_tiles_are_in_the_page_only_when_they_are_wanted():
    def data(tiles):
        return json.loads(Elements(page.page_html(tiles)).texts["page-data"])

    plain, tiled = data(None), data(TILES)
    assert plain["tiles"] is None and plain["tiled_figure"] is None and "WMTS" not in json.dumps(plain)
    assert tiled["tiles"]["attribution"] == "<b>someone</b>"
    assert "https://tiles.example:8443/{Z}/{X}/{Y}.png?style=a&b" in json.dumps(tiled["tiled_figure"])


def test_known_tiles_and_addresses():
    assert page.street_tiles("osm") == page.KNOWN_TILES["osm"]
    assert page.street_tiles("http://localhost:81/{z}/{y}/{x}").origin == "http://localhost:81"
    bad = [
        "moon", "https://host/tiles.png", "https://{x}/{y}/{z}", "ftp://host/{z}/{x}/{y}", "//host/{z}/{x}/{y}",
        "https://user@host/{z}/{x}/{y}", "https://host;script-src/{z}/{x}/{y}", "https://a b/{z}/{x}/{y}",
        "https://host/{z}/{x}/{y}\n", "https:///{z}/{x}/{y}", "https://host/{z}/{x}/{y}/{z}",
    ]  # fmt: skip
    for text in bad:
        with pytest.raises(UserError, match="names no street tiles: wanted osm, or an address"):
            page.street_tiles(text)


def test_without_bokeh_there_is_a_page_without_a_map(monkeypatch):
    monkeypatch.setattr(interactive, "bokeh_script", lambda: None)
    assert json.loads(Elements(page.page_html()).texts["page-data"])["figure"] is None
    assert page.asset("bokeh.min.js") is None


FRAMES = """<!DOCTYPE html><body><p></p>
<iframe src="{wide}" style="width:1280px;height:900px;border:0" allow="clipboard-write"></iframe>
<iframe src="{narrow}" style="width:360px;height:740px;border:0"></iframe>
<script>const all = [], p = document.querySelector("p");
onmessage = ({{ data }}) => {{ all.push(data); if (all.length === 2) p.textContent = JSON.stringify(all); }};
</script></body>"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Nothing yet: filled by the first test that drives the browser, since each start of it takes seconds."""
    return {}


@pytest.fixture
def driven(browse, told):
    """What a user of the wide page by mouse and one of the narrow page by keys saw, and what the servers were asked."""
    if not told:
        answers = [
            (503, {"error": "busy"}), (200, answer([5, 6, 3])),
            (200, answer([2, 1], refused=True, confidence=None, confidence_kind=LIMITED, agreement=None)),
            (413, {"error": "an image of <b>20 MB</b> at most is wanted"}),
        ]  # fmt: skip
        with (
            stub_server([(200, answer([5, 6]))], token="a token of the test") as narrow,
            stub_server(answers) as wide,
        ):
            wide.frames = FRAMES.format(wide=wide.address, narrow=narrow.address)
            dom = browse(f"{wide.address}frames", seconds=20)
        seen = json.loads(html.unescape(re.search(r"<p>(.*?)</p>", dom, re.S)[1]))
        told.update({("wide" if each["wide"] else "narrow"): each for each in seen})
        told.update(asked=wide.asked, asked_narrow=narrow.asked)
    return told


@pytest.mark.slow
def test_by_mouse_on_a_wide_page(driven):
    seen, asked = driven["wide"], driven["asked"]
    assert seen["violations"] == []
    west, south = POSITIONS[0]
    assert seen["drawn"] == {"x": [x - west for x, _ in POSITIONS], "y": [y - south for _, y in POSITIONS]}
    assert seen["answer"]["heading"] == "<b>query</b>.jpg" and seen["answer"]["lines"] == 8
    assert seen["answer"]["sure"] == "right with a probability of 93 %"
    latitude, longitude = DEGREES[5]
    assert f"{latitude:.6f}, {longitude:.6f}" in seen["answer"]["place"]
    assert f"first match {NAMES[5]}" in seen["status"]
    assert set(zip(seen["marks"]["x"], seen["marks"]["y"], strict=True)) == {
        (POSITIONS[n][0] - west, POSITIONS[n][1] - south) for n in (5, 6, 3)
    }
    assert seen["picked"] == {"name": NAMES[3], "tip": NAMES[3], "ring": [120.0, 0.0]}
    assert seen["again"] == f"<b>query</b>.jpg, within 60 m of {NAMES[3]}"
    words = "I don't know this place (score unknown)"
    assert seen["refused"] == [words, f"<b>query</b>.jpg, within 60 m of {NAMES[3]}: {words}."], "and no first match"
    assert seen["error"] == "an image of <b>20 MB</b> at most is wanted"
    assert seen["scheme"] == "dark"
    latitude, longitude = DEGREES[3]
    assert [each.get("near") for each in asked] == [None, None, [f"{latitude},{longitude},60"], None]
    assert all(each["agreement"] == ["true"] and each["top"] == ["5"] for each in asked)
    assert {each["type"] for each in asked} == {"image/jpeg"} and len({each["bytes"] for each in asked}) == 1


@pytest.mark.slow
def test_by_keys_on_a_narrow_page_with_a_token(driven):
    seen = driven["narrow"]
    assert "error" not in seen and seen["violations"] == []
    assert seen["asked"] == "The server does not take this token."
    assert seen["images"] == ["blob:", "blob:"], "fetched with the token"
    assert [each["bytes"] > 100 for each in driven["asked_narrow"]] == [True]
    assert seen["second"] == NAMES[6]
    breadth = [end - start for start, end in (seen["before"], seen["zoomed"])]
    assert breadth[1] == pytest.approx(breadth[0] / 1.5)
    assert seen["picked"] == NAMES[0]
    assert seen["unnamed"] == [] and seen["focusable"] > 15
    needed, there = seen["wideness"]
    assert needed <= there <= 360
