"""Own images: positions from names, tables and GPS, and what is said where they are missing."""

import csv
import json
import re

import numpy as np
import pytest
from drawing import draw_image, gps
from loading import load, refusal
from scipy.io import loadmat

import main
from pittsburgh import read_places
from vpr.data.image_files import find_images
from vpr.data.layouts.folders import read_folder
from vpr.data.places import PlacesSpec, load_database, require_queries
from vpr.data.positions.coordinates import from_degrees, to_degrees
from vpr.data.positions.of_images import position_in_exif, position_in_name, read_positions
from vpr.runs.run import newest_run

# On a zone's central meridian easting is 500,000 m and northing 0.9996 of the meridian's length: 4,984,944.378 m from
# the equator to 45 degrees on WGS84.
KNOWN_DEGREES, KNOWN_METRES = (45.0, 3.0), (500_000, 0.9996 * 4_984_944.378)


def image(path, exif=None, number=0):
    return draw_image(path, (80, 64), number, exif)


def metres(positions):
    return [(position.easting, position.northing) for position in positions]


@pytest.fixture
def read(tmp_path):
    """Writes positions.csv and reads the positions of some images."""

    def positions(files, *lines):
        (tmp_path / "positions.csv").write_text("\n".join(lines))
        return read_positions(files, tmp_path)

    return positions


@pytest.mark.parametrize(
    ("name", "easting", "northing", "zone"),
    [
        ("@512000.25@4476000.5@.jpg", 512000.25, 4476000.5, None),
        ("@512000@4476000@17@T@40.44@-79.99@pano@.jpg", 512000, 4476000, "17N"),
        ("@512000@4476000@23@K@x.jpg", 512000, 4476000, "23S"),
        ("@1@2@text@.jpg", 1, 2, None),
    ],
)
def test_position_in_a_name(name, easting, northing, zone):
    position = position_in_name(name)
    assert (position.easting, position.northing, position.zone) == (easting, northing, zone)


@pytest.mark.parametrize("name", ["image.jpg", "@1@.jpg", "a@1@2@.jpg", "@east@north@.jpg", "@nan@2@.jpg", "@1.jpg"])
def test_names_without_a_position(name):
    assert position_in_name(name) is None


def test_degrees_are_those_of_a_known_place():
    assert metres([from_degrees(*KNOWN_DEGREES)]) == [pytest.approx(KNOWN_METRES, abs=1)]


@pytest.mark.parametrize(("degrees", "zone"), [(KNOWN_DEGREES, "31N"), ((-22.951916, -43.210487), "23S")])  # Rio
def test_degrees_and_metres_lead_to_each_other_and_the_exif_to_both(tmp_path, degrees, zone):
    wanted = from_degrees(*degrees)
    assert to_degrees(wanted.easting, wanted.northing, zone) == pytest.approx(degrees, abs=1e-6)
    found = position_in_exif(image(tmp_path / "a.jpg", gps(*degrees)))
    assert metres([found]) == [pytest.approx(*metres([wanted]), abs=0.1)] and found.zone == wanted.zone == zone


def test_images_without_gps_have_no_position(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    assert position_in_exif(image(tmp_path / "a.jpg")) is None
    assert position_in_exif(tmp_path / "text.jpg") is None


def make_city(root, base="", queries=3, database=20):
    """Database every 10 m, queries 2 m beside."""
    for index in range(database):
        image(root / base / "train" / "database" / f"sub{index % 2}" / f"@{10 * index}@0@.jpg", number=index)
    for index in range(queries):
        image(root / base / "train" / "queries" / f"@{10 * index}@2@.png", number=index)
    return root


@pytest.mark.parametrize("base", ["", "images"])
def test_a_folder_is_read_with_its_sub_folders(tmp_path, base):
    places, folder = read_folder(make_city(tmp_path / "city", base), "train")
    assert len(places.database_names) == 20 and len(places.query_names) == 3
    assert places.name == "city_train" and places.zone is None
    for name, position in zip(places.database_names, places.database_positions, strict=True):
        assert (folder / name).is_file()
        assert name.split("@")[1] == f"{position[0]:.0f}" and position[1] == 0
    for query, found in enumerate(places.positives()):
        x = places.query_positions[query, 0]
        wanted = [index for index, (east, _) in enumerate(places.database_positions) if abs(east - x) <= 24.9]
        assert found.tolist() == wanted


@pytest.mark.parametrize(
    ("heading", "lines"),
    [
        ("image,easting,northing", ["train/database/a.jpg,100,200", "b.jpg,110,200"]),
        ("Northing, note ,Image,Easting", ["200,x,train/database/a.jpg,100", "200,y,b.jpg,110"]),
    ],
)
def test_positions_from_a_table(tmp_path, read, heading, lines):
    files = [image(tmp_path / "train" / "database" / name) for name in ("a.jpg", "b.jpg")]
    assert metres(read(files, heading, *lines)) == [(100, 200), (110, 200)]


def test_positions_in_degrees_from_a_table(tmp_path, read):
    file = image(tmp_path / "train" / "database" / "a.jpg")
    found = read([file], "image,latitude,longitude", f"a.jpg,{KNOWN_DEGREES[0]},{KNOWN_DEGREES[1]}")
    assert metres(found) == [pytest.approx(KNOWN_METRES, abs=1)] and found[0].zone == "31N"


def test_the_name_comes_before_the_table_before_the_gps(tmp_path, read):
    folder = tmp_path / "train" / "database"
    files = [image(folder / name, gps(*KNOWN_DEGREES)) for name in ("@1@2@.jpg", "b.jpg", "c.jpg")]
    found = metres(read(files, "image,easting,northing", "@1@2@.jpg,7,7", "b.jpg,3,4"))
    assert found[:2] == [(1, 2), (3, 4)] and found[2] == pytest.approx(KNOWN_METRES, abs=1)


def test_missing_positions_are_counted_and_five_are_named(tmp_path):
    make_city(tmp_path)
    for index in range(7):
        image(tmp_path / "train" / "database" / f"unknown{index}.jpg")
    text = refusal(read_folder, tmp_path, "train")
    assert text.startswith("7 of 30 images") and text.count("unknown") == 5 and "@easting@northing@" in text


def test_an_empty_folder_says_what_is_wanted(tmp_path):
    (tmp_path / "train" / "database").mkdir(parents=True)
    assert "no images" in refusal(read_folder, tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("image,x,y\na.jpg,1,2\n", "easting"), ("name,easting,northing\na.jpg,1,2\n", "wanted image"), ("", "wanted"),
        ("image,easting,northing\na.jpg,1\n", "cannot be read"), ("image,easting,northing\na.jpg,one,2\n", "one"),
        ("image,latitude,longitude\na.jpg,95,2\n", "95"), ("image,easting,northing\na.jpg,inf,2\n", "inf"),
    ],
)  # fmt: skip
def test_a_damaged_table_is_one_line(tmp_path, read, content, word):
    text = refusal(read, [image(tmp_path / "train" / "database" / "a.jpg")], content)
    assert word in text and "positions.csv" in text


@pytest.fixture
def command(tmp_path):
    def run(mode, *flags):
        return main.main([
            f"--mode={mode}", "--dataset=folder", f"--root={tmp_path / 'city'}", "--arch=alexnet", "--fromscratch",
            "--num_clusters=4", "--threads=0", "--device=cpu", f"--dataPath={tmp_path}",
            f"--runsPath={tmp_path / 'runs'}", *flags,
        ])  # fmt: skip

    return run


@pytest.mark.slow
def test_a_folder_of_few_images_is_clustered_and_tested_but_not_trained_on(tmp_path, command, capsys):
    make_city(tmp_path / "city", database=15, queries=5)
    assert command("cluster") == 0
    assert command("test", "--split=train") == 0
    assert "city_train" in capsys.readouterr().out
    (tmp_path / "city" / "val").symlink_to(tmp_path / "city" / "train")
    assert command("train") == 2
    error = capsys.readouterr().err
    assert "15 database images" in error and len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_larger_folder_is_trained_on(tmp_path, command):
    """With a margin that every negative violates, each query gives a tuple."""
    make_city(tmp_path / "city", database=40, queries=8)
    (tmp_path / "city" / "val").symlink_to(tmp_path / "city" / "train")
    assert command("cluster") == 0
    assert command("train", "--nEpochs=1", "--margin=5") == 0
    assert command("test", "--resume") == 0
    run = newest_run(tmp_path / "runs")
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert int(row["tuples"]) == 8 and float(row["violating_per_tuple"]) == 10 and float(row["loss"]) > 1
    trained, tested = json.loads((run / "results.json").read_text())
    assert tested["recalls"] == trained["recalls"]
    assert (tested["database_photos"], tested["queries"], tested["spec"]) == (40, 8, "city_val")
    # A query is the image of its place, 2 m aside: the same noise, stored without loss.
    assert tested["recalls"]["1"] == 1


def test_a_folders_spec_is_read_back_as_the_same_places(tmp_path, command, capsys):
    city = make_city(tmp_path / "city")
    assert command("spec") == 0
    spec = city / "datasets" / "city_train.mat"
    assert "20 database images, 3 queries" in capsys.readouterr().out
    written, (places, _) = read_places(spec), read_folder(city, "train")
    assert (written.database_names, written.query_names) == (places.database_names, places.query_names)
    assert np.array_equal(written.database_positions, places.database_positions)
    assert np.array_equal(written.query_positions, places.query_positions)
    assert (written.positive_radius, written.training_positive_radius) == (25, 10)
    structure = loadmat(spec)["dbStruct"][0, 0]
    assert structure["utmDb"].shape == (2, 20) and structure["dbImageFns"].shape == (20, 1)


def test_nothing_to_write_a_spec_of(tmp_path, command, capsys):
    (tmp_path / "city").mkdir()
    assert command("spec") == 2
    assert "train, val or test" in capsys.readouterr().err
    assert main.main(["--mode=spec", f"--root={tmp_path}"]) == 2
    assert "no spec" in capsys.readouterr().err


def test_a_line_without_folders_that_fits_several_images_is_refused(tmp_path, read):
    """Cameras number images from 1 in each folder: a query is not where the database's image of the same name is."""
    files = [image(tmp_path / "test" / role / "000.jpg") for role in ("database", "queries")]
    lines = ["image,easting,northing", "000.jpg,100,200"]
    assert "000" in refusal(read, files[1:], *lines)  # each of the two alone as well
    text = refusal(read_folder, tmp_path, "test")
    assert "positions.csv: 000.jpg may be any of 2 images" in text
    found = read(files, *lines, "test/queries/000.jpg,300,400")
    assert metres(found) == [(100, 200), (300, 400)]  # one is left that the bare name can mean


def test_a_name_is_counted_once_though_links_lead_to_its_image_too(tmp_path):
    image(tmp_path / "train" / "database" / "a.jpg")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    (tmp_path / "positions.csv").write_text("image,easting,northing\na.jpg,1,2\n")
    for split in ("train", "val"):
        places, _ = read_folder(tmp_path, split)
        assert places.database_positions.tolist() == [[1, 2]]


@pytest.mark.parametrize(("second", "refused"), [("1,2", False), ("1,2.5", True), ("3,2", True)])
def test_an_image_with_two_positions_in_the_table_is_refused(tmp_path, read, second, refused):
    asked = [image(tmp_path / "train" / "database" / "a.jpg")], "image,easting,northing", "a.jpg,1,2", f"a.jpg,{second}"
    if refused:
        assert "positions.csv has two positions for a.jpg" in refusal(read, *asked)
    else:
        assert metres(read(*asked)) == [(1, 2)]


def test_images_in_linked_folders_are_found_and_loops_end(tmp_path):
    top, other = tmp_path / "city" / "database", tmp_path / "disk"
    wanted = [image(top / name) for name in ("a.jpg", "real/b.jpg", "real/deep/c.png")]
    for name in ("d.jpg", "more/e.jpg"):
        image(other / name)
    image(tmp_path / "city" / "queries" / "q.jpg")
    (top / "a_link_to_real").symlink_to(top / "real")  # sorts first; its images keep their own paths
    (top / "linked").symlink_to(other)
    (top / "linked_again").symlink_to(other)
    (top / "real" / "up").symlink_to(top)
    (top / "real" / "far_up").symlink_to(tmp_path / "city")
    (other / "back").symlink_to(top)
    (other / "more" / "itself").symlink_to(other / "more")
    (top / "nowhere").symlink_to(tmp_path / "missing")
    (top / "f.jpg").symlink_to(other / "d.jpg")
    wanted += [top / "f.jpg", top / "linked" / "d.jpg", top / "linked" / "more" / "e.jpg"]
    assert find_images(top) == sorted(wanted)


def test_hidden_files_are_no_images(tmp_path):
    wanted = image(tmp_path / "a.jpg")
    for name in ("._a.jpg", ".hidden.png", ".thumbnails/a.jpg", "sub/._b.jpg"):
        image(tmp_path / name)
    assert find_images(tmp_path) == [wanted]
    assert find_images(image(tmp_path / ".album" / "c.jpg").parent) == [tmp_path / ".album" / "c.jpg"]  # as asked for


@pytest.mark.parametrize(("metres", "refused"), [("@500@600@.jpg", True), ("@500000@4984000@.jpg", False)])
def test_local_metres_and_gps_do_not_mix(tmp_path, metres, refused):
    """UTM metres in a name without a zone are taken to be of the others' zone; local ones cannot be."""
    image(tmp_path / "train" / "database" / metres)
    image(tmp_path / "train" / "database" / "b.jpg", gps(*KNOWN_DEGREES))
    if refused:
        text = refusal(read_folder, tmp_path, "train")
        assert re.search(r"1 of 2 images .* local metres, the first 500 600, .* zone 31N", text)
    else:
        assert read_folder(tmp_path, "train")[0].zone == "31N"


@pytest.mark.parametrize(
    "database", ["database", "db", "gallery", "index", "ref", "reference", "references", "Gallery", "DB"]
)
@pytest.mark.parametrize("queries", ["queries", "query", "Query"])
def test_folders_of_a_split_may_have_other_usual_names(tmp_path, database, queries):
    image(tmp_path / "test" / database / "@1@2@.jpg")
    image(tmp_path / "test" / queries / "@1@3@.jpg")
    places, _ = read_folder(tmp_path, "test")
    assert places.database_names == [f"test/{database}/@1@2@.jpg"]
    assert places.query_names == [f"test/{queries}/@1@3@.jpg"]
    images = load_database(PlacesSpec("folder", tmp_path), "test", split_required=True)
    assert images.places.database_names == places.database_names  # and no query


@pytest.mark.parametrize(("first", "second"), [("database", "gallery"), ("db", "index"), ("queries", "query")])
def test_two_folders_that_may_be_the_same_are_refused(tmp_path, first, second):
    for n, name in enumerate({"database", "queries", first, second}):
        image(tmp_path / "test" / name / "@1@2@.jpg", number=n)
    if first == "db":
        (tmp_path / "test" / "database" / "@1@2@.jpg").unlink()
    assert f"has images in {first} and in {second}" in refusal(read_folder, tmp_path, "test")
    (tmp_path / "test" / second / "@1@2@.jpg").unlink()  # which then is of no matter
    database = "db" if first == "db" else "database"
    assert read_folder(tmp_path, "test")[0].database_names == [f"test/{database}/@1@2@.jpg"]


def test_a_folder_that_has_two_names_is_one(tmp_path):
    image(tmp_path / "test" / "gallery" / "@1@2@.jpg")
    (tmp_path / "test" / "database").symlink_to("gallery")
    assert read_folder(tmp_path, "test")[0].database_names == ["test/database/@1@2@.jpg"]


def test_the_folder_that_is_wanted_is_named(tmp_path):
    image(tmp_path / "test" / "database" / "@1@2@.jpg")
    image(tmp_path / "test" / "probe" / "@1@2@.jpg")
    text = refusal(require_queries, load(tmp_path, "folder"))
    assert f"wanted images in {tmp_path / 'test' / 'queries'}; its folders are database, probe" in text
    (tmp_path / "test" / "database").rename(tmp_path / "test" / "map")
    text = refusal(read_folder, tmp_path, "test")
    assert re.search(r"test/database has no images .*; its folders are map, probe: put some there", text)
