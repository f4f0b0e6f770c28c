"""Places as others give them: GSV-Cities' tables, written by hand, and a folder for each place."""

import csv

import numpy as np
import pytest

from vpr.common.errors import UserError
from vpr.training.places.tables import read_place_files


def table_of(root, rows, city="Rome"):
    """A table in GSV-Cities' form."""
    path = root / "Dataframes" / f"{city}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        written = csv.writer(file)
        written.writerow(["place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid"])
        written.writerows(rows)


def put(root, names, city="Rome"):
    for name in names:
        path = root / "Images" / city / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_of_gsv_cities_are_found_by_the_names_that_its_table_gives(tmp_path):
    # Degrees as text, one that a program rewrote; a number of a place to which that of a city was added; endings.
    table_of(tmp_path, [
        (13, 2019, 5, 7, "Rome", "41.90", "12.5000001", "-a_B"),
        (13, 2008, 11, 355, "Rome", "41.900001", "12.50", "c"),
        (700013, 2019, 5, 90, "Rome", "-0.5", "12.5", "d"),
        (700013, 2019, 5, 90, "Rome", "-0.5", "12.5", "e"),
        (14, 2019, 5, 90, "Rome", "41.9", "12.5", "f"),
    ])  # fmt: skip
    put(tmp_path, names := [
        "Rome_0000013_2019_05_007_41.90_12.5000001_-a_B.jpg", "Rome_0000013_2008_11_355_41.900001_12.5_c.JPG",
        "Rome_0000013_2019_05_090_-0.5_12.5_d.jpg", "Rome_0700013_2019_05_090_-0.5_12.5_e.jpg",
        "Rome_0000014_2019_05_090_41.9_12.5_f.jpg",
    ])  # fmt: skip
    files, places = read_place_files(tmp_path, least=2)
    assert files == [tmp_path / "Images" / "Rome" / name for name in names]
    assert [each.tolist() for each in places.images] == [[0, 1], [2, 3]]
    # Zone 33 has its middle at 15 degrees east: 2.5 degrees of 111.32 km west, nearer together towards the poles.
    east = 500_000 - 0.9996 * 111_320 * 2.5 * np.cos(np.radians([41.9, 0.5]))
    np.testing.assert_allclose(places.positions[:, 0], east, rtol=0, atol=900)
    assert places.positions[0, 1] == pytest.approx(4_641_000, abs=3_000)


def test_equal_numbers_in_two_cities_are_two_places_and_small_places_are_left_out(tmp_path):
    names = {}
    for city, count in (("Oslo", 3), ("Rome", 4)):
        rows = [(1, 2019, 5, n, city, "45.5", "9.5", n) for n in range(count)]
        table_of(tmp_path, [*rows, (2, 2019, 5, 0, city, "45.5", "9.5", 9)], city)
        names[city] = [f"{city}_0000001_2019_05_00{n}_45.5_9.5_{n}.jpg" for n in range(count)]
        put(tmp_path, [*names[city], f"{city}_0000002_2019_05_000_45.5_9.5_9.jpg"], city)
    files, places = read_place_files(tmp_path, least=3)
    assert [[files[n].name for n in each] for each in places.images] == [names["Oslo"], names["Rome"]]
    files, places = read_place_files(tmp_path)
    assert [[files[n].name for n in each] for each in places.images] == [names["Rome"]]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("x", 2019, 5, 0, "Rome", "1.0", "2.0", "p"), ("Rome.csv", "'x'", "get the tables")),
        ((1, 2019, 5, 0, "Rome", "91.0", "2.0", "p"), ("Rome.csv", "latitude 91", "get the tables")),
        ((1, 2019, 5, 0, "Rome", "nan", "2.0", "p"), ("Rome.csv", "nan", "get the tables")),
        ((1, 2019, 5, 0, "Rome", "1.0", "2.0", "p"), ("1 of the 1 images", "_1.0_2.0_p.jpg", "unpack all")),
        ((1, 2019, 5), ("Rome.csv: line 2 is too short",)),
    ],
)
def test_tables_that_do_not_fit_are_refused_in_a_line(tmp_path, row, said):
    table_of(tmp_path, [row])
    with pytest.raises(UserError) as caught:
        read_place_files(tmp_path)
    assert all(words in str(caught.value) for words in said), str(caught.value)


def test_a_folder_for_each_place(tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "city/b/1.jpg", "city/b/2.png", "city/b/3.jpg", "c/1.jpg", "x.jpg", "y.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files, places = read_place_files(tmp_path, least=2)
    found = [[str(files[n].relative_to(tmp_path)) for n in each] for each in places.images]
    assert found == [["a/1.jpg", "a/2.jpg"], ["city/b/1.jpg", "city/b/2.png", "city/b/3.jpg"]]
    assert places.positions is None and places.name == tmp_path.name
    with pytest.raises(UserError, match="8 images and no place of 4 or more, wanted a folder for each place"):
        read_place_files(tmp_path)
