"""Which zone positions are in, and which numbers are no positions: names, GPS and folders across borders."""

import re

import numpy as np
import pytest
import utm
from drawing import draw_image, gps
from loading import hits, refusal, touch
from PIL import Image

from vpr.data.layouts.folders import read_database, read_folder
from vpr.data.positions.coordinates import Position, from_degrees, is_place, metres_in_zone, to_degrees
from vpr.data.positions.of_images import degrees_in_exif, position_in_exif, position_in_name, read_positions


def made(root, *names, role="database"):
    """A folder of images whose names say where they are."""
    touch(root / "test" / role, names)
    return root


def read(root):
    """Its database, by itself."""
    return read_database(root, "test")[0]


@pytest.mark.parametrize(
    ("easting", "northing", "letters", "zone", "latitude"),
    [
        (333510, 6250800, "56@S", "56S", -33.87),  # Sydney, S for south
        (333510, 6250800, "56@H", "56S", -33.87),  # and by its band
        (260000, 7395000, "23@s", "23S", -23.54),  # Sao Paulo
        (545981, 4184971, "10@S", "10N", 37.81),  # San Francisco is in band S
        (323000, 4306000, "18@S", "18N", 38.88),  # so is Washington
        (585000, 4477000, "17@N", "17N", 40.44),  # N for north, far from band N
        (585000, 4477000, "17@T", "17N", 40.44),
        (447000, 60000, "36@N", "36N", 0.54),
        (447000, 9950000, "36@S", "36S", -0.45),
    ],
)
def test_the_northing_decides_what_the_letter_s_means(easting, northing, letters, zone, latitude):
    position = position_in_name(f"@{easting}@{northing}@{letters}@.jpg")
    assert position.zone == zone
    assert to_degrees(position.easting, position.northing, zone)[0] == pytest.approx(latitude, abs=0.02)


@pytest.mark.parametrize("fields", ["99@T", "0@T", "61@N", "17@I", "17@Z", "17@é", "x@T", "17@TT"])
def test_what_is_no_zone_is_none(fields):
    assert position_in_name(f"@585000@4477000@{fields}@.jpg").zone is None


def test_a_zone_that_may_be_patagonia_is_said(tmp_path, capsys):
    read(made(tmp_path / "here", "@323000@4306000@18@S@.jpg"))
    assert "band S, 32 to 40 degrees north" in capsys.readouterr().out
    for name in ("@545981@4184971@10@S@.jpg", "@323000@4306000@18@T@.jpg", "@333510@6250800@56@S@.jpg"):
        read(made(tmp_path / name, name))
        assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name",
    ["@585000@4477@17@T@.jpg", "@0@0@17@T@.jpg", "@4477000@585000@17@T@.jpg", "@-79.99@40.44@17@T@.jpg",
     "@333510@62508000@56@H@.jpg", "@120@60@56@S@.jpg"],
)  # fmt: skip
def test_metres_that_are_no_place_in_their_zone_are_refused(tmp_path, name):
    if name == "@585000@4477@17@T@.jpg":  # 4 km north of the equator: a place, if a wet one
        assert read(made(tmp_path, name)).zone == "17N"
        return
    text = refusal(read, made(tmp_path, "@585000@4477000@17@T@.jpg", name))
    assert "1 of 2 images" in text and name in text and "no place in their UTM zone" in text


def test_national_grids_reach_into_the_zones_beside():
    """Norway has zone 33 and Finland zone 35 as a whole; Germany is often given in 32."""
    for latitude, longitude, number in ((60.39, 5.32, 33), (70.37, 31.1, 33), (51.15, 15.0, 32), (60.2, 20.0, 35)):
        easting, northing, *_ = utm.from_latlon(latitude, longitude, number)
        assert is_place(Position(easting, northing, f"{number}N"))
    assert is_place(metres_in_zone(-0.01, -81.0, "17N")) and is_place(metres_in_zone(0.01, -81.0, "17S"))
    assert not is_place(Position(0, 0, "17N")) and not is_place(Position(1e8, 1e8, "17N"))
    assert is_place(Position(1e8, 0)), "local metres may be any"


DEGREES = [(120.43912, 36.599), (120.43912, 36.6), (120.4402, 36.601), (120.4402, 36.602)]


@pytest.mark.parametrize("order", ["longitude first", "latitude first"])
@pytest.mark.parametrize("place", ["names", "table"])
def test_degrees_where_metres_are_expected_are_refused(tmp_path, place, order):
    pairs = [pair if order == "longitude first" else pair[::-1] for pair in DEGREES]
    if place == "names":
        made(tmp_path, *(f"@{one}@{two}@.png" for one, two in pairs))
    else:
        made(tmp_path, *(f"{number}.png" for number in range(4)))
        rows = [f"{number}.png,{one},{two}" for number, (one, two) in enumerate(pairs)]
        (tmp_path / "positions.csv").write_text("\n".join(["image,easting,northing", *rows]))
    text = refusal(read, tmp_path)
    assert "look like degrees" in text and "image,latitude,longitude" in text and "4 images" in text


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("a drive from 0", [(0, 2.4 * n) for n in range(40)]),
        ("a room to a tenth", [(3.5 + n / 10, 2.5) for n in range(4)]),
        ("a drive to the millimetre", [(12.345 * n, 3.217 * n) for n in range(9)]),
        ("whole metres", [(n, 7) for n in range(4)]),
        ("one place", [(12.345, 3.217)] * 3),
        ("near the origin", [(0.1234, 0.5678), (0.2345, 0.6789)]),
    ],
)
def test_local_metres_are_no_degrees(tmp_path, capsys, name, pairs):
    places = read(made(tmp_path, *(f"@{one}@{two}@{number}.png" for number, (one, two) in enumerate(pairs))))
    assert sorted(map(tuple, places.database_positions.tolist())) == sorted(pairs) and capsys.readouterr().out == ""


@pytest.mark.parametrize("places", [
    [(9.1234, 48.7758), (11.1234, 49.7758), (13.1234, 50.7758)],  # cities of a country, or a robot in a hall
    [(2.35222, 48.85661), (-79.99591, 40.44062), (151.21532, -33.85678)],  # of the world, or a yard
])  # fmt: skip
def test_numbers_that_may_be_degrees_or_a_small_map_are_said(tmp_path, capsys, places):
    read(made(tmp_path, *(f"@{one}@{two}@.png" for one, two in places)))
    said = capsys.readouterr().out
    assert "look like degrees" in said and "taken for metres" in said and said.count("\n") == 1


NO_FIX, FAR_OFF = (0.0, 0.0), (17056881.0, 79.99)


@pytest.mark.parametrize("degrees", [NO_FIX, FAR_OFF, (95.0, -79.99), (86.0, -79.99), (-84.0, 10.0), (40.0, 190.0)])
def test_gps_of_no_place_is_no_position_and_the_file_is_named(tmp_path, capsys, degrees):
    for number in range(3):
        exif = gps(*degrees) if number == 2 else gps(40.44 + number / 1000, -79.99)
        for role in ("database", "queries"):
            draw_image(tmp_path / "test" / role / f"{number}.jpg", (16, 12), number, exif)
    assert position_in_exif(tmp_path / "test" / "database" / "2.jpg") is None
    text = refusal(read_folder, tmp_path, "test")
    assert re.match(r"2 of 6 images have no position, first \S+2\.jpg \(its GPS says", text)
    places = read(tmp_path)
    assert np.isnan(places.database_positions).all(axis=1).tolist() == [False, False, True] and places.zone == "17N"
    said = capsys.readouterr().out
    assert "1 of 3 images have no position" in said and "2.jpg (its GPS says" in said and said.count("\n") == 1


def test_uploads_with_gps_0_0_have_no_position(tmp_path):
    for degrees, found in ((NO_FIX, None), ((0.0, 6.5), (0.0, 6.5)), ((51.5, 0.0), (51.5, 0.0))):
        with Image.open(draw_image(tmp_path / "a.jpg", (16, 12), 0, gps(*degrees))) as image:
            assert degrees_in_exif(image) == found


@pytest.mark.parametrize("letters", ["SW", "sw", "S\0W\0"])
def test_letters_of_the_gps_in_any_case(tmp_path, letters):
    pair = [letters[: len(letters) // 2], letters[len(letters) // 2 :]]
    found = position_in_exif(draw_image(tmp_path / "a.jpg", (16, 12), 0, gps(34.6037, 58.3816, pair)))
    wanted = from_degrees(-34.6037, -58.3816)  # Buenos Aires
    assert (found.easting, found.northing, found.zone) == (
        pytest.approx(wanted.easting, abs=0.1), pytest.approx(wanted.northing, abs=0.1), "21S",
    )  # fmt: skip


def across(tmp_path, places):
    """A folder with a table of degrees; gives positions in the order of the places, and the zone."""
    names = [f"{number}.jpg" for number in range(len(places))]
    made(tmp_path, *names)
    rows = [f"{name},{latitude},{longitude}" for name, (latitude, longitude) in zip(names, places, strict=True)]
    (tmp_path / "positions.csv").write_text("\n".join(["image,latitude,longitude", *rows]))
    found = read(tmp_path)
    return found.database_positions, found.zone


@pytest.mark.parametrize(
    ("places", "zone"),
    [
        ([(40.44, -78.001), (40.44, -78.0005), (40.44, -77.9995)], "17N"),
        ([(40.44, -78.0005), (40.44, -77.9995), (40.44, -77.999)], "18N"),
        ([(0.0001, -78.5), (-0.0001, -78.5), (-0.0002, -78.5)], "17S"),
        ([(0.0001, -78.5), (0.0002, -78.5), (-0.0001, -78.5)], "17N"),
        ([(60.39, 2.999), (60.39, 3.001), (60.39, 3.002)], "32N"),  # Norway's wide zone
        ([(-16.5, 179.999), (-16.5, -179.999), (-16.5, -179.998)], "1S"),  # the date line
        ([(0.0001, -78.0001), (0.0001, -77.9999), (-0.0001, -78.0001), (-0.0001, -77.9999)], "17N"),
    ],
)
def test_a_folder_across_a_border_is_in_the_zone_of_most(tmp_path, capsys, places, zone):
    found, of = across(tmp_path, places)
    assert of == zone
    said = capsys.readouterr().out
    assert f"converted into {zone}" in said and said.count("\n") == 1
    # Metres between images are those on the ground, and lead back to their degrees.
    for one, (latitude, longitude) in zip(found, places, strict=True):
        back = utm.to_latlon(*one, int(zone[:-1]), northern=zone[-1] == "N", strict=False)
        assert back[0] == pytest.approx(latitude, abs=2e-6)
        assert (back[1] - longitude + 180) % 360 - 180 == pytest.approx(0, abs=2e-6)
    first, second = np.radians(places[:2])
    east = ((second[1] - first[1] + np.pi) % (2 * np.pi) - np.pi) * np.cos(first[0]) * 6_378_137
    north = (second[0] - first[0]) * 6_378_137
    assert np.hypot(*(found[1] - found[0])) == pytest.approx(np.hypot(east, north), rel=0.01)


def test_one_zone_alone_stays_as_it_is(tmp_path, capsys):
    found, zone = across(tmp_path, [(40.44, -79.99), (40.45, -79.99)])
    wanted = [from_degrees(40.44, -79.99), from_degrees(40.45, -79.99)]
    assert found.tolist() == [[each.easting, each.northing] for each in wanted] and zone == "17N"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "places",
    [
        [(40.44, -79.99), (40.45, -79.99), (48.86, 2.35)],  # two continents
        [(42.36, -71.06), (42.36, -71.06), (-33.45, -70.67)],  # of one longitude: Boston and Santiago
        [(52.52, 13.4), (52.52, 13.4), (40.42, -3.7)],  # Berlin and Madrid
    ],
)
def test_images_far_apart_are_refused(tmp_path, places):
    text = refusal(across, tmp_path, places)
    assert re.search(r"several UTM zones .*2\.jpg.* over 1,000 km from most: make a folder", text)


def test_one_row_with_latitude_and_longitude_exchanged_is_named(tmp_path):
    text = refusal(across, tmp_path, [(40.44, -79.99), (-79.99, 40.44), (40.45, -79.99)])
    assert re.search(r"1\.jpg, at latitude -79.99, .*: exchange its latitude and longitude", text)


def test_metres_without_a_zone_belong_to_no_zone_of_several(tmp_path):
    names = ["@735000@4477000@17@T@.jpg", "@735010@4477000@17@T@.jpg", "@240000@4477000@18@T@.jpg"]
    assert read(made(tmp_path, *names)).zone == "17N"
    assert "metres without a zone" in refusal(read, made(tmp_path, "@735010@4477000@.jpg"))


def test_positions_of_queries_and_database_are_in_one_zone(tmp_path):
    """A query 10 m from a database image, across the border."""
    border = from_degrees(40.44, -78.00001), from_degrees(40.44, -77.99999)
    assert [position.zone for position in border] == ["17N", "18N"]
    made(tmp_path, f"@{border[0].easting}@{border[0].northing}@17@T@.jpg")
    made(tmp_path, f"@{border[1].easting}@{border[1].northing}@18@T@.jpg", role="queries")
    places, _ = read_folder(tmp_path, "test")
    assert hits(places) == [[0]]
    assert np.hypot(*(places.database_positions[0] - places.query_positions[0])) == pytest.approx(1.70, abs=0.02)


def test_two_images_of_several_zones_are_read_with_their_own(tmp_path):
    files = [tmp_path / name for name in ("@735000@4477000@17@T@.jpg", "@240000@4477000@18@T@.jpg")]
    assert [position.zone for position in read_positions(files, tmp_path)] == ["17N", "18N"]
