"""What a test shows: outcomes of queries, panels, the map, the recall curve."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor, ImageFont
from report_page import flags_of_a_test

import main
from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import Hit, Outcome, outcomes_of
from vpr.modes.test import all_of
from vpr.report import panels, plots
from vpr.search.exact import descriptor_distances

SMALL = ["--imageSize", "48", "64"]


def places_of(database, queries):
    names = [[f"{kind}{n}.png" for n in range(len(rows))] for kind, rows in (("d", database), ("q", queries))]
    positions = [np.reshape(np.array(rows, float), (-1, 2)) for rows in (database, queries)]
    return Places("somewhere_val", *names, *positions, 25.0, 10.0)


def outcome(query, rank, answerable=True, metres=1.0, hits=2):
    return Outcome(query, [Hit(n, metres, 0.5, rank == n + 1) for n in range(hits)], rank, answerable)


def test_outcomes_say_where_the_first_right_hit_is_and_how_far_off_hits_are():
    places = places_of([(0, 0), (3, 4), (100, 0)], [(0, 0), (100, 0), (500, 0)])
    found = np.array([[2, 1, 0], [2, 0, 1], [0, 1, -1]])
    positives = [np.array([0, 1]), np.array([2]), np.array([], int)]
    late, first, nothing = outcomes_of(found, np.full((3, 5), 0.25), positives, places)
    assert [hit.metres for hit in late.hits] == [100.0, 5.0, 0.0] and [hit.right for hit in late.hits] == [0, 1, 1]
    assert (late.rank, first.rank, nothing.rank) == (2, 1, None)
    assert late.answerable and not nothing.answerable
    assert [hit.image for hit in nothing.hits] == [0, 1], "-1 is no hit"
    assert first.hits[0].distance == 0.25


def test_the_worst_come_first():
    ordered = [
        outcome(4, None, metres=900.0), outcome(1, None, metres=30.0), outcome(5, None, answerable=False, metres=9e9),
        outcome(2, 60), outcome(0, 2, metres=50.0), outcome(3, 2, metres=40.0), outcome(6, 1),
    ]  # fmt: skip
    shuffled = [ordered[n] for n in (3, 0, 6, 2, 5, 1, 4)]
    assert sorted(shuffled, key=lambda outcome: outcome.sort_key) == ordered


def test_descriptor_distances_are_euclidean():
    random = np.random.default_rng(0)
    database, queries = random.normal(size=(6, 4)).astype(np.float16), random.normal(size=(2, 4)).astype(np.float16)
    distances = descriptor_distances(*map(torch.from_numpy, (database, queries)), np.array([[5, 0], [2, -1]]))
    wanted = [np.linalg.norm(database[d].astype(float) - queries[q]) for q, d in ((0, 5), (0, 0), (1, 2))]
    np.testing.assert_allclose(distances.ravel()[:3], wanted, rtol=1e-6)
    assert np.isnan(distances[1, 1])


@pytest.fixture
def images(tmp_path):
    """Two database images, a blue and a yellow one, and a grey query 30 m from the first."""
    for name, colour in (("d0", "blue"), ("d1", "yellow"), ("q0", "grey")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    places = places_of([(0, 0), (30, 40)], [(30, 40)])
    return PlaceImages(places, "val", [tmp_path / "d0.png", tmp_path / "d1.png"], [tmp_path / "q0.png"])


def test_a_panel_shows_query_and_hits_in_their_frames(images):
    shown = panels.panel(images, Outcome(0, [Hit(0, 50.0, 1.1, False), Hit(1, 0.0, 0.2, True)], 2, True))
    width, height = panels.CELL[0] + 2 * panels.FRAME, panels.CELL[1] + 2 * panels.FRAME
    assert shown.width == 6 * width
    for place, (frame, image) in enumerate(
        (("#4a4a4a", "grey"), (panels.WRONG, "blue"), (panels.RIGHT, "yellow"), (panels.PAPER, panels.PAPER))
    ):
        assert shown.getpixel((place * width + 2, height // 2)) == ImageColor.getrgb(frame)
        assert shown.getpixel((place * width + width // 2, height // 2)) == ImageColor.getrgb(image)


def test_long_captions_are_cut_in_the_middle():
    font = ImageFont.load_default(12)
    text = "000/" + "a long name " * 9 + "9.jpg"
    short = panels.shortened(text, font, 150)
    assert font.getlength(short) <= 150 < font.getlength(text)
    assert short.startswith("000/a") and short.endswith("9.jpg") and short.count("…") == 1
    assert panels.shortened("9.jpg", font, 150) == "9.jpg"


@pytest.mark.parametrize(
    ("ranks", "missed", "found"), [((1, 1), [], [0, 1]), ((None, 7), [0, 1], []), ((1, 2), [1], [0]), ((), [], [])]
)
def test_the_map_marks_what_was_missed_and_found(tmp_path, figures, ranks, missed, found):
    """What is handed to the plot: database, missed queries, found ones, and lines from those missed to first hits."""
    database, queries = [(1000, 0), (1050, 80)], [(1010 + 40 * n, 30 + 50 * n) for n in range(len(ranks))]
    outcomes = [outcome(n, rank) for n, rank in enumerate(ranks)]  # the first hit of each is database image 0
    plots.draw_map(tmp_path / "map.png", places_of(database, queries), outcomes, "a title " * 30)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 700
    (axes,) = figures[0].axes
    lines, *points = axes.collections
    shown = [points_of.get_offsets().tolist() for points_of in points]
    moved = {name: np.subtract(np.reshape(places, (-1, 2)), (1000, 0)).tolist() for name, places in (
        ("database", database), ("missed", [queries[n] for n in missed]), ("found", [queries[n] for n in found]),
    )}  # fmt: skip
    assert shown == [moved["database"], moved["missed"], moved["found"]]
    colours = [tuple(np.rint(255 * points_of.get_facecolors()[0, :3]).astype(int)) for points_of in points]
    assert colours[1:] == [ImageColor.getrgb(colour) for colour in (panels.WRONG, panels.RIGHT)]
    assert [line.tolist() for line in lines.get_segments()] == [[start, [0, 0]] for start in moved["missed"]]


def test_test_mode_leaves_its_pictures(tiny_city, tmp_path):
    flags = [*flags_of_a_test(tiny_city, tmp_path), "--split=test"]
    assert main.main([*flags, "--panels=0"]) == 0
    assert not list(tmp_path.glob("test_*")), "0 panels: no pictures at all"
    assert main.main([*flags, "--panels=all"]) == 0
    (folder,) = tmp_path.glob("test_test_*")
    recalls = json.loads((tmp_path / "results.json").read_text())[-1]["recalls"]
    names = sorted(path.name for path in (folder / "panels").iterdir())
    assert len(names) == 12 and [name.split("_")[0] for name in names] == [f"{n:02d}" for n in range(1, 13)]
    found_first = [name.endswith("_found_at_1.jpg") for name in names]
    assert found_first == sorted(found_first), "the worst first"
    assert sum(found_first) / 12 == pytest.approx(recalls["1"])
    for name in ("recall.png", "map.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 700
    assert "R@1" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["[{", '{"an": "object"}', "\0\1"])
def test_a_damaged_results_file_costs_neither_recalls_nor_pictures(tiny_city, tmp_path, content, capsys):
    (tmp_path / "results.json").write_text(content)
    assert main.main([*flags_of_a_test(tiny_city, tmp_path), *SMALL, "--panels=1", "--index=Flat"]) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if "images" not in line and "queries/s" not in line]
    assert str(tmp_path / "results.json") in line and "unchanged" in line
    assert (tmp_path / "results.json").read_text() == content
    beside = sorted(tmp_path.glob("results_*.json"))
    (exact,), (approximate,) = (json.loads(path.read_text()) for path in beside)
    assert exact["search"] == "exact" and approximate["search"] == "by index Flat"
    assert exact["queries"] == 12 and str(beside[0]) in line
    recalls = ", ".join(f"R@{n}: {100 * recall:.1f}" for n, recall in exact["recalls"].items())
    assert recalls in printed.out.splitlines()
    assert len(list(tmp_path.glob("test_val_*/report.html"))) == 1


def test_recalls_are_printed_and_kept_though_no_picture_can_be_drawn(tiny_city, tmp_path, monkeypatch, capsys):
    def no_room(*_):
        assert (tmp_path / "results.json").is_file(), "before anything is drawn"
        raise UserError("no room for pictures")

    monkeypatch.setattr("vpr.modes.test.write_pictures", no_room)
    assert main.main([*flags_of_a_test(tiny_city, tmp_path), *SMALL, "--panels=1"]) == 2
    printed = capsys.readouterr()
    assert "no room for pictures" in printed.err
    assert printed.out.splitlines()[-1].startswith("R@1: ") and printed.out.count("R@1: ") == 1, "once, and last"
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1


def test_steps_are_all_taken_and_the_first_failure_is_raised():
    taken = []

    def failing(text):
        taken.append(text)
        raise UserError(text)

    with pytest.raises(UserError, match="one"):
        all_of(lambda: failing("one"), lambda: taken.append("between"), lambda: failing("two"))
    assert taken == ["one", "between", "two"]


@pytest.mark.parametrize("stem", ["short", "x" * 245, "ü" * 120, "日" * 80])
def test_file_names_of_panels_are_short_enough(tmp_path, stem):
    name = panels.file_name(f"1_{stem}", ".jpg")
    assert name.startswith("1_" + stem[:40]) and name.endswith(".jpg") and len(name.encode()) < 200
    assert (name == "1_short.jpg") == (stem == "short")
    panels.write_jpeg(tmp_path / name, Image.new("RGB", (4, 4)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
