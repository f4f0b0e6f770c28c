"""What a report says of a re-ranking: recalls and ranks before it, what it gained and lost."""

import json

import numpy as np
import pytest
from PIL import Image, ImageChops
from report_page import flags_of_a_test, images_of, names_of, outcomes_of_chance, read, reranked_by_chance, worst_first

import main
from pittsburgh import Places
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Hit, Outcome, recalls_before
from vpr.report import panels, plots


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (7, 1, "gained"),
        (None, 1, "gained"),
        (1, 2, "lost"),
        (1, None, "lost"),
        (1, 1, ""),
        (5, 2, ""),
        (None, None, ""),
    ],
)
def test_gained_and_lost_are_said_of_the_first_hit(before, after, change):
    assert Outcome(0, [], after, True, True, before).change == change
    assert Outcome(0, [], after, True).change == "", "without re-ranking nothing changes"


def test_recalls_before_count_all_queries():
    outcomes = [Outcome(n, [], 1, True, True, rank) for n, rank in enumerate([1, 1, 4, 20, None])]
    assert recalls_before(outcomes, [1, 3, 4, 20, 100]) == {1: 2 / 5, 3: 2 / 5, 4: 3 / 5, 20: 4 / 5, 100: 4 / 5}


def test_rows_have_the_rank_before_and_what_changed(page_of):
    outcomes = reranked_by_chance(outcomes_of_chance(40))
    rows = json.loads(page_of(outcomes, images_of(names_of(40))).texts["outcomes"])
    assert [row["query"] for row in rows] == [outcome.query for outcome in worst_first(outcomes)]
    for row in rows:
        assert row["before"] == outcomes[row["query"]].rank_before
        first = row["before"] == 1, row["rank"] == 1
        assert row["change"] == {(False, True): "gained", (True, False): "lost"}.get(first, "")
    assert {row["change"] for row in rows} == {"gained", "lost", ""}


def test_rows_without_reranking_say_nothing_of_it(page_of):
    page = page_of(outcomes_of_chance(5), images_of(names_of(5)))
    assert not [row for row in json.loads(page.texts["outcomes"]) if {"before", "change"} & set(row)]
    assert "before" not in page.texts


def test_tiles_have_both_recalls(page_of):
    page = page_of([], images_of([]), recalls={1: 0.75, 5: 1.0}, recalls_before={1: 0.4213, 5: 0.9})
    assert page.texts["dd"] == "75.0100.0"
    assert page.texts["before"] == "42.1 % before re-ranking90.0 % before re-ranking"


def test_a_panel_has_a_line_more_of_the_rank_before(tmp_path):
    """The line stands between the status and the name, in the query's cell only."""
    for name in ("d.png", "q.png"):
        Image.new("RGB", (40, 30), "grey").save(tmp_path / name)
    places = Places("somewhere_val", ["d.png"], ["q.png"], np.zeros((1, 2)), np.zeros((1, 2)), 25.0, 10.0)
    images = PlaceImages(places, "val", [tmp_path / "d.png"], [tmp_path / "q.png"])
    hits = [Hit(0, 0.0, 0.5, True)]
    plain = panels.panel(images, Outcome(0, hits, 1, True))
    seventh, none = (panels.panel(images, Outcome(0, hits, 1, True, True, rank)) for rank in (7, None))
    assert seventh.height == none.height == plain.height + panels.LINE
    cell = panels.CELL[0] + 2 * panels.FRAME
    left, top, right, bottom = ImageChops.difference(seventh, none).getbbox()
    line = panels.CELL[1] + 2 * panels.FRAME + panels.LINE  # the second one's top
    assert 0 < left < right <= cell and line <= top < bottom <= line + panels.LINE


def test_the_map_marks_what_was_gained_and_lost(tmp_path, figures):
    positions = np.array([(0.0, 0.0), (50.0, 80.0)])
    queries = np.array([(10.0 * n, 5.0 * n) for n in range(6)])
    names = [f"q{n}" for n in range(6)]
    places = Places("somewhere_val", ["d0", "d1"], names, positions, queries, 25.0, 10.0)
    ranks = [(1, 1), (7, 1), (1, 3), (None, None), (None, 1), (2, 5)]  # before, after
    hits = [Hit(1, 1.0, 0.5, False)]
    outcomes = [Outcome(n, hits, after, True, True, before) for n, (before, after) in enumerate(ranks)]
    plots.draw_changes(tmp_path / "map.png", places, outcomes, "title")
    (axes,) = figures[0].axes
    lines, database, *kinds = axes.collections
    assert database.get_offsets().tolist() == positions.tolist()
    shown = {kind.get_label(): kind.get_offsets().tolist() for kind in kinds}
    wanted = {"missed before and after": [3, 5], "found before and after": [0], "gained": [1, 4], "lost": [2]}
    assert len(shown) == len(wanted)
    for words, which in wanted.items():
        ((label, points),) = [(label, points) for label, points in shown.items() if words in label]
        assert points == queries[which].tolist() and label.endswith(f"({len(which)})")
    assert [line.tolist() for line in lines.get_segments()] == [[queries[2].tolist(), [50.0, 80.0]]]


def test_test_mode_shows_without_and_with(tiny_city, tmp_path, figures):
    more = ["--rerank=5", "--localDim=8", "--imageSize", "96", "128", "--panels=1"]
    assert main.main([*flags_of_a_test(tiny_city, tmp_path), *more]) == 0
    before, after = (each["recalls"] for each in json.loads((tmp_path / "results.json").read_text()))
    (folder,) = tmp_path.glob("test_val_*")
    page = read(folder / "report.html")
    assert page.texts["before"] == "".join(f"{100 * recall:.1f} % before re-ranking" for recall in before.values())
    assert page.texts["dd"] == "".join(f"{100 * recall:.1f}" for recall in after.values())
    curves = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in figures[0].axes[0].lines}
    (first,), (second,) = (
        [curve for label, curve in curves.items() if label.startswith(word)] for word in ("before", "re-")
    )
    for curve, recalls in ((first, before), (second, after)):
        assert [curve[int(n)] for n in recalls] == pytest.approx([100 * recall for recall in recalls.values()])
    (panel,) = (folder / "panels").iterdir()
    with Image.open(panel) as picture, Image.open(folder / "map_reranked.png") as map_picture:
        assert picture.height > 2 * panels.CELL[1] + 300 and map_picture.width > 700
