"""Places and columns that requests change, and images that they add many at a time."""

import contextlib
import json

import pytest
from asking import PNG, as_bytes, form, serving
from drawing import draw_image
from PIL import Image

from vpr.common.errors import UserError
from vpr.database.engine import Source, WantedIndex, WrittenByAnother
from vpr.database.faiss_engine import open_engine
from vpr.database.records import record_id


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Three images that the database does not have."""
    folder = tmp_path_factory.mktemp("new")
    return [as_bytes(draw_image(folder / f"{n}.png", (80, 64), [9, n])) for n in range(3)]


@pytest.fixture(params=["plain", "files"])
def locator(request, make_locator, tmp_path):
    """A locator of the ten images, in memory and in files."""
    locator = make_locator()
    if request.param == "plain":
        yield locator
        return
    with contextlib.closing(opened(locator, tmp_path)) as engine:
        engine.add(locator.records, locator.engine.kept)
        engine.prepare_to_serve(writable=True)
        yield make_locator(engine=engine)


def opened(locator, folder):
    source = Source("", folder / "index.h5", "", locator.loaded.model.dim, {"model": "this"}, {})
    return open_engine(source, WantedIndex())


@pytest.fixture
def writable(serve, tmp_path):
    return serve(writable=True, uploads=tmp_path / "uploads")


def address(name):
    return f"/images/{record_id(name)}"


def names(client, image, query):
    return [match["name"] for match in client.locate(image, f"?top=20{query}")[1]["matches"]]


def listed(client, name):
    return client("GET", f"/images?prefix={name}")[1]["images"][0]


def test_a_place_is_changed_and_the_image_found_there(writable, images):
    image, before = as_bytes(images[1][3]), listed(writable, "a/3.png")
    status, told, _ = writable("PATCH", f"{address('a/3.png')}?latitude=40.45&longitude=-79.98")
    assert status == 200 and (told["latitude"], told["longitude"]) == (pytest.approx(40.45), pytest.approx(-79.98))
    assert told == listed(writable, "a/3.png") and told["columns"] == before["columns"] == {"night": "no"}
    best = writable.locate(image, "?near=40.45,-79.98,20")[1]["matches"]
    assert [match["name"] for match in best] == ["a/3.png"] and best[0]["distance"] == pytest.approx(0, abs=1e-3)
    assert best[0]["easting"] == told["easting"] != before["easting"]
    status, told, _ = writable("PATCH", f"{address('a/3.png')}?easting=585500.5&northing=4477200")
    assert (status, told["easting"], told["northing"]) == (200, 585500.5, 4477200)
    at = writable("GET", "/map")[1]
    assert at["images"] == 10 and at["easting"][at["names"].index("a/3.png")] == 585500.5
    assert writable("GET", address("a/3.png"))[0] == 200 and images[1][3].is_file()


def test_columns_are_changed_and_searched_by(writable, images):
    image, own = as_bytes(images[1][3]), address("a/3.png")
    status, told, _ = writable("PATCH", f"{own}?column=Night=yes&column=floor=03&column=height=2.5&column=of=a=b")
    assert status == 200 and told["columns"] == {"night": "yes", "floor": "03", "height": 2.5, "of": "a=b"}
    assert sorted(names(writable, image, "&where=night=yes")) == ["a/3.png", "b/7.png", "b/8.png", "b/9.png"]
    assert names(writable, image, "&where=height>=2&where=floor=3") == ["a/3.png"]
    assert listed(writable, "a/4.png")["columns"]["floor"] is None
    assert writable("PATCH", f"{own}?column=night=&easting=585100&northing=4477000")[1]["columns"]["night"] is None
    assert "a/3.png" not in names(writable, image, "&where=night!=x") and len(names(writable, image, "")) == 10


def test_what_is_changed_is_kept_in_files(make_locator, images, tmp_path):
    locator = make_locator()
    with contextlib.closing(opened(locator, tmp_path)) as engine:
        engine.add(locator.records, locator.engine.kept)
        engine.prepare_to_serve(writable=True)
        with serving(make_locator(engine=engine), writable=True, uploads=tmp_path / "uploads") as client:
            assert client("PATCH", f"{address('b/7.png')}?column=night=no&easting=585555&northing=4477111")[0] == 200
    with contextlib.closing(opened(locator, tmp_path)) as engine:
        row = engine.row_of["b/7.png"]
        assert engine.records.positions[row].tolist() == [585555, 4477111] and engine.count() == 10
        assert engine.records.columns["night"][row] == "no" and engine.edited
        assert (engine.descriptors([row])[0] == locator.engine.kept[7]).all() and not engine.damaged()
        assert engine.records.hashes[row].tobytes() == locator.records.hashes[7].tobytes()


@pytest.mark.parametrize("asked", ["/ready", "/map", "/images", "/locate", "/locate?session=a"])
def test_what_another_process_commits_is_seen_by_the_next_request_of_each_kind(
    make_locator, images, tmp_path, monkeypatch, asked
):
    monkeypatch.setattr("vpr.serve.service.CHECKED_SECONDS", 0.0)
    plain, image = make_locator(), as_bytes(images[1][9])
    with contextlib.closing(opened(plain, tmp_path)) as other:
        other.add(plain.records.only(range(9)), plain.engine.kept[:9])
        other.store.files.release()
        with contextlib.closing(opened(plain, tmp_path)) as own, serving(make_locator(engine=own)) as client:
            assert best_of(client, image) != "b/9.png" and client("GET", "/ready")[1]["images"] == 9
            other.add(plain.records.only([9]), plain.engine.kept[9:])
            other.finish()
            if asked.startswith("/locate"):
                found = client("POST", asked, image, PNG)[1]
                assert found["matches"][0]["name"] == "b/9.png" and found["images"] == 10
            else:
                told = client("GET", asked)[1]
                assert told == {"status": "ready", "images": 10} if asked == "/ready" else "b/9.png" in str(told)
            assert best_of(client, image) == "b/9.png"


def best_of(client, image):
    return client.locate(image, "?top=1")[1]["matches"][0]["name"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400), ("latitude=40", 400), ("easting=1", 400), ("latitude=x&longitude=1", 400), ("name=x.png", 400),
        ("latitude=0&longitude=0", 400), ("easting=nan&northing=1", 400), ("latitude=40&longitude=100", 422),
        ("easting=0&northing=0", 422), ("column=night", 400), ("column==yes", 400), ("column=%20=yes", 400),
        ("column=night!=yes", 400), ("column=" + "a" * 201, 400), ("&".join(["column=a=b"] * 33), 400),
    ],
)  # fmt: skip
def test_changes_that_mean_nothing_are_refused(writable, locator, query, status):
    before = locator.engine.records
    found, said, _ = writable("PATCH", f"{address('a/3.png')}?{query}")
    assert found == status and list(said) == ["error", "code"] and locator.engine.records is before


def test_only_images_that_are_there_are_changed_and_only_where_that_is_wanted(client, writable, locator, monkeypatch):
    asked = f"{address('a/3.png')}?column=night=yes"
    assert client("PATCH", asked)[0] == 403 and "--writable" in client("PATCH", asked)[1]["error"]
    assert [writable("PATCH", f"/images/{number}?column=a=b")[0] for number in ("1", "x", "9" * 30)] == [404] * 3
    for error, wanted in ((UserError("the disk is full"), 503), (WrittenByAnother("/x is being written"), 409)):

        def refuses(*_, error=error):
            raise error

        monkeypatch.setattr(locator.engine, "add", refuses)
        status, said, headers = writable("PATCH", asked)
        assert status == wanted and str(error) not in said["error"] and ("retry-after" in headers) == (wanted == 503)


def test_a_database_has_only_so_many_columns(writable):
    for first in (0, 30, 60):
        wanted = "&".join(f"column=c{n}={n}" for n in range(first, first + 30))
        status = writable("PATCH", f"{address('a/3.png')}?{wanted}")[0]
        assert status == (422 if first == 60 else 200)
    assert writable("PATCH", f"{address('a/4.png')}?column=c1=7")[0] == 200


def test_columns_come_with_an_image_in_the_address_and_in_a_form(writable, new):
    place = "easting=585500&northing=4477200"
    told = writable("POST", f"/images?name=x.png&{place}&column=night=yes&column=floor=3", new[0], PNG)
    assert told[0] == 201 and listed(writable, "x.png")["columns"] == {"night": "yes", "floor": 3.0}
    assert names(writable, new[0], "&where=floor=3") == ["x.png"]
    fields = [("name", b"y.png"), ("latitude", b"40.44"), ("longitude", b"-79.99"), ("column", b"night=yes"),
              ("column", b"weather=rain")]  # fmt: skip
    body, headers = form(("image", "x", new[1]), *((name, None, value) for name, value in fields))
    assert writable("POST", "/images", body, headers)[0] == 201
    assert names(writable, new[1], "&where=weather=rain") == ["y.png"]
    assert sorted(names(writable, new[1], "&where=night=yes")) == ["b/7.png", "b/8.png", "b/9.png", "x.png", "y.png"]
    assert writable("POST", f"/images?name=z.png&{place}&column=night", new[2], PNG)[0] == 400


def batch(client, contents, said):
    parts = [("image", f"{n}.png", content) for n, content in enumerate(contents)]
    body, headers = form(*parts, ("images", None, said if isinstance(said, bytes) else json.dumps(said).encode()))
    return client("POST", "/images/batch", body, headers)


def test_several_images_are_added_in_one_commit_each_answered_by_itself(writable, locator, new, tmp_path):
    adds, add = [], locator.engine.add

    def noted(records, *rest):
        adds.append(list(records.names))
        add(records, *rest)

    locator.engine.add = noted
    place = {"easting": 585500, "northing": 4477200}
    small = as_bytes(Image.new("RGB", (4, 4)))
    sent = [
        (new[0], {"name": "n/0.png", **place, "column": ["night=yes"]}, 201),
        (b"nonsense", {"name": "n/1.png", **place}, 415),
        (small, {"name": "n/2.png", **place}, 422),
        (new[1], {"name": "n/3.png", "latitude": 40.44, "longitude": -79.99}, 201),
        (new[1], {"name": "../4.png", **place}, 400),
        (new[1], {"name": "n/5.png"}, 400),
        (new[1], {**place}, 400),
        (new[1], {"name": "n/7.png", "easting": "x", "northing": 1}, 400),
        (new[1], ["n/8.png"], 400),
        (new[1], {"name": "n/9.png", **place, "column": {"night": "yes"}}, 400),
        (new[2], {"name": "n/0.png", **place}, 201),
        (new[2], {"name": "a/1.png", **place}, 200),
    ]
    status, found, _ = batch(writable, [content for content, *_ in sent], [said for _, said, _ in sent])
    assert status == 200 and adds == [["n/0.png", "n/3.png", "a/1.png"]]
    for answer, (_, _, wanted) in zip(found["answers"], sent, strict=True):
        assert answer.get("status", 201 if answer.get("new") else 200) == wanted, answer
    assert {answer["images"] for answer in found["answers"] if "id" in answer} == {12}
    assert [answer["new"] for answer in found["answers"] if "id" in answer] == [True, True, True, False]
    assert set(names(writable, new[2], "")[:2]) == {"n/0.png", "a/1.png"}, "of two of one name the last stays"
    assert names(writable, new[1], "&where=night=yes")[:1] != ["n/0.png"]
    assert len([path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]) == 3
    assert writable("DELETE", f"/images/{found['answers'][0]['id']}")[1]["images"] == 11


def test_a_batch_that_the_engine_refuses_changes_nothing(writable, locator, new, tmp_path, monkeypatch):
    def refuses(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(locator.engine, "add", refuses)
    said = [{"name": f"{n}.png", "easting": 585500, "northing": 4477200} for n in range(2)]
    status, told, headers = batch(writable, new[:2], said)
    assert status == 503 and "disk" not in told["error"] and "retry-after" in headers
    assert not [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()]
    assert writable("GET", "/ready")[1]["images"] == 10


@pytest.mark.parametrize("said", [[], [{}], {}, "x", b"", b"[", b"[" * 60_000, [{}] * 3, b"[{}, " + b"1" * 9000 + b"]"])
def test_a_batch_wants_a_list_of_what_is_said_of_its_images(writable, new, said):
    status, told, _ = batch(writable, new[:2], said)
    assert status == 400 and list(told) == ["error", "code"]


def test_a_batch_has_as_many_images_as_are_located_at_once(client, writable, new):
    assert batch(writable, [new[0]] * 17, [{}] * 17)[0] == 413
    assert batch(client, new[:1], [{"name": "x.png"}])[0] == 403
