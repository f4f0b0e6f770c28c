"""Searches of a part of the database, against distances by another formula and points placed by hand."""

import random
import re

import numpy as np
import pytest

from vpr.common.errors import UserError
from vpr.database.columns import value_of
from vpr.database.filters import (
    EARTH_RADIUS,
    Condition,
    SearchFilter,
    box_around,
    haversine,
    in_boxes,
    read_box,
    read_condition,
    read_near,
    split_at_date_line,
)
from vpr.database.records import Records


def records_of(count, columns=None, zone="17N"):
    positions = np.stack([585000 + 100.0 * np.arange(count), np.full(count, 4477000.0)], axis=1)
    nothing = np.zeros(count, np.int64)
    return Records(
        [f"{n}.jpg" for n in range(count)], positions, zone, nothing, nothing, np.zeros((count, 32), np.uint8),
        [""] * count, columns or {},
    )  # fmt: skip


def vectors(degrees):
    latitude, longitude = np.radians(degrees).T
    return np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
    )


@pytest.fixture
def points():
    """Points all over the sphere, denser near the date line and the poles."""
    generator = np.random.default_rng(0)
    latitudes = np.degrees(np.arcsin(generator.uniform(-1, 1, 4000)))
    longitudes = generator.uniform(-180, 180, 4000)
    longitudes[:1000] = np.where(longitudes[:1000] > 0, 180, -180) - longitudes[:1000] / 180
    latitudes[1000:2000] = 90 - np.abs(latitudes[1000:2000]) / 20
    return np.stack([latitudes, longitudes], axis=1)


@pytest.mark.parametrize("centre", [(40.4, -80.0), (0.0, 179.9), (-17.5, -179.95), (89.7, 20.0), (60.0, 0.0)])
def test_metres_are_those_of_the_angle_between_vectors(points, centre):
    angles = np.arccos(np.clip(vectors(points) @ vectors(np.array([centre]))[0], -1, 1))
    np.testing.assert_allclose(haversine(points, centre), EARTH_RADIUS * angles, rtol=1e-6, atol=1.0)


@pytest.mark.parametrize("metres", [100.0, 20_000.0, 400_000.0, 9e6])
@pytest.mark.parametrize("centre", [(40.4, -80.0), (0.0, 179.9), (-17.5, -179.95), (89.7, 20.0), (-88.0, 0.0)])
def test_a_box_holds_all_points_of_its_circle_and_touches_it(points, centre, metres):
    near = haversine(points, centre) <= metres
    box = box_around(*centre, metres)
    inside = in_boxes(points, split_at_date_line(box))
    assert not (near & ~inside).any()
    south, west, north, east = box
    if south > -90 and north < 90 and west != -180.0:  # its edges are no wider than needed
        side = np.array([(latitude, east) for latitude in np.linspace(south, north, 2001)])
        assert haversine(side, centre).min() == pytest.approx(metres, rel=1e-3)


def test_a_search_near_a_point_has_the_images_within_the_metres():
    records = records_of(10)
    centre = tuple(records.degrees[4])
    found = np.flatnonzero(SearchFilter(near=(*centre, 250.0)).mask(records))
    assert found.tolist() == [2, 3, 4, 5, 6]  # 100 m apart


def test_a_box_across_the_date_line_has_both_sides():
    records = records_of(3)
    degrees = np.array([[0.0, 179.99], [0.0, -179.99], [0.0, 0.0]])
    records.__dict__["degrees"] = degrees
    assert SearchFilter(box=(-1, 179.9, 1, -179.9)).mask(records).tolist() == [True, True, False]
    assert SearchFilter(box=(-1, -179.9, 1, 179.9)).mask(records).tolist() == [False, False, True]


def test_conditions_compare_numbers_as_numbers_and_silence_never_agrees():
    columns = {
        "weather": ["rain", "sun", None, "rain"],
        "hour": [9.0, 10.0, 100.0, None],
        "mixed": [1.0, "a", 2.0, None],
    }
    records = records_of(4, columns)

    def rows(*texts):
        return np.flatnonzero(SearchFilter(where=tuple(map(read_condition, texts))).mask(records)).tolist()

    assert rows("weather=rain") == [0, 3] and rows("weather!=rain") == [1]
    assert rows("hour>=10") == [1, 2] and rows("hour<=10") == [0, 1], "not as text, by which 100 is below 9"
    assert rows("weather=rain", "hour<=9") == [0]
    assert rows("mixed=a") == [1] and rows("mixed!=a") == [0, 2]
    assert rows("mixed>=1.5") == [2] and rows("mixed<=1.5") == [0], "a number is neither above nor below a text"
    assert rows("mixed>=a") == [1] and rows("weather>=s") == [1], "texts are compared as texts"
    with pytest.raises(UserError, match="no column season, found weather, hour, mixed"):
        rows("season=winter")


def test_what_is_typed_with_zeros_is_a_name_and_digits_are_those_of_a_keyboard():
    cells = ["007", "7", "7.0", "1_000", "1000", "８", "8", "08", "unknown", "n/a", ""]
    records = records_of(len(cells), {"id": [value_of(cell) for cell in cells]})

    def found(text):
        return [cells[row] for row in np.flatnonzero(SearchFilter(where=(read_condition(text),)).mask(records))]

    assert found("id=007") == ["007"] and found("id=7") == ["007", "7", "7.0"]
    assert found("id=1_000") == ["1_000"] and found("id=1000") == found("id>=1000") == ["1000"]
    assert found("id=８") == ["８"] and found("id=8") == ["8", "08"] and found("id=08") == ["08"]
    assert found("id>=08") == ["1000", "8", "08"] and found("id>=8") == ["1000", "8", "08"], "neither unknown nor n/a"
    assert found("id!=8") == ["007", "7", "7.0", "1_000", "1000", "８", "unknown", "n/a"]


@pytest.mark.parametrize("reader", [read_near, read_box])
@pytest.mark.parametrize("wrong", ["４０", "4_0", "", "nan", "inf"])
def test_points_and_boxes_are_numbers_of_a_keyboard(reader, wrong):
    right = {read_near: "10,40,50", read_box: "10,40,50,60"}[reader]
    assert reader(right.replace("40", "+40.0")) == reader(right)
    with pytest.raises(ValueError, match="wanted"):
        reader(right.replace("40", wrong))
    with pytest.raises(ValueError, match="wanted"):
        reader(f"{right},{wrong}")


@pytest.mark.parametrize("box", [(-1, 170, 1, 180), (-1, -180, 1, -170), (-1, 170, 1, -170), (-1, 180, 1, 180),
                                 (-1, -180, 1, 180), (-1, 180, 1, -180)])  # fmt: skip
def test_a_box_that_ends_at_the_date_line_has_the_images_on_it(box):
    """Which is at 180 and at -180, whichever its place was computed to."""
    points = np.array([[0.0, 180.0], [0.0, -180.0], [2.0, 180.0], [0.0, 100.0]])
    assert in_boxes(points, split_at_date_line(box)).tolist() == [True, True, False, box == (-1, -180, 1, 180)]


def by_pattern(text):
    """The grammar of a condition as one regular expression, which takes cubic time."""
    found = re.fullmatch(r"\s*([^=!<>]+?)\s*(!=|>=|<=|=)\s*(.*?)\s*", text)
    return found and found[1].strip() and found[3] and (found[1].lower(), found[2], found[3])


def test_conditions_are_read_in_one_pass():
    for text in (" " * 300_000, " " * 150_000 + "=" + " " * 150_000, "a" + " " * 300_000 + "b", "!" * 300_000):
        with pytest.raises(ValueError, match="wanted COLUMN=VALUE"):
            read_condition(text)
    assert read_condition("a" + " " * 300_000 + ">= b" + " " * 300_000) == Condition("a", ">=", "b")
    chance, read = random.Random(0), 0
    for _ in range(5000):
        text = "".join(chance.choices("ab =!<>", k=chance.randrange(9)))
        wanted = by_pattern(text)
        try:
            found = read_condition(text)
            assert wanted == (found.column, found.comparison, found.value), text
            read += 1
        except ValueError:
            assert not wanted, text
    assert read > 200


def test_places_in_an_unknown_zone_are_refused():
    with pytest.raises(UserError, match="--utmZone"):
        SearchFilter(near=(40.0, -80.0, 5.0)).mask(records_of(2, zone=None))
    assert SearchFilter(where=(Condition("a", "=", 1.0),)).mask(records_of(2, {"a": [1.0, 2.0]}, None)).tolist() == [
        True, False,
    ]  # fmt: skip


def test_what_is_typed_is_read_or_refused():
    assert read_near("40.4,-80,500") == (40.4, -80.0, 500.0)
    assert read_box("1,179,2,-179") == (1.0, 179.0, 2.0, -179.0)
    assert read_condition(" Hour >= 10 ") == Condition("hour", ">=", 10.0)
    assert read_condition("a=b=c") == Condition("a", "=", "b=c")
    wrong = {
        read_near: ("40,-80", "91,0,5", "1,2,nan", "1,2,-3"),
        read_box: ("2,0,1,0", "0,0,1,181"),
        read_condition: ("weather", "=x", "x="),
    }
    for reader, texts in wrong.items():
        for text in texts:
            with pytest.raises(ValueError, match="found"):
                reader(text)
