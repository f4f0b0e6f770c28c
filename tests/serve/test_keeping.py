"""Images that requests add and remove."""

import contextlib
import errno
import unicodedata
import urllib.parse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from asking import PNG, as_bytes, form, serving
from drawing import draw_image, gps
from PIL import Image

from vpr.common.errors import UserError
from vpr.data.positions.coordinates import from_degrees, metres_in_zone
from vpr.database.engine import Source, WantedIndex, WrittenByAnother
from vpr.database.faiss_engine import open_engine
from vpr.database.records import record_id

POSITION = "easting=585500&northing=4477200"


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    return as_bytes(draw_image(tmp_path_factory.mktemp("new") / "new.png", (80, 64), 77))


@pytest.fixture
def uploads(tmp_path):
    return tmp_path / "uploads"


@pytest.fixture
def writable(serve, uploads):
    return serve(writable=True, uploads=uploads)


@pytest.fixture(scope="module")
def other(images):
    """Another image that the database does not have."""
    return as_bytes(Image.open(images[1][2]).transpose(Image.Transpose.FLIP_LEFT_RIGHT))


@pytest.fixture(scope="module")
def unchanged(shared_locator, tmp_path_factory):
    """A writable server to which nothing is added, and its folder."""
    uploads = tmp_path_factory.mktemp("here") / "uploads"
    with serving(shared_locator, writable=True, uploads=uploads) as client:
        yield client, uploads


@pytest.fixture
def refusing(unchanged):
    """A writable server that nothing was added to at the end of a test."""
    client, uploads = unchanged
    yield client
    assert not uploads.exists() and client("GET", "/ready")[1]["images"] == 10


def add(client, name, content, position=POSITION):
    return client("POST", f"/images?name={urllib.parse.quote(name)}&{position}", content, PNG)


def best(client, image, query=""):
    return client.locate(image, f"?top=1{query}")[1]["matches"][0]


def files_in(folder):
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def test_nothing_is_added_or_removed_where_that_is_not_wanted(client, new):
    status, said, _ = add(client, "new.png", new)
    assert status == 403 and "--writable" in said["error"]
    assert client("DELETE", best(client, new)["image"])[0] == 403 and client("GET", "/ready")[1]["images"] == 10


def test_an_image_that_is_added_is_found_until_it_is_removed(writable, new, uploads):
    assert best(writable, new)["distance"] > 0.05
    status, told, _ = add(writable, "street/new.png", new)
    assert status == 201 and told["new"] and told["images"] == 11
    match = best(writable, new)
    assert match["name"] == "street/new.png" and match["distance"] == pytest.approx(0, abs=1e-3)
    assert (match["easting"], match["northing"], match["id"]) == (585500, 4477200, told["id"])
    assert writable("GET", match["image"])[0] == 200 and "street/new.png" in writable("GET", "/map")[1]["names"]
    (file,) = files_in(uploads)
    assert file.endswith("/street/new.png") and (uploads / file).read_bytes() == new
    status, told, _ = writable("DELETE", match["image"])
    assert status == 200 and told["images"] == 10 and not files_in(uploads)
    assert best(writable, new)["name"] != "street/new.png"
    assert writable("DELETE", match["image"])[0] == 404 and writable("GET", match["image"])[0] == 404
    assert "street/new.png" not in writable("GET", "/map")[1]["names"]


def test_an_image_replaces_that_of_its_name(writable, new, other, uploads):
    shown = []
    for number, content in enumerate((new, other)):
        status, told, headers = add(writable, "x.png", content)
        assert (status, told["new"], told["images"]) == (200 if number else 201, not number, 11)
        address = f"/images/{told['id']}"
        assert headers.get("location") == (None if number else address)
        shown.append(writable("GET", address, headers={"if-none-match": shown[0][2]["etag"]} if shown else {}))
    assert [each[0] for each in shown] == [200, 200] and shown[0][1] != shown[1][1], "not the picture of before"
    assert best(writable, other)["name"] == "x.png" and best(writable, new)["name"] != "x.png"
    assert len(files_in(uploads)) == 1
    assert best(writable, other, "&near=40.44,-79.99,90000")["name"] == "x.png"


@pytest.mark.parametrize(
    "names", [("a.png", "b.png"), ("a/x.png", "a/y.png"), ("x.png", "X.png"), ("x.png", "x.png/y.png")]
)
def test_two_names_of_one_picture_have_a_file_each(writable, new, other, uploads, names):
    ids = [add(writable, name, new)[1]["id"] for name in names]
    assert len({file.lower().split("/")[0] for file in files_in(uploads)}) == 2, "a folder each, on any file system"
    assert add(writable, names[0], other)[0] == 200 and len(files_in(uploads)) == 2  # replaced
    assert [writable("GET", f"/images/{number}")[0] for number in ids] == [200, 200]
    assert writable("DELETE", f"/images/{ids[0]}")[0] == 200
    assert writable("GET", f"/images/{ids[1]}")[0] == 200 and len(files_in(uploads)) == 1
    assert best(writable, new, "&agreement=true")["name"] == names[1]
    assert writable("DELETE", f"/images/{ids[1]}")[0] == 200 and not list(uploads.iterdir())


@pytest.mark.parametrize(
    ("error", "wanted"), [(UserError("the disk is full"), 503), (WrittenByAnother("/x is being written"), 409)]
)
def test_a_change_that_the_engine_refuses_is_none(writable, locator, new, uploads, monkeypatch, error, wanted):
    """Who writes beside another program is not told to try again for ever; the server answers on."""
    number = add(writable, "kept.png", new)[1]["id"]

    def refuses(*_):
        raise error

    monkeypatch.setattr(locator.engine, "add", refuses)
    monkeypatch.setattr(locator.engine, "remove", refuses)
    for status, said, headers in (add(writable, "other.png", new), writable("DELETE", f"/images/{number}")):
        assert status == wanted and str(error) not in said["error"] and ("retry-after" in headers) == (wanted == 503)
    assert writable("GET", f"/images/{number}")[0] == 200 and len(files_in(uploads)) == 1


def test_a_conflict_of_writers_stops_neither_and_ready_tells_what_is_there(make_locator, images, new, tmp_path):
    """Another process holds the index, removes images, and writes the rest anew."""
    theirs = make_locator().engine

    def opened():
        source = Source("", tmp_path / "index.h5", "", theirs.kept.shape[1], {"model": "this"}, {})
        return open_engine(source, WantedIndex())

    with contextlib.closing(opened()) as first:
        first.add(theirs.records, theirs.kept)
    with contextlib.closing(opened()) as own, contextlib.closing(opened()) as other:
        locator, image = make_locator(engine=own), as_bytes(images[1][4])
        with serving(locator, writable=True, uploads=tmp_path / "uploads") as client:
            for gone in (["a/0.png"], ["a/1.png", "a/2.png", "a/3.png"]):
                other.remove(gone)
                status, said, _ = add(client, "x.png", new)
                assert status == 409 and "another program" in said["error"] and best(client, image)["name"] == "a/4.png"
                assert client("GET", "/ready")[:2] == (200, {"status": "ready", "images": other.count()})
                assert len(client("GET", "/map")[1]["names"]) == other.count()
            other.finish([])
            other.close()
            assert add(client, "x.png", new)[0] == 409 and client("GET", "/ready")[1]["images"] == 6
            assert best(client, image)["name"] == "a/4.png" and add(client, "x.png", new)[0] == 201
            assert client("GET", "/ready")[1] == {"status": "ready", "images": 7}


def test_a_folder_of_an_earlier_layout_loses_only_the_file_that_is_removed(writable, new, uploads):
    """Files of one content shared a folder that was named by it."""
    add(writable, "one.png", new)
    (file,) = files_in(uploads)
    beside = (uploads / file).with_name("two.png")
    beside.write_bytes(new)
    assert writable("DELETE", best(writable, new)["image"])[0] == 200 and beside.is_file()


@pytest.mark.parametrize(
    "name", ["漢" * 80 + ".png", "x" * 96 + ".png", "é" * 96 + ".png", "นี้/ไม้.png", "हिन्दी.png", "a. b.png"]
)
def test_names_in_all_scripts_are_kept_up_to_what_a_disk_takes(writable, new, name):
    assert add(writable, name, new)[0] == 201 and best(writable, new)["name"] == unicodedata.normalize("NFC", name)
    assert writable("GET", best(writable, new)["image"])[0] == 200


def test_a_name_is_one_in_each_of_unicodes_forms(writable, locator, new, images):
    for form_of_name, status in (("NFD", 201), ("NFC", 200), ("NFD", 200)):
        told = add(writable, unicodedata.normalize(form_of_name, "Straße/café 1.png"), new)
        assert (told[0], told[1]["images"]) == (status, 11)
    assert best(writable, new)["name"] == unicodedata.normalize("NFC", "Straße/café 1.png")
    decomposed = unicodedata.normalize("NFD", "é.png")  # of a folder that another system wrote
    locator.engine.records = replace(locator.engine.records, names=[decomposed, *locator.engine.records.names[1:]])
    locator.records = locator.engine.records
    status, told, _ = add(writable, "é.png", new)
    assert (status, told["id"]) == (200, str(record_id(decomposed)))


def test_a_file_system_that_refuses_is_no_failure_of_the_server(writable, new, monkeypatch):
    def refuses(self, *rest, **named):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "exists", refuses)
    status, said, _ = add(writable, "x.png", new)
    assert status == 503 and list(said) == ["error", "code"]


def test_files_that_were_there_before_stay(writable, images):
    match = best(writable, as_bytes(images[1][3]))
    assert writable("DELETE", match["image"])[0] == 200 and images[1][3].is_file()
    assert best(writable, as_bytes(images[1][3]))["name"] != "a/3.png"


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/x.png", "a/../../x.png", "a//x.png", ".x.png", "a/.ssh/x.png", "x.png/", "x.jpg", "x", "C:\\x.png",
     "x\n.png", "x\0.png", "a/b/c/d/e/f/g/x.png", "x" * 101 + ".png", "a b;rm.png", "-", "~/x.png", "x.png ", "",
     "%2e%2e/x.png", "\u202egnp.png", "CON.png", "nul/a.png", "a/Lpt1.b.png", "com².png", "aux .png", "x .png",
     "\u0301e.png", "漢" * 90 + ".png", "漢" * 96 + ".png", "😀.png"],
)  # fmt: skip
def test_names_that_are_no_plain_ones_are_refused(refusing, new, name):
    body, headers = form(("image", "x.png", new), ("name", None, name.encode()), ("easting", None, b"1"),
                         ("northing", None, b"2"))  # fmt: skip
    status, said, _ = refusing("POST", "/images", body, headers)
    assert status == 400 and said["error"].startswith("name is wanted")


@pytest.mark.parametrize(
    ("position", "status"),
    [
        ("", 400), ("latitude=40", 400), ("easting=1", 400), ("latitude=x&longitude=1", 400),
        ("latitude=99&longitude=-80", 422), ("latitude=40&longitude=nan", 422), ("latitude=40&longitude=100", 422),
        ("easting=inf&northing=1", 400), ("easting=1e300&northing=1", 400), ("easting=nan&northing=1", 400),
        ("easting=1e7&northing=1e7", 422), ("easting=0&northing=0", 422), ("easting=4477000&northing=585000", 422),
        ("easting=585000&northing=-5e6", 422), ("easting=-79.99&northing=40.44", 422),
        ("latitude=0&longitude=0", 400), ("latitude=-40&longitude=-80", 422), ("latitude=86&longitude=-80", 422),
    ],
)  # fmt: skip
def test_a_position_is_wanted_that_exists_in_the_databases_zone(refusing, new, position, status):
    found, said, _ = add(refusing, "new.png", new, position)
    assert found == status and list(said) == ["error", "code"]


def test_damaged_images_are_not_added(refusing, new):
    assert add(refusing, "new.png", new[:100])[0] == 422


def test_the_position_may_come_as_degrees_in_the_form_or_in_the_exif(writable, new, tmp_path):
    body, headers = form(("image", "x", new), ("name", None, b"one.png"), ("latitude", None, b"40.44"),
                         ("longitude", None, b"-79.99"))  # fmt: skip
    assert writable("POST", "/images", body, headers)[0] == 201
    wanted, match = from_degrees(40.44, -79.99), best(writable, new)
    assert (match["easting"], match["northing"]) == pytest.approx((wanted.easting, wanted.northing))
    located = as_bytes(draw_image(tmp_path / "two.png", (80, 64), 78, gps(40.44, -79.99)))
    assert add(writable, "two.png", located, "")[0] == 201
    match = best(writable, located)
    assert (match["latitude"], match["longitude"]) == pytest.approx((40.44, -79.99), abs=1e-6)


@pytest.mark.parametrize("degrees", [(0.0, 0.0), (95.0, -79.99)])
def test_gps_of_a_receiver_without_a_fix_is_none(refusing, tmp_path, degrees):
    image = as_bytes(draw_image(tmp_path / "new.png", (80, 64), 77, gps(*degrees)))
    status, said, _ = add(refusing, "new.png", image, "")
    assert status == 400 and list(said) == ["error", "code"]


def test_degrees_become_metres_of_the_zone_that_is_wanted():
    here = metres_in_zone(40.44, -77.99, "17N")  # of 18N by itself
    assert here.zone == "17N" and here.easting > 750_000
    assert metres_in_zone(40.44, -77.99, None).zone == "18N"
    south = metres_in_zone(-0.001, -81.0, "17N")
    assert south.northing == pytest.approx(-110.6, abs=0.5) and south.easting == pytest.approx(500_000)
    for far in (-60.0, 100.0, 179.0):
        with pytest.raises(ValueError, match="outside"):
            metres_in_zone(40.44, far, "17N")


def test_a_database_without_any_positions_takes_images_without_one(make_locator, new, uploads):
    engine = make_locator().engine
    unplaced = replace(engine.records, positions=np.full((10, 2), np.nan), zone=None)
    locator = make_locator(engine=type(engine)(unplaced, engine.kept))
    with serving(locator, writable=True, uploads=uploads) as client:
        status, told, _ = add(client, "new.png", new, "")
        assert status == 201 and told["images"] == 11
        match = best(client, new)
        assert match["name"] == "new.png" and match["easting"] is None and match["latitude"] is None
        assert client("GET", "/map")[1]["images"] == 11
