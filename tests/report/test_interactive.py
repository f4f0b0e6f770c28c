"""The map and the curve of the report: what is handed to the page."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from report_page import HOSTILE, outcomes_of_chance, read

from pittsburgh import Places
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Hit, Outcome
from vpr.report import html as report
from vpr.report import interactive, write
from vpr.report.interactive import thinned


def images_at(database, queries, names=None):
    database, queries = (np.array(rows, float).reshape(-1, 2) for rows in (database, queries))
    names = names or [f"q{n}.jpg" for n in range(len(queries))]
    places = Places("somewhere_test", [f"d{n}.jpg" for n in range(len(database))], names, database, queries, 25.0, 10.0)
    return PlaceImages(places, "test", [], [])


def hits_at(*images):
    return [Hit(image, 1.0, 0.5, False) for image in images]


def data_of(page):
    return json.loads(page.texts["figure-data"])


def test_metres_are_from_the_corner_of_all():
    images = images_at(
        [(500_010.26, 4_000_300.5), (500_107.75, 4_000_200.0)], [(500_050.0, 4_000_001.25), (500_060, 4_000_400)]
    )
    outcomes = [Outcome(0, hits_at(1, 0), None, True), Outcome(1, [], None, False)]
    data = interactive.map_data(images.places, outcomes)
    assert (data["west"], data["south"], data["of"]) == (500_010.0, 4_000_001.0, 2)
    assert data["database"] == {"x": [0.3, 97.8], "y": [299.5, 199.0]}
    assert data["queries"] == {"x": [40.0, 50.0], "y": [0.2, 399.0]}
    assert data["hits"] == {"x": [97.8, None], "y": [199.0, None]}


def test_places_that_are_not_known_are_not_drawn():
    images = images_at([(np.nan, np.nan), (5, 6)], [(1, 2), (3, 4)])
    outcomes = [Outcome(0, hits_at(0), 1, True), Outcome(1, hits_at(1), 1, True)]
    data = interactive.map_data(images.places, outcomes)
    assert data["database"] == {"x": [4.0], "y": [4.0]} and data["of"] == 1
    assert data["hits"] == {"x": [None, 4.0], "y": [None, 4.0]}


def test_few_places_are_all_shown():
    np.testing.assert_array_equal(thinned(np.zeros((7, 2)), 7), range(7))
    assert len(thinned(np.empty((0, 2)))) == 0


def test_many_places_are_thinned_evenly():
    random = np.random.default_rng(0)
    crowd = random.normal(0, 5, (5000, 2))  # nine of ten images in one square of 10 m
    spread = random.uniform(-1000, 1000, (500, 2))
    places = np.concatenate([crowd, spread])
    rows = thinned(places, 400)
    assert 300 <= len(rows) <= 400 and (np.diff(rows) > 0).all()
    assert (rows >= 5000).sum() > 300  # a random choice would keep 36 of the spread ones
    # None is far from one that is shown: farther than the diagonal of the squares, by which 400 cover the area.
    apart = np.linalg.norm(spread[:, None] - places[rows][None], axis=2).min(axis=1)
    assert apart.max() < 250


def test_places_on_a_line_and_on_one_spot_are_thinned():
    line = np.stack([np.arange(1000.0), np.zeros(1000)], axis=1) + [585000, 4477000]
    rows = thinned(line, 100)
    assert 80 <= len(rows) <= 101 and np.ptp(np.diff(rows)) <= 2
    assert len(thinned(np.ones((1000, 2)), 100)) == 1


def test_a_hundred_thousand_images_are_thinned_and_the_page_says_so(page_of):
    images = images_at(np.stack([np.arange(100_000), np.zeros(100_000)], 1), [(0, 0), (9, 9)])
    outcomes = [Outcome(0, hits_at(3), 1, True), Outcome(1, hits_at(99_999), 4, True)]
    page = page_of(outcomes, images, map=interactive.map_data(images.places, outcomes))
    drawn = data_of(page)["map"]["database"]["x"]
    assert 18_000 <= len(drawn) <= 20_000 and drawn[0] == 0 and 5 <= np.diff(drawn).min() <= np.diff(drawn).max() <= 6
    assert data_of(page)["map"]["hits"]["x"] == [3.0, 99_999.0], "hits lie where they lie, drawn or not"
    words = page.texts["map-words"]
    assert f"100,000 database images, of which {len(drawn):,} are drawn" in words
    assert "2 queries: 1 found at 1, 1 found at a later rank, 0 missed" in words


def test_curves_are_in_percent_and_a_table_has_them(page_of):
    curves = {"before": {1: 0.25, 2: 0.5}, "after </script>": {1: 0.5, 2: 1.0}}
    page = page_of([], images_at([(0, 0)], []), curve=interactive.curve_data(curves))
    assert data_of(page)["curve"] == [
        {"name": "after </script>", "x": [1, 2], "y": [50.0, 100.0]},
        {"name": "before", "x": [1, 2], "y": [25.0, 50.0]},
    ]
    assert page.texts["th"].startswith("Nafter </script>before12") and page.texts["td"].startswith("50.025.0100.050.0")


def test_hostile_names_end_no_script(page_of):
    images = images_at([(0, 0)], [(n, n) for n in range(len(HOSTILE))], HOSTILE)
    outcomes = [Outcome(query, hits_at(0), None, True) for query in range(len(HOSTILE))]
    curves = {name: {1: 0.5} for name in HOSTILE[:2]}
    page = page_of(
        outcomes, images, map=interactive.map_data(images.places, outcomes), curve=interactive.curve_data(curves)
    )
    assert [row["name"] for row in json.loads(page.texts["outcomes"])] == HOSTILE
    assert [curve["name"] for curve in data_of(page)["curve"]] == HOSTILE[1::-1]
    assert not {"b", "img"} & {tag for tag, _ in page.elements}


def test_page_needs_no_eval_and_no_network(page_of):
    images = images_at([(0, 0)], [(1, 1)])
    outcomes = [Outcome(0, hits_at(0), 1, True)]
    page = page_of(
        outcomes, images, map=interactive.map_data(images.places, outcomes), curve=[{"name": "", "x": [1], "y": [1.0]}]
    )
    policy = next(attributes for tag, attributes in page.elements if "http-equiv" in attributes)["content"]
    assert "unsafe-eval" not in policy and "http" not in policy and "connect-src" not in policy
    assert not [attributes for tag, attributes in page.elements if tag == "script" and "src" in attributes]
    own = [report.SCRIPT, interactive.FIGURES, interactive.STYLE]
    words = ("http:", "https:", "url(", "@import", "fetch(", "import(", "innerHTML", "eval(", "CustomJS")
    allowed = "http://www.w3.org/2000/svg"  # a name, not an address
    texts = {file: file.read_text(encoding="utf-8").replace(allowed, "") for file in own}
    assert not [(file, word) for file, text in texts.items() for word in words if word in text]


def test_figures_have_the_sources_that_the_script_fills():
    columns = {}
    for figure in (interactive.map_figure(), interactive.curve_figure()):
        for source in _models(figure, "ColumnDataSource"):
            entries = source["attributes"]["data"]["entries"]
            columns[source["attributes"]["name"]] = dict(entries)
    marks = {"x", "y", "marker", "size", "colour", "edge", "width"}
    wanted = {"database": {"x", "y"}, "marks": marks, "lines": {"x0", "y0", "x1", "y1", "colour"}, "curve1": {"x", "y"}}
    for name, keys in wanted.items():
        assert set(columns[f"{name}_data"]) == keys
        assert all(len(values) == 0 for values in columns[f"{name}_data"].values())


def test_street_tiles_come_from_where_they_are_told_only():
    assert not _models(interactive.map_figure(), "WMTSTileSource")
    (source,) = _models(interactive.map_figure("https://tiles.example/{Z}/{X}/{Y}.png"), "WMTSTileSource")
    assert source["attributes"]["url"] == "https://tiles.example/{Z}/{X}/{Y}.png"


def _models(part, name):
    """All models of a name within a figure's JSON."""
    below = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    found = [model for each in below for model in _models(each, name)]
    return found + ([part] if isinstance(part, dict) and part.get("name") == name and "attributes" in part else [])


@pytest.mark.parametrize("bokeh", [True, False])
def test_pictures_take_the_place_of_what_bokeh_would_draw(tmp_path, monkeypatch, capsys, bokeh):
    if not bokeh:
        monkeypatch.setattr(write, "bokeh_script", lambda: None)
    evaluation = SimpleNamespace(
        spec="a", split="test", queries=6, model="b", recalls={1: 0.5}, lines=lambda: "measured\nR@1: 50.0"
    )
    answers = SimpleNamespace(outcomes=outcomes_of_chance(6), curve={1: 0.5, 2: 0.75})
    images = images_at([(n, 0) for n in range(40)], [(n, n) for n in range(6)])
    write.write_pictures(tmp_path, evaluation, answers, images, {}, panels=0)
    assert (tmp_path / "recall.png").is_file() and (tmp_path / "map.png").is_file()
    page = read(tmp_path / "report.html")
    captions = page.texts.get("figcaption", "")
    assert captions == ("" if bokeh else "Recall@NWhere queries were found and missed")
    assert ("figure-data" in page.texts) == bokeh and page.texts["p"].startswith("measured")
    if bokeh:
        assert len(data_of(page)["map"]["queries"]["x"]) == 6 and data_of(page)["curve"][0]["y"] == [50.0, 75.0]
    assert ("python -m pip install bokeh" in capsys.readouterr().out) == (not bokeh)
