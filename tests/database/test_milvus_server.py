"""Milvus behind an address, files that cannot be opened, and what a server takes."""

import logging
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.engine_data import check, descriptors, images, names_of, open_milvus
from vpr.common.errors import UserError
from vpr.database.engine import Unreachable
from vpr.database.filters import Condition, SearchFilter
from vpr.database.milvus import collection as milvus_collection
from vpr.database.milvus import connection as milvus_connection

half_server = pytest.importorskip("tests.half_server", exc_type=ImportError)  # without milvus_lite

DIM = 16
MODEL = {"weights": "abc", "dim": str(DIM)}


HOLDING = """
import fcntl, sys
lock = open(sys.argv[1], "ab")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_file_that_another_process_has_open(tmp_path, capfd):
    """Milvus Lite locks LOCK in its folder; importing it in another process would take seconds."""
    (tmp_path / "held.db").mkdir()
    words = [sys.executable, "-c", HOLDING, str(tmp_path / "held.db" / "LOCK")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="open in another process"):
            open_milvus(f"{tmp_path / 'held.db'}", "c", DIM, MODEL)
    (tmp_path / "old.db").write_bytes(b"SQLite")
    with pytest.raises(UserError, match="is a file, wanted the folder"):
        open_milvus(f"{tmp_path / 'old.db'}", "c", DIM, MODEL)
    assert capfd.readouterr().err == ""


def test_a_missing_package_and_a_password_in_the_address(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="MILVUS_TOKEN") as caught:
        open_milvus("http://me:secret@127.0.0.1:1", "c", DIM, MODEL)
    assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UserError, match=r"python -m pip install -r requirements-milvus\.txt"):
        open_milvus(f"{tmp_path}/map.db", "c", DIM, MODEL)


@pytest.mark.parametrize("takes_half", [True, False])
def test_a_server_gets_halves_where_it_takes_them(tmp_path, monkeypatch, takes_half):
    monkeypatch.setattr("vpr.database.milvus.collection.PAGE", 16)
    port, end = half_server.start_half_server(monkeypatch, tmp_path / "data", takes_half)
    try:
        address = f"http://127.0.0.1:{port}"
        engine = open_milvus(address, "c", DIM, MODEL)
        kind = "float16" if takes_half else "float32"
        assert f"2.6.4, collection c, FLAT, {kind}" in engine.name and not engine.approximate
        values, queries = descriptors(100, DIM, 0), descriptors(8, DIM, 1)  # halves, as an index has them
        engine.add(images(100), values)
        check(engine, values, queries, 20, range(100))
        assert half_server.HalfServer.halves == (108 if takes_half else 0)
        rows = [engine.row_of[name] for name in images(100).names[90:]]
        assert np.array_equal(engine.descriptors(rows), values[90:].astype(np.float16))
        again = open_milvus(address, "c", DIM, MODEL)
        assert again.name == engine.name and sorted(again.records.names) == images(100).names
        check(again, values, queries, 5, range(50, 100), SearchFilter(box=box_from(again, 50)))
    finally:
        end()


def box_from(engine, first):
    """A box around the images of the test from `first` on, which go eastwards."""
    records = engine.records
    longitudes = records.degrees[[records.row_of[f"street/{row:05}.jpg"] for row in (first - 1, first)], 1]
    return (-90.0, float(longitudes.mean()), 90.0, 180.0)


class Server:
    """`milvus-lite server` on a free port."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.process = folder, None
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self):
        words = ["server", "--data-dir", str(self.folder), "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen([sys.executable, "-m", "milvus_lite", *words], stdout=subprocess.DEVNULL)

    def wait(self):
        for _ in range(400):
            with socket.socket() as trying:
                if trying.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path):
    running = Server(tmp_path / "data")
    running.start()
    running.wait()
    yield running
    running.kill()


def test_a_server_that_goes_away_loses_nothing_and_doubles_nothing(server, monkeypatch, capfd):
    monkeypatch.setattr(milvus_connection, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr("vpr.database.milvus.engine.CALL_BYTES", 20 * (4 * DIM + 256))  # 20 images
    values, queries, given = descriptors(200, DIM, 0), descriptors(5, DIM, 1), images(200)
    engine = open_milvus(server.address, "c", DIM, MODEL)
    assert "milvus_lite" in engine.name and "float32" in engine.name
    real, calls = milvus_collection.Collection.call, []

    def call(collection, work, **arguments):
        calls.append(work)
        if calls.count("upsert") == 6:
            server.kill()
        return real(collection, work, **arguments)

    monkeypatch.setattr(milvus_collection.Collection, "call", call)
    monkeypatch.setattr(milvus_connection, "WAITS", (0.05, 0.05))
    with pytest.raises(UserError, match="does not answer, after 3 tries"):
        engine.add(given, values)
    with pytest.raises(UserError, match="does not answer"):
        engine.search(queries, 3)
    engine.prepare_to_serve(False)
    for ask in (engine.check, lambda: engine.search(queries, 3)):
        with pytest.raises(Unreachable, match="does not answer, after 2 tries"):
            ask()
    engine.collection.connection.is_patient, calls[:] = True, []

    server.start()
    monkeypatch.setattr(milvus_connection, "WAITS", (0.2,) * 40)  # the server comes back while we try
    check(engine, values, queries, 20, range(100))
    engine.check()
    again = open_milvus(server.address, "c", DIM, MODEL)
    kept = again.records
    missing = [row for row, name in enumerate(given.names)
               if name not in kept.row_of or (kept.hashes[kept.row_of[name]] != given.hashes[row]).any()]  # fmt: skip
    assert missing == list(range(100, 200))
    again.add(given.only(missing), values[missing])
    check(again, values, queries, 20, range(200))
    check(engine, values, queries, 20, range(200))
    assert open_milvus(server.address, "c", DIM, MODEL).count() == 200
    assert capfd.readouterr().err == ""
    assert logging.getLogger("pymilvus").level > logging.CRITICAL


def test_what_another_process_changes_is_answered_and_filtered_as_it_is_now(server):
    """A search brings the records of its hits: none is of an earlier reading, and none lies outside them."""
    values = descriptors(30, DIM, 0)
    writer = open_milvus(server.address, "shared", DIM, MODEL)
    writer.add(images(30), values)
    reader = open_milvus(server.address, "shared", DIM, MODEL)
    old = reader.records
    place, name = old.row_of["street/00007.jpg"], "street/00007.jpg"
    moved, columns = np.array([[460000.0, 5420000.0]]), {"weather": ["snow"], "floor": [9.0]}
    writer.add(images(1, first=7, positions=moved, columns=columns), -values[7:8])
    hits = reader.search(-values[7:8], 1)
    row = hits.rows[0, 0]
    assert (hits.records.names[row], hits.records.positions[row].tolist()) == (name, moved[0].tolist())
    assert hits.records.columns["weather"][row] == "snow" and hits.distances.tolist() == [[0.0]]
    was, now = (SearchFilter(near=(*map(float, degrees), 3.0))
                for degrees in (old.degrees[place], hits.records.degrees[row]))  # fmt: skip
    assert reader.records is old and reader.row_of[name] == place, "what it has read stays as it is"
    snow = SearchFilter(where=(Condition("weather", "=", "snow"),))
    for wanted in (now, snow):
        assert [found[0] for found in names_of(reader.search(values[:1], 1, wanted))] == [name]
    assert (reader.search(-values[7:8], 1, was).rows == -1).all()

    high = SearchFilter(where=(Condition("floor", ">=", 20.0),))
    assert (reader.search(values[:1], 1, high).rows == -1).all()
    new = descriptors(1, DIM, 5)
    writer.add(images(1, first=640, columns={"weather": ["fog"], "floor": [20.0]}), new)
    for wanted in (None, high):
        hits = reader.search(new, 1, wanted)
        assert names_of(hits) == [["street/00640.jpg"]] and (hits.rows < len(hits.records)).all()
    writer.remove([name])
    assert reader.count() == writer.count() == 30
    assert (reader.search(values[:1], 1, snow).rows == -1).all()
