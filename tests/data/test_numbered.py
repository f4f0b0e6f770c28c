"""Films of one route and pairs of images: which images match, counted by hand, and folders that do not fit together."""

import json
from decimal import Decimal

import numpy as np
import pytest
from drawing import draw_image
from loading import hits, load, refusal, touch

import main
from vpr.data.layouts.numbered import in_order, numbers_in_names


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["images-00202.png", "images-00203.png"], [202, 203]),
        (["7.jpg", "10.jpg"], [7, 10]),
        (["a12b034.jpg", "a07b035.jpg"], [34, 35]),
        (["frame.jpg", "frame2.jpg"], None),
        (["@0@00011.9@@@@@5@@@@@@@@.jpg", "@0@00014.3@@@@@6@@@@@@@@.jpg"], [5, 6]),
        (["@0@00011.9@@@@@@@@@@@@@.jpg", "@0@00014.3@@@@@@@@@@@@@.jpg"], ["11.9", "14.3"]),
        (["@0@2.4.jpg", "@0@12.0.jpg", "@0@9.6.jpg"], ["2.4", "12.0", "9.6"]),
        (["@0@2.4@.jpg", "@0@12.0@.jpg"], ["2.4", "12.0"]),
        (["@0@7.199999999999999.jpg", "@0@12.0.jpg"], ["7.199999999999999", "12.0"]),  # as Python writes 3 * 2.4
        (["frame2_640x480.jpg", "frame12_640x480.jpg"], [2, 12]),
        (["frame2_1080p.jpg", "frame12_1080p.jpg"], [2, 12]),
        (["640x480_2.jpg", "640x480_12.jpg"], [2, 12]),
        (["1305031102.975304.png", "1305031103.175304.png"], ["1305031102.975304", "1305031103.175304"]),
        (["1305031102.175304.png", "1305031102.211214.png"], [175304, 211214]),
        (["1305031102175304000.png", "1305031102175304001.png"], [1305031102175304000, 1305031102175304001]),
        (["t1305031102.5_left.png", "t1305031103.25_left.png"], ["1305031102.5", "1305031103.25"]),
        (["v1.2.jpg", "v1.10.jpg"], [2, 10]),  # one version of the film
        (["2024-01-05_12-30-15.jpg", "2024-01-05_12-31-15.jpg"], [30, 31]),
        (["1a.jpg", "1b.jpg"], [1, 1]),
    ],
)  # fmt: skip
def test_numbers_of_frames(tmp_path, names, numbers):
    wanted = numbers and [Decimal(number) for number in numbers]
    assert numbers_in_names([tmp_path / name for name in names]) == wanted


NAMES = {
    "padded": lambda n: f"image-{n:05d}.jpg", "decimals": lambda n: f"@0@{2.4 * n:.1f}.jpg",
    "all decimals": lambda n: f"@0@{2.4 * n}@.jpg", "size": lambda n: f"frame{n}_640x480.jpg",
    "seconds": lambda n: f"{1305031102.175304 + 0.4 * n:.6f}.png",
    "eighth field": lambda n: f"@0@{2.4 * n:.1f}@@@@@{n}@@@@@@@@.jpg",
}  # fmt: skip


@pytest.mark.parametrize("names", NAMES)
def test_frames_without_positions_are_in_the_order_in_which_they_were_taken(tmp_path, capsys, names):
    for role in ("database", "queries"):
        touch(tmp_path / "images" / "test" / role, [NAMES[names](number) for number in range(40)])
    images = load(tmp_path, "nordland3450")
    assert [file.name for file in images.database_files] == [NAMES[names](number) for number in range(40)]
    assert [file.name for file in images.query_files] == [NAMES[names](number) for number in range(40)]
    found = hits(images.places)
    assert found[0] == [0, 1, 2] and found[20] == [18, 19, 20, 21, 22] and found[39] == [37, 38, 39]
    assert "whoever made" in images.direction  # the folders' names do not say which season is which
    assert capsys.readouterr().out == ""


def test_each_tenth_frame_is_compared_by_the_same_number(tmp_path):
    touch(tmp_path / "ref", [f"frame{number}_640x480.jpg" for number in range(31)])
    touch(tmp_path / "query", [f"frame{10 * number}_640x480.jpg" for number in range(4)])
    assert hits(load(tmp_path, "nordland2760").places) == [[0, 1], [9, 10, 11], [19, 20, 21], [29, 30]]
    (tmp_path / "query" / "frame30_640x480.jpg").rename(tmp_path / "query" / "frame29_640x480.jpg")
    assert "is frame 29 where the database has 30, frame30_640x480.jpg" in refusal(load, tmp_path, "nordland2760")


def test_numbers_that_frames_share_are_said(tmp_path, capsys):
    folders = [f"{season}/{part}" for season in ("summer", "winter") for part in "ab"]
    touch(tmp_path, [f"{folder}/{number}.png" for folder in folders for number in range(3)])
    images = load(tmp_path, "nordland27592")
    assert [str(file.relative_to(tmp_path / "summer")) for file in images.database_files] == [
        "a/0.png", "b/0.png", "a/1.png", "b/1.png", "a/2.png", "b/2.png",
    ]  # fmt: skip
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("a/0.png and b/0.png share theirs" in line for line in said)


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    names = ["f10.jpg", "f2.jpg", "f1.jpg"]
    assert [file.name for file in in_order([tmp_path / name for name in names])] == ["f1.jpg", "f2.jpg", "f10.jpg"]
    assert [file.name for file in in_order([tmp_path / name for name in ("b.jpg", "a1.jpg")])] == ["a1.jpg", "b.jpg"]


def test_nordland_of_all_frames_takes_ten_to_each_side(tmp_path):
    """25 frames each: frame 0 has 0 to 10, frame 12 has 2 to 22, frame 24 has 14 to 24."""
    names = [f"images-{202 + number:05d}.png" for number in range(25)]
    touch(tmp_path, [f"{season}/{name}" for season in ("summer", "winter") for name in names])
    images = load(tmp_path, "nordland27592")
    found = hits(images.places)
    assert found[0] == list(range(11)) and found[12] == list(range(2, 23)) and found[24] == list(range(14, 25))
    assert [len(each) for each in found] == [min(n, 10) + 1 + min(24 - n, 10) for n in range(25)]
    assert images.query_files[3] == tmp_path / "winter" / "images-00205.png"
    assert images.database_files[3] == tmp_path / "summer" / "images-00205.png"
    assert images.direction == "winter queries in summer"
    for other in (images.places.training_positives(), images.places.not_negatives()):
        assert [each.tolist() for each in other] == found


@pytest.mark.parametrize("names", [lambda n: f"{n}.jpg", lambda n: f"{10 * n}.jpg", lambda n: f"{n + 1:04d}.jpg"])
def test_nordland_of_each_tenth_frame_takes_one_to_each_side(tmp_path, names):
    """31 frames, 4 queries: frames 0, 10, 20, 30; whether queries are numbered as frames or by themselves."""
    touch(tmp_path / "ref", [f"{number}.jpg" for number in range(31)])
    touch(tmp_path / "query", [names(number) for number in range(4)])
    images = load(tmp_path, "nordland2760")
    assert hits(images.places) == [[0, 1], [9, 10, 11], [19, 20, 21], [29, 30]]
    assert images.direction == "summer queries in winter"
    assert [file.name for file in images.query_files] == [names(number) for number in range(4)]


@pytest.mark.parametrize(("dataset", "count", "wanted"), [("nordland27592", 24, 25), ("nordland2760", 4, 3)])
def test_counts_of_frames_that_do_not_fit_are_refused(tmp_path, dataset, count, wanted):
    touch(tmp_path / "images" / "test" / "database", [f"{number}.jpg" for number in range(25)])
    touch(tmp_path / "images" / "test" / "queries", [f"{number}.jpg" for number in range(count)])
    text = refusal(load, tmp_path, dataset)
    assert f"has {count} images" in text and f"wanted {wanted} queries" in text


def test_other_frames_of_the_same_count_are_refused(tmp_path):
    """One film lacks frame 3, the other frame 6: from there on frames would be matched that are one apart."""
    touch(tmp_path / "summer", [f"images-{number:05d}.png" for number in range(10) if number != 3])
    touch(tmp_path / "winter", [f"images-{number:05d}.png" for number in range(10) if number != 6])
    text = refusal(load, tmp_path, "nordland27592")
    assert "images-00003.png is frame 3 where the database has 4" in text


def test_a_frame_that_is_left_out_does_not_move_the_others(tmp_path):
    for season in ("summer", "winter"):
        touch(tmp_path / season, [f"{number}.png" for number in range(30)])
    places = load(tmp_path, "nordland27592").places.only([0, 11, 12], [1, 22])
    assert hits(places) == [[0, 1], [2]]  # frame 1: 0 and 11; frame 22: 12


@pytest.mark.parametrize(
    ("dataset", "database", "queries", "endings"),
    [("sped", "ref", "query", ("jpg", "jpg")), ("amstertime", "new", "old", ("png", "jpg")),
     ("sped", "images/test/database", "images/test/queries", ("jpg", "jpg"))],
)  # fmt: skip
def test_pairs_are_files_of_one_name(tmp_path, dataset, database, queries, endings):
    for folder, ending in zip((database, queries), endings, strict=True):
        touch(tmp_path / folder, [f"{number:04d}.{ending}" for number in (5, 1, 12)])
    images = load(tmp_path, dataset)
    assert [file.name for file in images.query_files] == [f"{number:04d}.{endings[1]}" for number in (1, 5, 12)]
    for query, found in enumerate(hits(images.places)):
        assert [images.database_files[hit].stem for hit in found] == [images.query_files[query].stem]
    assert images.places.database_numbers.dtype.kind == "i" and np.isnan(images.places.database_positions).all()


@pytest.mark.parametrize(
    ("database", "queries", "words"),
    [
        (["1.jpg", "2.jpg"], ["1.jpg"], "1 images without a partner, first 2"),
        (["1.jpg"], ["1.jpg", "3.jpg"], "1 images without a partner, first 3"),
        (["1.jpg", "1.png"], ["1.jpg"], "two images of one name"),
        (["1.jpg"], [], "has no images"),
    ],
)
def test_images_without_a_partner_are_refused(tmp_path, database, queries, words):
    touch(tmp_path / "ref", database)
    touch(tmp_path / "query", queries)
    assert words in refusal(load, tmp_path, "sped")


def test_a_missing_folder_names_all_that_would_do(tmp_path):
    text = refusal(load, tmp_path, "amstertime")
    assert "images/test/database with images/test/queries, nor new with old" in text and "docs/datasets.md" in text


def test_pairs_are_tested_drawn_and_located_without_positions(tmp_path, capsys):
    """Each query is drawn as the database image of its name, but one, which is drawn as another's."""
    for number in range(5):
        draw_image(tmp_path / "new" / f"{number}.png", (96, 80), number)
        draw_image(tmp_path / "old" / f"{number}.png", (96, 80), number if number != 3 else 4)
    runs = tmp_path / "runs"
    common = [
        "--dataset=amstertime", f"--root={tmp_path}", "--split=test", "--arch=alexnet", "--fromscratch",
        "--pooling=max", "--threads=0", "--device=cpu", f"--runsPath={runs}",
    ]  # fmt: skip
    assert main.main(["--mode=test", *common, "--panels=2"]) == 0
    printed = capsys.readouterr().out
    label = (
        "protocol: amstertime, split test (amstertime_test); 5 queries, 5 database images; right: the image of the "
        "same pair; historical queries in today's images; panoramas not merged; queries without a positive count as "
        "missed"
    )
    assert label in printed.splitlines()
    (result,) = json.loads((runs / "results.json").read_text())
    assert result["protocol"] == label.removeprefix("protocol: ") and result["recalls"]["1"] == 4 / 5
    (pictures,) = runs.glob("test_test_*")
    assert (pictures / "report.html").is_file() and not (pictures / "map.png").exists()
    assert "m away" not in (pictures / "report.html").read_text()
    index = f"--indexFile={tmp_path / 'index.h5'}"
    assert main.main(["--mode=locate", *common, index, "--panels=0", str(tmp_path / "old" / "1.png")]) == 0
    assert "place unknown  new/1.png" in capsys.readouterr().out.splitlines()[-6]
