"""Data sets of folders with positions in the names, and the protocol label of every set."""

import numpy as np
import pytest
from loading import hits, load, refusal, touch

import main
from pittsburgh import Places
from vpr.cli.options import parse_options
from vpr.data.catalogue import DATASETS, OTHER_TIME, PANORAMA, splits_of
from vpr.data.places import PlaceImages, PlacesSpec, has_split
from vpr.data.protocol import protocol_label


def taken_at(folder, *positions):
    """Empty files at (easting, northing), as VPR-datasets-downloader names them."""
    touch(folder, [f"@{east}@{north}@@@@@pano@@@@@@@@.jpg" for east, north in positions])


@pytest.mark.parametrize("dataset", ["stlucia", "eynsham"])
def test_images_within_25_metres_match(tmp_path, dataset):
    taken_at(tmp_path / "images" / "test" / "database", (0, 0), (24, 0), (26, 0), (90, 90))
    taken_at(tmp_path / "images" / "test" / "queries", (0, 1), (50, 0))
    images = load(tmp_path, dataset)
    # from (0, 1): 1 m, 24.02 m, 26.02 m; from (50, 0): 26 m, 24 m
    assert hits(images.places) == [[0, 1], [2]]
    assert all(file.is_file() for file in images.files) and images.places.name == f"{dataset}_test"
    text = f"--dataset={dataset} has no split val: choose from test with --split"
    assert refusal(load, tmp_path, dataset, "val") == text


def test_svox_has_a_split_for_each_weather(tmp_path):
    weathers = ("night", "overcast", "rain", "snow", "sun")
    taken_at(tmp_path / "images" / "test" / "gallery", (0, 0), (100, 0))
    for east, weather in enumerate(weathers, start=100):
        taken_at(tmp_path / "images" / "test" / f"queries_{weather}", (east, 0))
    for east, weather in enumerate(weathers, start=100):
        images = load(tmp_path, "svox", weather)
        assert images.places.query_positions.tolist() == [[east, 0]]
        assert hits(images.places) == [[1]]
    assert not has_split(PlacesSpec("svox", tmp_path), "test")


@pytest.mark.parametrize("top", ["", "processed", "images"])
@pytest.mark.parametrize("split", ["test_v1", "test_v2", "night", "occlusion"])
def test_sfxl_has_a_split_for_each_set_of_queries(tmp_path, top, split):
    taken_at(tmp_path / top / "test" / "database" / "37.70", (0, 0))
    taken_at(tmp_path / top / "test" / f"queries_{split.removeprefix('test_')}", (3, 4), (90, 0))
    images = load(tmp_path, "sfxl", split)
    assert hits(images.places) == [[0], []]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([], "has no images/test/database with images/test/queries"),
        (["database"], "has no images/test/database with images/test/queries"),
        (["database", "queries"], "has no images ("),
    ],
)
def test_folders_that_are_missing_or_empty_are_one_line(tmp_path, made, words):
    for role in made:
        (tmp_path / "images" / "test" / role).mkdir(parents=True)
    text = refusal(load, tmp_path, "stlucia")
    assert words in text and "docs/datasets.md" in text


def test_images_without_a_position_are_one_line(tmp_path):
    touch(tmp_path / "images" / "test", ["database/1.jpg", "queries/1.jpg"])
    assert "2 of 2 images have no position" in refusal(load, tmp_path, "eynsham")


def test_the_command_line_knows_every_set_and_split(tmp_path, capsys):
    for name, dataset in DATASETS.items():
        for split in splits_of(dataset):
            options = parse_options(["--mode=test", f"--dataset={name}", f"--split={split}"])
            assert (options.dataset, options.split) == (name, split)
    assert main.main(["--mode=spec", "--dataset=stlucia", f"--root={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--dataset=stlucia has neither" in line


def places(**fields):
    return Places("name_test", ["d"] * 3, ["q"] * 2, np.zeros((3, 2)), np.zeros((2, 2)), 25.0, 10.0, **fields)


@pytest.mark.parametrize(
    ("dataset", "fields", "wanted"),
    [
        ("pittsburgh", {}, "panoramas not merged"),
        ("tokyo247", {"protocol": PANORAMA}, "panoramas merged (only the first hit of each counts)"),
        ("tokyotm", {"protocol": OTHER_TIME, "database_times": np.ones(3), "query_times": np.ones(2)},
         "panoramas not merged; hits and positives with the query's time stamp do not count"),
    ],
)  # fmt: skip
def test_the_label_of_sets_with_spec_files(dataset, fields, wanted):
    label = protocol_label(PlaceImages(places(**fields), "test", [], [], dataset=dataset))
    assert label == (
        f"{dataset}, split test (name_test); 2 queries, 3 database images; right: within 25 m; queries in the "
        f"database; {wanted}; queries without a positive count as missed"
    )
    unnamed = protocol_label(PlaceImages(places(**fields), "test", [], []))
    assert unnamed == label.replace(dataset, "no data set of the table", 1)


def test_the_label_says_where_counts_are_not_the_published_ones(tmp_path):
    touch(tmp_path, [f"{season}/{number}.png" for season in ("summer", "winter") for number in range(3)])
    label = protocol_label(load(tmp_path, "nordland27592"))
    assert label == (
        "nordland27592, split test (nordland27592_test); 3 queries, 3 database images (published: 27592 and 27592); "
        "right: within 10 frames before and behind; winter queries in summer; panoramas not merged; queries without a "
        "positive count as missed"
    )
