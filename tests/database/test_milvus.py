"""Milvus as an engine, by Milvus Lite in this process."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.engine_data import check, descriptors, images, names_of, open_milvus
from vpr.common.errors import UserError
from vpr.database import records as records_module
from vpr.database.engine import Source, WantedIndex
from vpr.database.filters import Condition, SearchFilter
from vpr.database.milvus import engine as milvus_engine

pytest.importorskip("milvus_lite")

DIM = 16
MODEL = {"weights": "abc", "dim": str(DIM)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of Milvus Lite for all tests, with a collection for each."""
    return tmp_path_factory.mktemp("lite") / "deep" / "map.db"


@pytest.fixture
def engine(file, request):
    opened = open_milvus(file, request.node.name.split("[")[0], DIM, MODEL)
    yield opened
    opened.close()


def test_it_finds_what_brute_force_finds_and_twice_is_once(engine):
    values, queries = descriptors(300, DIM, 0), descriptors(9, DIM, 1)
    for _ in range(2):
        engine.add(images(300), values)
        assert engine.count() == 300
        check(engine, values, queries, 20, range(300))
    assert engine.search(values, 1)[1].tolist() == [[0.0]] * 300, "of an image to itself"
    assert sorted(name for name in engine.records.names if name) == images(300).names


def test_records_come_back_as_they_went_in(file, engine):
    given = images(
        40,
        positions=np.array([[448000.25, 5411000.125]] * 30 + [[math.nan, math.nan]] * 10),
        folders=["/data/été"] * 40,
        columns={"weather": ['fog "x" {}\''] * 40, "floor": [None, 2.5, -1e300, 5.0] * 10, "silent": [None] * 40},
    )
    engine.add(given, descriptors(40, DIM, 0))
    with_new = engine.collection.name
    engine.finish()
    engine.close()
    again = open_milvus(file, with_new, DIM, MODEL)
    found = again.records.only([again.records.row_of[name] for name in given.names])
    for field in ("positions", "sizes", "modified", "hashes", "degrees"):
        np.testing.assert_array_equal(getattr(found, field), getattr(given, field))
    assert (found.names, found.zone, found.folders) == (given.names, given.zone, given.folders)
    assert found.columns == given.columns
    assert again.provenance == MODEL


def test_an_image_that_changed_takes_the_place_of_the_old_one(engine):
    values = descriptors(20, DIM, 0)
    engine.add(images(20), values)
    engine.add(images(1, first=4, sizes=np.array([77])), -values[4:5])
    values[4] = -values[4]
    check(engine, values, descriptors(3, DIM, 1), 20, range(20))
    assert engine.records.sizes[engine.records.row_of["street/00004.jpg"]] == 77
    assert engine.count() == 20


def test_removed_images_are_gone_for_this_process_and_the_next(file, engine):
    values = descriptors(50, DIM, 0)
    engine.add(images(50), values)
    engine.remove([f"street/{row:05}.jpg" for row in range(0, 50, 2)] + ["unknown.jpg"])
    check(engine, values, descriptors(3, DIM, 1), 40, range(1, 50, 2))
    before = names_of(engine.search(values, 1))
    again = open_milvus(file, engine.collection.name, DIM, MODEL)
    assert again.count() == engine.count() == 25
    assert names_of(again.search(values, 1)) == before


def test_rows_and_their_descriptors(file, engine):
    values = descriptors(30, DIM, 0)
    engine.add(images(30), values)
    engine.remove(["street/00003.jpg"])
    engine.add(images(1, first=5), -values[5:6])
    records = engine.records
    assert engine.next_row == len(records) == 29 and engine.rows().tolist() == list(range(29))
    assert engine.row_of == records.row_of
    again, kept = [f"street/{row:05}.jpg" for row in (5, 4, 8, 4)], engine.row_of
    found = engine.descriptors([kept[name] for name in again])
    assert np.array_equal(found, np.stack([-values[5], values[4], values[8], values[4]]).astype(np.float16))
    engine.add(images(1, first=7), -values[7:8])
    assert engine.row_of["street/00007.jpg"] == 29 and engine.next_row == 30 and engine.count() == 29
    assert np.array_equal(engine.descriptors([29]), -values[7:8].astype(np.float16))
    assert engine.descriptors([]).shape == (0, DIM)
    other = open_milvus(file, engine.collection.name, DIM, MODEL)
    row = kept["street/00004.jpg"]
    other.remove(["street/00004.jpg"])
    with pytest.raises(UserError, match=r"street/00004\.jpg has been removed"):
        engine.descriptors([kept["street/00008.jpg"], row])


def test_records_are_read_once_and_kept_in_step(engine, monkeypatch):
    values, asked, read = descriptors(9, DIM, 0), [], type(engine.collection).records
    monkeypatch.setattr(type(engine.collection), "records", lambda *about: asked.append(1) or read(*about))
    engine.add(images(6), values[:6])
    engine.prepare_to_serve(True)
    assert not asked and engine.records.names and len(asked) == 1
    engine.add(images(4, first=5), values[5:])
    engine.remove(["street/00002.jpg"])
    names, rows = engine.records.names, engine.rows()
    kept = [f"street/{number:05}.jpg" for number in (0, 1, 3, 4, 5, 6, 7, 8)]
    assert sorted(filter(None, names)) == kept and len(names) == 10 and len(asked) == 1
    assert {names[row]: row for row in rows} == engine.row_of and engine.next_row == 10
    assert engine.records.sizes[engine.row_of["street/00008.jpg"]] == 1008
    assert engine.records is engine.records and len(asked) == 1
    engine.add(images(2, first=8, names=["twice", "twice"]), values[:2])
    assert engine.row_of["twice"] == 11 and engine.records.names[10:] == ["", "twice"] and engine.count() == 9


def test_who_brings_a_collection_to_a_folder_knows_it_as_it_was_before_others_add(file, engine):
    """Processes that describe shares of what is new compare the folder with the same images."""
    source = Source(str(file), Path(), engine.collection.name, DIM, MODEL, {})
    engine.add(images(3), descriptors(3, DIM, 0))
    early, late = (milvus_engine.open_engine(source, WantedIndex(), anew) for anew in (True, False))
    engine.add(images(2, first=3), descriptors(2, DIM, 1))
    assert sorted(early.records.names) == images(3).names and sorted(late.records.names) == images(5).names


def test_a_column_that_was_removed_and_one_that_another_process_adds(file, engine):
    """An error where no image has the column now, and none where one has."""
    values, queries = descriptors(4, DIM, 0), descriptors(1, DIM, 1)
    engine.add(images(3, columns={"floor": [1.0, 2.0, 3.0]}), values[:3])
    engine.add(images(1, first=3, columns={"gate": ["north"]}), values[3:])
    assert len(engine.records) == 4
    engine.remove(["street/00003.jpg"])
    south = SearchFilter(where=(Condition("gate", "=", "south"),))
    for comparison in ("=", "!=", ">="):
        with pytest.raises(UserError, match="no column gate, found floor"):
            engine.search(queries, 1, SearchFilter(where=(Condition("gate", comparison, "south"),)))
    other = open_milvus(file, engine.collection.name, DIM, MODEL)
    other.add(images(1, first=3, columns={"gate": ["north"]}), values[3:])
    assert (engine.search(queries, 1, south).rows == -1).all()


def test_a_collection_is_read_in_pages(file, engine, monkeypatch):
    engine.add(images(100), descriptors(100, DIM, 0))
    monkeypatch.setattr("vpr.database.milvus.collection.PAGE", 7)
    assert sorted(open_milvus(file, engine.collection.name, DIM, MODEL).records.names) == images(100).names


# Points of the whole earth: the positions are made to give these degrees, so that no UTM zone limits them.
def on_the_earth(monkeypatch, count):
    random = np.random.default_rng(5)
    latitudes = np.degrees(np.arcsin(random.uniform(-1, 1, count)))
    latitudes[: count // 4] = random.uniform(88, 90, count // 4)
    longitudes = random.uniform(-180, 180, count)
    longitudes[count // 4 : count // 2] = random.choice([-179.9, 179.9], count // 4)
    latitudes[count // 4 : count // 2] = random.uniform(-1, 1, count // 4)
    monkeypatch.setattr(records_module, "degrees_of", lambda positions, _: positions)
    degrees = np.stack([latitudes, longitudes], axis=1)
    degrees[::10] = math.nan
    return images(count, positions=degrees), degrees


def metres(first, second):
    """The distance of two points on a sphere by the angle between their vectors."""
    ways = []
    for latitude, longitude in np.radians([first, second]):
        ways.append([math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude),
                     math.sin(latitude)])  # fmt: skip
    cross = np.linalg.norm(np.cross(*ways))
    return 6_371_008.8 * math.atan2(cross, np.dot(*ways))


@pytest.mark.parametrize("deepest", [16_384, 40])
def test_filters_are_those_of_brute_force_at_the_poles_and_the_date_line(engine, monkeypatch, deepest):
    monkeypatch.setattr(milvus_engine, "PAGE", deepest)
    given, degrees = on_the_earth(monkeypatch, 400)
    values, queries = descriptors(400, DIM, 0), descriptors(4, DIM, 1)
    engine.add(given, values)
    for near in [(89.9, 10.0, 150e3), (0.0, 179.95, 60e3), (0.2, -180.0, 90e3), (-90.0, 0.0, 3e6), (20.0, 30.0, 9e6)]:
        rows = [row for row in range(400) if metres(degrees[row], near[:2]) <= near[2]]
        assert 0 < len(rows) < 400
        check(engine, values, queries, 20, rows, SearchFilter(near=near))
    south, west, north, east = box = (-1.0, 170.0, 0.5, -170.0)
    rows = [row for row, (y, x) in enumerate(degrees) if south <= y <= north and (x >= west or x <= east)]
    check(engine, values, queries, 20, rows, SearchFilter(box=box))
    rows = [row for row in rows if metres(degrees[row], (0.0, 180.0)) <= 50e3]
    check(engine, values, queries, 20, rows, SearchFilter(near=(0.0, 180.0, 50e3), box=box))
    nowhere = engine.search(queries, 3, SearchFilter(near=(45.0, 0.0, 1.0)))
    assert (nowhere[0] == -1).all() and np.isnan(nowhere[1]).all()


@pytest.mark.parametrize("deepest", [16_384, 40])
def test_columns_are_compared_and_few_among_many_are_found(engine, monkeypatch, deepest):
    monkeypatch.setattr(milvus_engine, "PAGE", deepest)
    values, queries, given = descriptors(300, DIM, 0), descriptors(5, DIM, 1), images(300)
    engine.add(given, values)
    weather, floor = given.columns["weather"], given.columns["floor"]
    rain = Condition("weather", "=", "rain")
    rows = [row for row in range(300) if weather[row] == "rain"]
    check(engine, values, queries, 12, rows, SearchFilter(where=(rain,)))
    high = Condition("floor", ">=", 4.0)
    rows = [row for row in rows if floor[row] is not None and floor[row] >= 4]
    assert 10 < len(rows) < 40
    check(engine, values, queries, 12, rows, SearchFilter(where=(rain, high)))
    for comparison, value in [(">=", -1e300), ("<=", 1e-5), ("!=", 3.0), ("=", "2")]:
        rows = [row for row in range(300) if Condition("floor", comparison, value).holds(floor[row])]
        check(engine, values, queries, 12, rows, SearchFilter(where=(Condition("floor", comparison, value),)))
    with pytest.raises(UserError, match="no column storey"):
        engine.search(queries, 1, SearchFilter(where=(Condition("storey", "=", 1.0),)))


def test_lengths_that_rounding_changed_do_not_change_the_order(engine):
    """By the product alone the longer of two would be nearer."""
    values = descriptors(60, DIM, 0)
    values *= 1 + 0.0005 * np.linspace(-1, 1, 60, dtype=np.float32)[:, None]
    values = values.astype(np.float16).astype(np.float32)
    engine.add(images(60), values)
    check(engine, values, values[:30], 5, range(60))


def test_another_model_another_size_and_a_foreign_collection_are_refused(file, engine):
    engine.add(images(3), descriptors(3, DIM, 0))
    name = engine.collection.name
    with pytest.raises(UserError, match=r"another model \(weights=abc, wanted xyz\)"):
        open_milvus(file, name, DIM, {**MODEL, "weights": "xyz"})
    with pytest.raises(UserError, match="16-D descriptors, wanted 8-D"):
        open_milvus(file, name, 8, MODEL)
    engine.collection.connection.call(lambda client: client.create_collection("foreign", dimension=DIM))
    with pytest.raises(UserError, match="not one of ours"):
        open_milvus(file, "foreign", DIM, MODEL)
    assert open_milvus(file, name, DIM, {}).provenance == MODEL
    for wish, text in [({"index": "IVF_PQ"}, "Milvus Lite lacks"), ({"index": "X"}, "index X"),
                       ({"index": None}, "32768")]:  # fmt: skip
        with pytest.raises(UserError, match=text):
            open_milvus(file, "new", 40_000 if text == "32768" else DIM, MODEL, **wish)
    with pytest.raises(UserError, match="a-b"):
        open_milvus(file, "a-b", DIM, MODEL)


def test_what_cannot_be_kept_is_refused_before_anything_is_added(engine, monkeypatch):
    values = descriptors(2, DIM, 0)
    engine.add(images(2), values)
    with pytest.raises(UserError, match="not of length 1"):
        engine.add(images(2, first=2), 1.1 * values)
    with pytest.raises(UserError, match="zone is 17S"):
        engine.add(images(2, first=2, zone="17S"), values)
    with pytest.raises(UserError, match="no UTF-8"):
        engine.add(images(2, first=2, names=["a\udc80.jpg", "b.jpg"]), values)
    monkeypatch.setattr(records_module, "record_id", lambda name: 7 if name in ("x", "y") else 8)
    with pytest.raises(UserError, match="y has the id 7 of x"):
        engine.add(images(2, names=["x", "y"]), values)
    engine.add(images(1, names=["x"]), values[:1])
    with pytest.raises(UserError, match="y has the id 7 of x"):
        engine.add(images(1, names=["y"]), values[:1])
    assert engine.count() == 3


@pytest.mark.parametrize("index", ["HNSW", "IVF_FLAT", "IVF_SQ8"])
def test_a_search_of_few_images_finds_all_that_an_index_has(file, index):
    """And tells the distances of the descriptors themselves, also of those kept in 8 bits."""
    engine = open_milvus(file, f"few_{index}", DIM, MODEL, index=index)
    values, given = descriptors(2000, DIM, 0), images(2000)
    weather = ["fog" if row % 80 == 7 else "sun" for row in range(2000)]
    engine.add(replace(given, columns={"weather": weather}), values)
    engine.finish()
    fog = SearchFilter(where=(Condition("weather", "=", "fog"),))
    check(engine, values, descriptors(20, DIM, 1), 30, range(7, 2000, 80), fog)
    engine.close()


@pytest.mark.parametrize("index", ["HNSW", "IVF_SQ8"])
def test_an_index_is_kept_and_named(file, index):
    engine = open_milvus(file, f"indexed_{index}", DIM, MODEL, index=index)
    values = descriptors(200, DIM, 0)
    engine.add(images(200), values)
    engine.finish()
    engine.close()
    engine = open_milvus(file, f"indexed_{index}", DIM, MODEL)
    assert index in engine.name and "Strong" in engine.name and engine.approximate == f"milvus {index}"
    assert [row[0] for row in names_of(engine.search(values, 1))] == images(200).names
    with pytest.raises(UserError, match=f"has the index {index}, wanted FLAT"):
        open_milvus(file, f"indexed_{index}", DIM, MODEL, index="FLAT")
