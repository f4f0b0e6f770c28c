"""The HTML report of a test: what is inside the page."""

import base64
import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from report_page import (
    DATABASE,
    HOSTILE,
    figures_with,
    images_of,
    names_of,
    outcomes_of_chance,
    panels_in,
    read,
    worst_first,
)

from vpr.common.errors import UserError
from vpr.evaluation.outcomes import Hit, Outcome
from vpr.report import html as report
from vpr.report.html import write_report


def outcomes_in(page):
    return [
        Outcome(
            row["query"],
            [Hit(hit["image"], hit["metres"], hit["distance"], hit["right"]) for hit in row["hits"]],
            row["rank"],
            row["answerable"],
        )
        for row in json.loads(page.texts["outcomes"])
    ]


def test_data_in_the_page_are_the_outcomes_the_worst_first(page_of):
    outcomes, names = outcomes_of_chance(60), names_of(60)
    page = page_of(outcomes, images_of(names))
    assert outcomes_in(page) == worst_first(outcomes)
    for row in json.loads(page.texts["outcomes"]):
        assert row["name"] == names[row["query"]]
        assert [hit["name"] for hit in row["hits"]] == [DATABASE[hit["image"]] for hit in row["hits"]]


def test_metres_that_are_not_a_number_are_not_known(page_of):
    outcome = Outcome(0, [Hit(3, float("nan"), np.float32(0.5), np.True_)], 1, True)
    assert outcomes_in(page_of([outcome], images_of(["q.jpg"]))) == [Outcome(0, [Hit(3, None, 0.5, True)], 1, True)]


@pytest.mark.parametrize(
    ("rank", "answerable", "words"),
    [
        (1, True, "found at 1"),
        (7, True, "found at rank 7"),
        (None, True, "missed"),
        (None, False, "nothing within reach"),
    ],
)
def test_status_in_words(rank, answerable, words):
    assert Outcome(0, [], rank, answerable).status == words


def test_page_asks_for_nothing_from_elsewhere(tmp_path, page_of):
    picture = tmp_path / "recall.png"
    Image.new("L", (3, 3)).save(picture)
    panels = panels_in(tmp_path, [0, 1])
    page = page_of(outcomes_of_chance(5), images_of(names_of(5)), pictures=[("Recall", picture)], panels=panels)
    addresses = [
        value
        for _, attributes in page.elements
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "data", "action")
    ]
    assert f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}" in addresses
    assert [address for address in addresses if not address.startswith("data:")] == []
    template = report.TEMPLATE.read_text(encoding="utf-8")
    assert not [word for word in ("http:", "https:", "url(", "@import", "fetch(", "import(") if word in template]
    policy = next(attributes for tag, attributes in page.elements if "http-equiv" in attributes)["content"]
    assert "default-src 'none'" in policy


def test_hostile_names_stay_text(page_of):
    outcomes = [Outcome(query, [], None, True) for query in range(len(HOSTILE))]
    page = page_of(
        outcomes, images_of(HOSTILE), title=HOSTILE[0], lines=HOSTILE, settings={text: text for text in HOSTILE}
    )
    assert not {"b", "img"} & {tag for tag, _ in page.elements}
    assert [row["name"] for row in json.loads(page.texts["outcomes"])] == HOSTILE
    assert page.texts["h1"] == HOSTILE[0]
    for text in HOSTILE[:-1]:
        assert text in page.texts["p"] and text in page.texts["td"]


def test_only_the_worst_panels_are_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_EMBEDDED", 3)
    outcomes = outcomes_of_chance(12)
    panels = panels_in(tmp_path / "panels", [1, 2, 4, 6, 9])
    path = tmp_path / "deep" / "report.html"
    write_report(path, outcomes, images_of(names_of(12)), figures_with(panels=panels))
    page = read(path)
    in_order = [outcome.query for outcome in worst_first(outcomes) if outcome.query in panels]
    inside = {key: text for key, text in page.texts.items() if key.startswith("panel-")}
    assert {key: base64.b64decode(text) for key, text in inside.items()} == {
        f"panel-{query}": panels[query].read_bytes() for query in in_order[:3]
    }
    beside = {row["query"]: row["panel"] for row in json.loads(page.texts["outcomes"]) if row["panel"]}
    assert set(beside) == set(in_order[3:])
    for query, address in beside.items():
        assert (path.parent / unquote(address)).read_bytes() == panels[query].read_bytes()
        assert not set(address) & set(" #?%:") - {"%"}
    assert "worst 3 queries" in page.texts["note"] and "2 more" in page.texts["note"]


def test_no_queries(page_of):
    page = page_of([], images_of([]), recalls={1: float("nan")})
    assert json.loads(page.texts["outcomes"]) == []
    assert page.texts["dd"] == "–"


def test_recalls_in_percent(page_of):
    page = page_of([], images_of([]), recalls={1: 0.4213, 10: 1.0})
    assert (page.texts["dt"], page.texts["dd"]) == ("R@1R@10", "42.1100.0")


def test_failing_disk_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("the old page")

    def half(self, text, **_):
        self.write_bytes(text.encode()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(UserError, match="No space left"):
        write_report(path, outcomes_of_chance(3), images_of(names_of(3)), figures_with())
    assert path.read_text() == "the old page"
    assert list(tmp_path.iterdir()) == [path]


def test_lost_panel_is_named_and_nothing_is_written(tmp_path):
    figures = figures_with(panels={0: tmp_path / "lost.jpg"})
    with pytest.raises(UserError, match=r"lost\.jpg"):
        write_report(tmp_path / "report.html", outcomes_of_chance(3), images_of(names_of(3)), figures)
    assert list(tmp_path.iterdir()) == []
