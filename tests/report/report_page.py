"""What the tests of the report share: outcomes of chance, and a reader of the page."""

import html.parser
import random
from dataclasses import replace

import numpy as np
from PIL import Image

from pittsburgh import Places
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Hit, Outcome
from vpr.report.html import ReportFigures

DATABASE = [f"{index % 3:03d}/{index:06d}.jpg" for index in range(40)]
HOSTILE = [
    "</script><b>bold</b>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='broken'\">.jpg",
    "{{panels}} & &amp; \"quoted\" 'too'",
    "not UTF-8 \udcff.jpg",
]


def images_of(query_names):
    places = Places("toy_test", DATABASE, query_names, np.zeros((40, 2)), np.zeros((len(query_names), 2)), 25, 10)
    return PlaceImages(places, "test", [], [])


def names_of(count):
    return [f"{index % 7:03d}/{index * 7919 % 100_003:06d}_query.jpg" for index in range(count)]


def reranked_by_chance(outcomes, seed=0):
    """The same outcomes after a re-ranking: where the first right hit was before is chance."""
    chance = random.Random(seed)
    return [replace(each, reranked=True, rank_before=chance.choice([each.rank, 1, 3, 30, None])) for each in outcomes]


def outcomes_of_chance(count, seed=0):
    """Every status; numbers with few digits, so that rounding is no question; some metres are not known."""
    chance = random.Random(seed)
    outcomes = []
    for query in range(count):
        rank = chance.choice([1, 1, 2, 4, 17, None, None])
        metres = [chance.choice([None, chance.randrange(1, 30000) / 10]) for _ in range(5)]
        distances = sorted(chance.randrange(2000) / 1000 for _ in range(5))
        hits = [Hit(chance.randrange(40), metres[n], distances[n], rank == n + 1) for n in range(5)]
        outcomes.append(Outcome(query, hits, rank, rank is not None or chance.random() < 0.5))
    if count:
        outcomes[-1] = Outcome(count - 1, [], None, True)  # nothing at all was found
    return outcomes


def figures_with(**changes):
    usual = {"title": "A test", "lines": [], "recalls": {1: 0.5}, "settings": {}, "pictures": [], "panels": {}}
    return ReportFigures(**{**usual, **changes})


def panels_in(folder, queries):
    folder.mkdir(parents=True, exist_ok=True)
    files = {query: folder / f"panel #{query} 100%.jpg" for query in queries}
    for query, file in files.items():
        Image.new("L", (9, 2), query).save(file, format="JPEG")
    return files


def flags_of_a_test(city, folder):
    """The words of a test of a model off the shelf on the toy city."""
    return [
        "--dataset=toy", f"--root={city}", "--arch=alexnet", "--fromscratch", "--pooling=avg", "--threads=0",
        "--device=cpu", "--mode=test", f"--runsPath={folder}",
    ]  # fmt: skip


class Page(html.parser.HTMLParser):
    """Elements with their attributes; the text of scripts and styles by id; the rows of the table of queries."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.rows, self._open = [], {}, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag in ("img", "meta", "link", "input"):
            return
        self._open.append((tag, attributes))
        if tag == "tr" and attributes.get("class") in ("row", "details"):
            self.rows.append((attributes["class"], []))
        if tag == "td" and self._in_row():
            self.rows[-1][1].append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for tag, attributes in self._open[-1:]:
            key = attributes.get("id") or attributes.get("class") or tag
            self.texts[key] = self.texts.get(key, "") + data
        if self._in_row() and any(tag == "td" for tag, _ in self._open):
            self.rows[-1][1][-1] += data

    def _in_row(self):
        return any(tag == "tr" and attributes.get("class") in ("row", "details") for tag, attributes in self._open)

    def with_id(self, name):
        return next(attributes for _, attributes in self.elements if attributes.get("id") == name)

    def cells(self):
        return [cells for kind, cells in self.rows if kind == "row"]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def metres_of(outcome):
    return outcome.hits[0].metres if outcome.hits else None


def worst_first(outcomes):
    """Misses that could be answered, other misses, late hits, first hits; each the farther off the worse."""
    kinds = [[], [], []]
    for outcome in outcomes:
        kinds[2 if outcome.rank else 0 if outcome.answerable else 1].append(outcome)
    for kind in kinds:
        kind.sort(key=lambda outcome: (-(outcome.rank or 0), -(metres_of(outcome) or 0)))
    return [outcome for kind in kinds for outcome in kind]
