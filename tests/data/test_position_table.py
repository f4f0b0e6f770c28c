"""positions.csv as people and programs write it: read as it is meant, or one line that names the row."""

import pytest
from drawing import draw_image, gps
from loading import refusal

from vpr.data.layouts.folders import read_database
from vpr.data.positions.coordinates import from_degrees
from vpr.data.positions.table import read_table

PITTSBURGH, SYDNEY = (40.4406, -79.9959), (-33.8568, 151.2153)


@pytest.fixture
def table(tmp_path):
    """Writes a table and reads it."""

    def read(heading, *rows):
        (tmp_path / "positions.csv").write_text("\n".join([heading, *rows]) + "\n", encoding="utf-8")
        return read_table(tmp_path / "positions.csv")

    return read


def places(table):
    return {name: (position.easting, position.northing, position.zone) for name, position in table.items()}


@pytest.mark.parametrize("cells", [",", "n/a,n/a", "NaN,nan", "-,-", " , ", "NULL,null", "unknown,unknown", "?,"])
@pytest.mark.parametrize("columns", ["easting,northing", "latitude,longitude"])
def test_blank_cells_are_no_position(table, columns, cells):
    found = table(f"image,{columns}", "a.jpg,10,20", f"b.jpg,{cells}", "c.jpg,11,21")
    assert list(found) == ["a.jpg", "c.jpg"]


def test_rows_without_anything_are_passed_over(table):
    assert places(table("image,easting,northing", ",,", "", "a.jpg,1,2", ",,,")) == {"a.jpg": (1, 2, None)}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a.jpg,1,2", "b.jpg,3,"], ["line 3", "b.jpg", "easting alone"]),
        (["a.jpg,1,2", "", "b.jpg,,4"], ["line 4", "northing alone"]),
        (["a.jpg,1,2", ",3,4"], ["line 3", "of no image"]),
        (["a.jpg,1,2", 'b.jpg,"37,7","4,5"'], ["line 3", "'37,7'", "37.7"]),
        (["a.jpg,1,2", "b.jpg,37,7,4,5"], ["line 3", "5 cells", "comma"]),
        (["a.jpg,1,2", "b.jpg,1 km,2"], ["line 3", "'1 km'"]),
        (["a.jpg,1,2", "b.jpg,inf,2"], ["line 3", "'inf'"]),
    ],
)
def test_a_row_that_cannot_be_read_is_named(table, rows, words):
    text = refusal(table, "image,easting,northing", *rows)
    assert all(word in text for word in [*words, "positions.csv"])


def test_notes_behind_the_last_column_do_no_harm(table):
    assert places(table("image,easting,northing", "a.jpg,1,2,", "b.jpg,3,4,at the church")) == {
        "a.jpg": (1, 2, None), "b.jpg": (3, 4, None),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("latitude", "longitude", "degrees"),
    [
        ("40°26'N", "79°59'W", (40 + 26 / 60, -79 - 59 / 60)),
        ("40° 26' 46.2\" N", "79° 59' 45.24\" W", (40 + 26 / 60 + 46.2 / 3600, -79 - 59 / 60 - 45.24 / 3600)),
        ("N 40° 26.77′", "w79°59.754′", (40 + 26.77 / 60, -79 - 59.754 / 60)),
        ("40°26′46″N", "79°59''W", (40 + 26 / 60 + 46 / 3600, None)),
        ("33.8568S", "151.2153 E", SYDNEY),
        ("-33.8568°", "151.2153°", SYDNEY),
        ("+40.4406", " -79.9959 ", PITTSBURGH),
        ("4.04406e1", "-79.9959", PITTSBURGH),
    ],
)  # fmt: skip
def test_degrees_as_text(table, latitude, longitude, degrees):
    row = 'a.jpg,"{}","{}"'.format(latitude.replace('"', '""'), longitude.replace('"', '""'))
    if None in degrees:  # two marks of seconds behind minutes: not read, and named
        assert "line 2" in refusal(table, "image,latitude,longitude", row)
        return
    (found,) = table("image,latitude,longitude", row).values()
    wanted = from_degrees(*degrees)
    assert (found.easting, found.northing) == pytest.approx((wanted.easting, wanted.northing), abs=1e-3)
    assert found.zone == wanted.zone


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("79°59'W,40°26'N", "no latitude"),  # exchanged, by their letters
        ("40°75'N,79°59'W", "below 60"),
        ("-40.4S,79W", "a sign or a letter"),
        ("151.2153,-33.8568", "exchange latitude and longitude"),
        ("-122.4194,37.7749", "exchange latitude and longitude"),
        ("4477000,585000", "easting and northing"),  # metres
        ("95,200", "no place on the Earth"),
        ("40.4,280.0", "from -180 to 180"),
        ("86,10", "beyond UTM"),
        ("-85,10", "beyond UTM"),
    ],
)
def test_degrees_of_no_place_are_named_with_their_line_and_the_reason(table, cells, words):
    text = refusal(table, "image,latitude,longitude", "a.jpg,40.44,-79.99", f"b.jpg,{cells}")
    assert words in text and "line 3" in text


def test_latitude_and_longitude_0_are_no_position_but_local_metres_0_are(table):
    assert list(table("image,latitude,longitude", "a.jpg,0,0", "b.jpg,0.0,6.5", "c.jpg,0.000,-0.0")) == ["b.jpg"]
    assert places(table("image,easting,northing", "a.jpg,0,0")) == {"a.jpg": (0, 0, None)}


@pytest.mark.parametrize("heading", ["zone", "utm_zone"])
@pytest.mark.parametrize(("cell", "zone"), [("17N", "17N"), ("17T", "17N"), ("17 t", "17N"), ("56H", "56S")])
def test_a_zone_column_is_read(table, heading, cell, zone):
    found = table(f"image,easting,northing,{heading}", f"a.jpg,585000,4477000,{cell}", "b.jpg,585010,4477000,")
    assert places(found) == {"a.jpg": (585000, 4477000, zone), "b.jpg": (585010, 4477000, None)}


@pytest.mark.parametrize(
    "rows",
    [
        ["a.jpg,585000,4477000,north car park", "b.jpg,585010,4477000,17N"],
        ["a.jpg,585000,4477000,1", "b.jpg,585010,4477000,2"],  # says no hemisphere: parking zones
        ["a.jpg,10,20,1C", "b.jpg,30,40,2D"],  # local metres
        ["a.jpg,585000,4477000,99N"],
    ],
)
def test_a_column_of_other_zones_is_none_of_utm(table, rows):
    assert {position.zone for position in table("image,easting,northing,zone", *rows).values()} == {None}


def test_degrees_keep_their_zone_beside_a_zone_column(table):
    found = table("image,latitude,longitude,zone", "a.jpg,40.44,-79.99,centre", "b.jpg,40.44,-79.99,17N")
    assert {position.zone for position in found.values()} == {"17N"}


def test_of_metres_and_degrees_the_first_that_is_not_blank_counts(table):
    found = table("image,easting,northing,latitude,longitude", "a.jpg,1,2,40.44,-79.99", "b.jpg,,,40.44,-79.99")
    assert [position.zone for position in found.values()] == [None, "17N"] and found["a.jpg"].easting == 1


@pytest.fixture
def said(tmp_path, capsys):
    """What is said of a table when a folder's database is read."""

    def read(*rows):
        (tmp_path / "positions.csv").write_text("\n".join(["image,latitude,longitude", *rows]) + "\n")
        read_database(tmp_path, "test")
        return capsys.readouterr().out

    return read


def draw(folder, *names):
    for name in names:
        draw_image(folder / name, (16, 12), 0)


def test_paths_as_windows_writes_them_name_their_images(tmp_path, said):
    draw(tmp_path, "street/a.png")
    assert said("street\\a.png,40.44,-79.99") == ""
    assert said("./street/a.png,40.44,-79.99") == ""


def test_names_of_no_image_are_counted_and_the_first_is_named(tmp_path, said):
    draw(tmp_path, "a.png", "sub/b.png")
    good = ["a.png,40.44,-79.99", "sub/b.png,40.45,-79.99"]
    assert said(*good) == ""
    text = said(*good, "c.png,40.46,-79.99", "sub/a.png,40.47,-79.99")
    assert "2 of 4 images in" in text and "first c.png" in text and text.count("\n") == 1
    # Images of other splits are there, though they are not read.
    draw(tmp_path, "test/database/d.png")
    assert said(*good, "test/database/d.png,40.46,-79.99") == ""
    assert said("a.png,40.44,-79.99", "b.png,40.44,-79.99", "d.png,40.46,-79.99") == ""


def test_a_table_with_latitude_and_longitude_exchanged_is_refused_where_the_gps_shows_it(tmp_path, said):
    rows = []
    for number in range(3):
        place = (48.8566 + number / 1000, 2.3522)  # Paris, which is a place either way round
        draw_image(tmp_path / f"{number}.jpg", (16, 12), number, gps(*place) if number else None)
        rows.append((f"{number}.jpg", *place))
    assert said(*(f"{name},{one},{two}" for name, one, two in rows)) == ""
    text = refusal(said, *(f"{name},{two},{one}" for name, one, two in rows))
    assert "exchange latitude and longitude" in text and "1.jpg" in text
    elsewhere = said(*(f"{name},{one - 10},{two}" for name, one, two in rows))
    assert "the table is taken" in elsewhere and elsewhere.count("\n") == 1
    one_right = [f"{n},{one},{two}" if n == "2.jpg" else f"{n},{two},{one}" for n, one, two in rows]
    assert "over 1,000 km from most" in refusal(said, *one_right)  # Paris and the Indian Ocean


@pytest.mark.parametrize("places", [[(10, 20), (10.5, 20), (11, 20.5)], [(1.25, 2), (1.75, 2.5), (2.25, 2.75)]])
def test_metres_in_the_columns_of_degrees_are_asked_about(tmp_path, said, places):
    draw(tmp_path, *(f"{number}.jpg" for number in range(3)))
    text = said(*(f"{number}.jpg,{one},{two}" for number, (one, two) in enumerate(places)))
    assert "are they metres?" in text and text.count("\n") == 1
    assert said(*(f"{n}.jpg,{one},{two + 0.0012}" for n, (one, two) in enumerate(places))) == ""


@pytest.mark.parametrize("place", [(-79.9959, 40.4406), (-71.0589, 42.3601), (78.4867, 17.385)])
def test_places_near_a_pole_are_asked_about(tmp_path, said, place):
    """Pittsburgh, Boston and Hyderabad with latitude and longitude exchanged."""
    draw(tmp_path, "a.jpg")
    assert "swapped?" in said(f"a.jpg,{place[0]},{place[1]}")
    assert said(f"a.jpg,{place[1]},{place[0]}") == ""
