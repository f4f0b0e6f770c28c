"""The report page: what stands in it, and what a browser makes of it."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from pittsburgh import Places
from vpr import report
from vpr.errors import UserError
from vpr.outcomes import Hit, Outcome
from vpr.places import PlacePhotos

HOSTILE = '</script><b onclick="x()">&amp;.jpg'


def photos_of(count):
    names = [[f"{kind}/{n}.jpg" for n in range(count)] for kind in ("database", "queries")]
    if count:
        names[1][0] = HOSTILE
    return PlacePhotos(
        Places("somewhere_val", *names, np.zeros((count, 2)), np.zeros((count, 2)), 25, 10), "val", [], []
    )


def outcomes_of(count, seed=0):
    random = np.random.default_rng(seed)
    outcomes = []
    for query in range(count):
        rank = random.choice([None, 1, 1, 7])
        hit = Hit(int(random.integers(count)), float(random.integers(0, 5000)), float(random.random()), rank == 1)
        outcomes.append(Outcome(query, [hit] if query != 3 else [], rank if query != 3 else None, True))
    return outcomes


@pytest.fixture
def write(tmp_path):
    """Writes a report of so many random outcomes with so many panels; gives its path and the outcomes."""

    def call(count, panels=0):
        outcomes = outcomes_of(count)
        (tmp_path / "panels").mkdir(exist_ok=True)
        files = {query: tmp_path / "panels" / f"{query}.jpg" for query in range(panels)}
        for file in [*files.values(), tmp_path / "map.png"]:
            Image.new("RGB", (90, 20), "red").save(file)
        figures = report.ReportFigures(
            "somewhere & elsewhere",
            ["a line <b>"],
            {1: 0.5, 5: 0.75},
            {"seed": 3},
            [("map", tmp_path / "map.png")],
            files,
        )  # fmt: skip
        report.write_report(tmp_path / "report.html", outcomes, photos_of(count), figures)
        return tmp_path / "report.html", outcomes

    return call


class Links(html.parser.HTMLParser):
    """Collects what a page refers to, and its tags."""

    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.mark.parametrize("count", [0, 5, 40])
def test_page_holds_every_query_and_needs_nothing_else(write, count):
    path, outcomes = write(count, panels=min(count, 2))
    text = path.read_text(encoding="utf-8")
    page = Links()
    page.feed(text)
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text) and "b" not in page.tags[page.tags.index("h2") :]
    assert "somewhere &amp; elsewhere" in text and "a line &lt;b&gt;" in text and "@@" not in text
    rows = {row["query"]: row for row in data_of(text)}
    assert len(rows) == count
    for outcome in outcomes:
        row, first = rows[outcome.query + 1], outcome.hits[0] if outcome.hits else None
        assert row["rank"] == outcome.rank and row["name"] == photos_of(count).places.query_names[outcome.query]
        assert row["metres"] == (first and first.metres) and row["distance"] == (first and first.distance)
        assert row["hit"] == (first and f"database/{first.photo}.jpg")
        assert (row["panel"] is not None) == (outcome.query < 2)


def test_panels_beyond_the_limit_are_read_from_beside_the_page(write, monkeypatch):
    monkeypatch.setattr(report, "MOST_EMBEDDED", 2)
    path, outcomes = write(6, panels=5)
    panels = [row["panel"] for row in data_of(path.read_text(encoding="utf-8")) if row["panel"]]
    assert [panel.startswith("data:image/jpeg") for panel in panels] == [True, True, False, False, False]
    assert all((path.parent / panel).is_file() for panel in panels[2:])
    worst = [outcome.query for outcome in sorted(outcomes, key=lambda outcome: outcome.badness) if outcome.query < 5]
    assert panels[2:] == [f"panels/{query}.jpg" for query in worst[2:]]


def test_page_is_written_whole_or_not_at_all(write, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(UserError, match="No space"):
        write(5)
    assert not (tmp_path / "report.html").exists() and not list(tmp_path.glob(".*part"))


def shown(path, fragment):
    """The rows that a browser shows: query number and words, and the whole page."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("Chromium is not installed")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom",
        f"file://{path}#{fragment}",
    ]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return [int(number) for number in re.findall(r'<tr data-query="(\d+)"', page)], page


@pytest.mark.parametrize("count", [0, 5, 5000])
def test_a_browser_shows_sorts_and_filters(write, count):
    path, outcomes = write(count)
    numbers, page = shown(path, "filter=missed&sort=metres&order=down")
    missed = [outcome for outcome in outcomes if outcome.rank != 1]
    farthest = sorted(missed, key=lambda outcome: -outcome.hits[0].metres if outcome.hits else np.inf)
    metres = [outcomes[number - 1].hits[0].metres if outcomes[number - 1].hits else None for number in numbers]
    assert metres == [outcome.hits[0].metres if outcome.hits else None for outcome in farthest[:200]]
    if not count:
        assert '<p id="none">There are no queries.' in page and '<div id="queries" hidden' in page
        return
    assert f"{len(missed)} of {count} queries, page 1 of" in page
    numbers, _ = shown(path, "page=2")
    worst = [outcome.query + 1 for outcome in sorted(outcomes, key=lambda outcome: outcome.badness)]
    assert numbers == (worst[200:400] if count > 200 else worst), "a page that is not there is the last one"


def test_a_browser_shows_hostile_names_as_text(write):
    path, _ = write(5, panels=1)
    numbers, page = shown(path, "search=%3C%2Fscript")
    assert numbers == [1] and "&lt;/script&gt;&lt;b onclick" in page and "<b onclick" not in page
