"""Engines by table: one way to open them, and what is true of each."""

import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from engine_data import check, descriptors, images
from PIL import Image

from vpr.common.device import CPU
from vpr.common.errors import UserError
from vpr.data.places import PlacesSpec, load_database
from vpr.data.reader import Reading
from vpr.database.engine import Hits, WantedIndex
from vpr.database.engines import ENGINES, FORMS, EngineAddress, engine_address
from vpr.database.filters import Condition, SearchFilter
from vpr.database.folder import folder_to_add
from vpr.database.open import Database, WantedEngine, edit_engine, fill_engine, load_engine, update_engine
from vpr.database.records import joined, no_records
from vpr.models.place_model import build_model
from vpr.models.spec import ModelSpec
from vpr.retrieval.locator import Locator
from vpr.runs.model import LoadedModel
from vpr.search.exact import descriptor_distances, in_order, nearest

# A third engine: all that one has to have, in a dictionary of this process.
CABINETS = {}


class Drawers:
    """Descriptors in memory, kept by whoever imports this."""

    measures, approximate, local, projection, provenance = True, "", None, None, {}
    searches_sequences, keeps_local, is_shared, edited, by_hand = False, False, True, False, False
    lacking = no_records()

    def __init__(self, name, dim):
        self.name, self.records, self.values = f"drawers {name}", no_records(), np.empty((0, dim), np.float32)

    @property
    def row_of(self):
        return {name: row for row, name in enumerate(self.records.names)}

    @property
    def next_row(self):
        return self.count()

    def rows(self):
        return np.arange(self.count())

    def count(self):
        return len(self.records)

    def descriptors(self, rows):
        return self.values[rows].astype(np.float16)

    def add(self, records, descriptors, local=None):
        self.remove(records.names)
        self.values = np.concatenate([descriptors, self.values]).astype(np.float32)
        self.records = joined(records, self.records)

    def remove(self, names):
        rows = [row for row, name in enumerate(self.records.names) if name not in names]
        self.records, self.values = self.records.only(rows), self.values[rows]

    def search(self, queries, count, wanted=None):
        rows = None if wanted is None else np.flatnonzero(wanted.mask(self.records))
        found = nearest(self.values, queries, count, rows)
        return Hits(*in_order(found, descriptor_distances(self.values, queries, found)), self.records)

    def finish(self, order=None):
        pass

    begin = set_zone = prepare_to_serve = finish

    def check(self):
        pass

    close = check


def open_drawers(source, wanted, anew=False):
    return CABINETS.setdefault(source.collection, Drawers(source.collection, source.dim))


@pytest.fixture(params=["faiss", "drawers", "milvus"])
def address(request, monkeypatch, tmp_path):
    """Of each engine; the third is one line in the table."""
    CABINETS.clear()
    monkeypatch.setitem(sys.modules, "drawers", SimpleNamespace(open_engine=open_drawers))
    monkeypatch.setitem(ENGINES, "drawers", "drawers")
    monkeypatch.setitem(FORMS, "drawers", ("drawers:FILE.box",))
    if request.param == "milvus":
        pytest.importorskip("pymilvus")
        pytest.importorskip("milvus_lite")
    text = {"faiss": "faiss", "drawers": f"drawers:{tmp_path}/a.box", "milvus": f"milvus:{tmp_path}/a.db"}[
        request.param
    ]
    return engine_address(text)


@pytest.fixture(scope="module")
def model():
    return build_model(ModelSpec(arch="alexnet", weights="none", pooling="avg")).to_device(CPU, "fp32")


@pytest.fixture
def folder(tmp_path, model):
    """Makes a database of a folder of a few images, each of a colour of its own."""

    def call(name, colours):
        root = tmp_path / name
        for colour in colours:
            path = root / "DCIM" / f"{colour:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([colour, len(name)]).integers(0, 256, (64, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        (tmp_path / "model").mkdir(exist_ok=True)
        loaded = LoadedModel(model, {}, tmp_path / "model")
        return Database(loaded, load_database(PlacesSpec("folder", root), "val"), root, Reading())

    return call


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model" / "database.sqlite"


def test_an_engine_follows_a_folder_and_is_searched(address, folder, path):
    wanted, database = WantedEngine(address), folder("street", range(4))
    update_engine(wanted, path, database, WantedIndex()).close()
    engine = load_engine(wanted, path, database, WantedIndex())
    assert sorted(engine.row_of) == [f"DCIM/{n:03d}.png" for n in range(4)]
    rows = [engine.row_of[f"DCIM/{n:03d}.png"] for n in range(4)]
    hits = engine.search(engine.descriptors(rows).astype(np.float32), 1)
    assert [hits.records.names[row] for row in hits.rows[:, 0]] == [f"DCIM/{n:03d}.png" for n in range(4)]
    np.testing.assert_allclose(hits.distances, 0, atol=1e-3)
    engine.close()


def test_added_images_never_take_the_place_of_anothers_of_the_same_name(address, folder, path, tmp_path):
    wanted, database = WantedEngine(address), folder("street", range(2))
    update_engine(wanted, path, database, WantedIndex()).close()
    for card in ("one", "two"):
        folder(card + "/card", [7])
    add = [folder_to_add(tmp_path / card / "card", database.images.base) for card in ("one", "two")]
    edit_engine(wanted, path, database, add[0], [], WantedIndex()).close()
    before = load_engine(wanted, path, database, WantedIndex())
    kept = before.descriptors([before.row_of["card/DCIM/007.png"]])
    before.close()
    with pytest.raises(UserError, match=r"already has an image card/DCIM/007.png, from another folder"):
        edit_engine(wanted, path, database, add[1], [], WantedIndex())
    after = load_engine(wanted, path, database, WantedIndex())
    assert after.count() == 3 and np.array_equal(after.descriptors([after.row_of["card/DCIM/007.png"]]), kept)
    after.close()


def test_an_image_gets_another_record_with_the_descriptor_that_it_has(address, folder, path):
    wanted, database, name = WantedEngine(address), folder("street", range(4)), "DCIM/002.png"
    engine = update_engine(wanted, path, database, WantedIndex())
    engine.prepare_to_serve(True)
    kept, before = engine.descriptors([engine.row_of[name]]), engine.records.only([engine.row_of[name]])
    locator = Locator(database.loaded, engine, Reading(), database.images.base)
    moved = np.array([[448123.5, 5411000.25]])
    locator.change(replace(before, positions=moved, zone="31N", columns={"night": ["yes"], "floor": [3.0]}))
    assert locator.images == 4 and locator.records.columns["night"][locator.records.row_of[name]] == "yes"
    engine.close()
    again = load_engine(wanted, path, database, WantedIndex())
    row = again.row_of[name]
    assert again.count() == 4 and np.array_equal(again.descriptors([row]), kept)
    assert again.records.positions[row].tolist() == moved[0].tolist() and again.records.zone == "31N"
    assert again.records.hashes[row].tobytes() == before.hashes[0].tobytes()
    condition = SearchFilter(where=(Condition("floor", ">=", 2.0), Condition("night", "=", "yes")))
    hits = again.search(kept.astype(np.float32), 4, condition)
    assert [hits.records.names[hit] for hit in hits.rows[0] if hit >= 0] == [name]
    again.close()


def test_testing_changes_no_collection_that_the_user_named(address, folder, path, model):
    """It reads one that has what is tested, and makes one of its own where none is named."""
    if not address.target:
        pytest.skip("lies beside the model")
    database, other = folder("street", range(3)), folder("lane", range(5))
    city = WantedEngine(address, "city")
    mapped = update_engine(city, path, database, WantedIndex())
    names = sorted(mapped.row_of)
    stored = mapped.descriptors([mapped.row_of[name] for name in names])
    mapped.close()
    values = descriptors(5, model.dim, 0)
    with pytest.raises(UserError, match=r"other images than the 5 that are tested, such as .*testing changes nothing"):
        fill_engine(city, other, values, None)
    fill_engine(city, database, values[:3], None).close()
    update_engine(WantedEngine(address), path, other, WantedIndex()).close()
    edited = WantedEngine(address)
    edit_engine(edited, path, other, None, ["DCIM/000.png"], WantedIndex()).close()
    filled = fill_engine(edited, other, values, None)
    assert filled.count() == 5
    filled.close()
    for wanted, of, count in ((city, database, 3), (edited, other, 4)):
        engine = load_engine(wanted, path, of, WantedIndex())
        assert engine.count() == count
        if count == 3:
            assert np.array_equal(engine.descriptors([engine.row_of[name] for name in names]), stored)
        engine.close()


def test_the_third_engine_finds_what_a_loop_finds():
    engine, values = Drawers("x", 8), descriptors(40, 8, 0)
    engine.add(images(40), values)
    check(engine, values, descriptors(5, 8, 1), 7, range(40))


@pytest.mark.parametrize("text", ["faiss:", "faiss:x", "milvus", "milvus:x", "milvus:http:", "qdrant:x.db", ""])
def test_an_address_of_no_engine_is_refused(text):
    if text == "faiss:":
        assert engine_address(text) == EngineAddress()
        return
    with pytest.raises(ValueError, match=re.escape("wanted faiss, milvus:FILE.db or milvus:http://HOST:19530")):
        engine_address(text)


@pytest.mark.parametrize("text", ["milvus:a/b.db", "milvus:http://HOST:1", "milvus:https://x"])
def test_an_address_names_a_file_or_a_server(text):
    found = engine_address(text)
    assert found == EngineAddress("milvus", text.partition(":")[2]) and found.is_server == ("http" in text)
