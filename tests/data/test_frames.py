"""Frames from names: order, what parts them, and which frames are near each other."""

import numpy as np
import pytest

from pittsburgh import read_places
from vpr.data.frames import find_sequences, sequence_and_number, times_in_sequences, usual_step

PANORAMA = "x/@0548099.10@4180095.20@17@T@037.77@-122.45@pano-7@@@@@@201002@@.jpg"


def groups(names):
    """The names of each sequence in the order of time, as a set of tuples."""
    found = find_sequences(names)
    order = found.order()
    return {tuple(names[i] for i in order if found.sequences[i] == each) for each in set(found.sequences)}


@pytest.mark.parametrize(
    ("name", "sequence", "number"),
    [
        ("014/3_000029.jpg", "014/3_*", 29),
        ("014/000029_left.jpg", "014/*_left", 29),
        ("a/IMG_20260101_081559.jpg", "a/IMG_20260101_*", 81559),
        ("rgb/1305031102.175304.png", "rgb", 1305031102.175304),
        ("cam.12.jpg", "./cam.*", 12),
        ("a/frame12_640x480.jpg", "a/frame*_640x480", 12),
        ("a/640X480_frame12.jpg", "a/640X480_frame*", 12),
        ("a/640x480.jpg", "a/640x*", 480),  # nothing else is a number
        ("a/rgb_1305031102.175304.png", "a/rgb_*", 1305031102.175304),
        ("a/1305031102.175304_left.png", "a/*_left", 1305031102.175304),
        ("a/shot01.0012.jpg", "a/shot01.*", 12),
        ("x/@0548099.10@4180095.20@17@T@037.77@-122.45@0000011@@@@@@201002@@.jpg", "x", 11),
        (PANORAMA, PANORAMA, None),
        ("x/@585000.0@4477000.0@17@T@q7@.jpg", "x", 7),
        ("x/@585000.0@4477000.0@17@T@@.jpg", "x/@585000.0@4477000.0@17@T@@.jpg", None),
        ("x/door.jpg", "x", None),
    ],
)
def test_a_name_says_sequence_and_number(name, sequence, number):
    assert sequence_and_number(name) == (sequence, number)


def test_frames_are_in_the_order_of_their_numbers():
    names = ["a/10.jpg", "a/2.jpg", "a/1.jpg", "b/3.jpg", "a/x_1.jpg"]
    assert groups(names) == {("a/1.jpg", "a/2.jpg", "a/10.jpg"), ("b/3.jpg",), ("a/x_1.jpg",)}
    found = find_sequences(names)
    assert found.numbers.tolist() == [9, 1, 0, 0, 0]  # since the first of each sequence


def test_names_without_numbers_are_a_sequence_by_name():
    assert groups(["a/c.jpg", "a/a.jpg", "a/b.jpg", "b/d.jpg"]) == {("a/a.jpg", "a/b.jpg", "a/c.jpg"), ("b/d.jpg",)}


def test_a_step_far_larger_than_the_usual_one_is_a_break():
    close = [f"a/{n}.jpg" for n in (0, 5, 10, 15, 65)]  # a step of ten usual ones
    assert len(groups(close)) == 1
    assert groups([*close[:4], "a/66.jpg", "a/71.jpg"]) == {tuple(close[:4]), ("a/66.jpg", "a/71.jpg")}
    # Two frames know no usual step of their own: that of the others is theirs.
    assert len(groups([*close[:4], "b/0.jpg", "b/5.jpg"])) == 2
    assert len(groups([*close[:4], "b/0.jpg", "b/500.jpg"])) == 3
    # A sequence of other numbers keeps its own.
    times = [f"b/{n}000000.jpg" for n in range(1, 6)]
    assert groups([*close[:4], *times]) == {tuple(close[:4]), tuple(times)}


def test_usual_step_is_within_sequences_that_are_in_order():
    found = find_sequences([f"{name}.jpg" for name in ("a/4", "a/7", "a/10", "a/010", "b/100", "b/103")])
    assert usual_step(found.of(found.order())) == 3
    assert usual_step(find_sequences(["a/1.jpg", "b/9.jpg"])) == 1
    assert found.text() == "6 images in 2 sequences of 2 to 4 frames, step 3"


def test_ranks_count_the_frames_of_database_and_queries_together():
    database = ["val/database/w/1.jpg", "val/database/w/3.jpg", "val/database/w/5.jpg", "val/database/v/3.jpg"]
    queries = ["val/queries/w/2.jpg", "val/queries/w/3.jpg", "queries_real/w/6.jpg"]
    found, ranks = times_in_sequences([*database, *queries])
    assert [found[i] == found[0] for i in range(7)] == [True, True, True, False, True, True, True]
    assert ranks.tolist() == [0, 2, 3, 0, 1, 2, 4]  # of 1 2 3 5 6


def test_sequences_of_tower_are_its_scenes(shared):
    places = read_places(shared / "places" / "tower" / "datasets" / "pitts30k_val.mat")
    for names, positions in (
        (places.database_names, places.database_positions),
        (places.query_names, places.query_positions),
    ):
        found = find_sequences(names)
        # Easting is 1000 m a floor, northing 400 m a sequence and 2 m a frame, none over 100 frames.
        scenes = positions[:, 0] * 1000 + positions[:, 1] // 400
        assert len(set(zip(found.sequences, scenes, strict=True))) == len(set(found.sequences)) == len(set(scenes)) > 50
        order = found.order()
        same = np.diff(found.sequences[order]) == 0
        np.testing.assert_allclose(np.diff(positions[order, 1])[same], 2 * np.diff(found.numbers[order])[same])
