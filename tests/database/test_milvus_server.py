"""Milvus behind an address, files that cannot be opened, and what a server takes."""

import logging
import socket
import subprocess
import sys
import time

import pytest
import torch

from tests.engine_data import check, descriptors, images
from vpr.common.errors import UserError
from vpr.database.engine import Unreachable
from vpr.database.engines import engine_address
from vpr.database.filters import SearchFilter
from vpr.database.milvus import connection as milvus_connection
from vpr.database.milvus import engine as milvus

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
            milvus.open_milvus(engine_address(f"milvus:{tmp_path / 'held.db'}"), "c", DIM, MODEL)
    (tmp_path / "old.db").write_bytes(b"SQLite")
    with pytest.raises(UserError, match="is a file, wanted the folder"):
        milvus.open_milvus(engine_address(f"milvus:{tmp_path / 'old.db'}"), "c", DIM, MODEL)
    assert capfd.readouterr().err == ""


def test_a_missing_package_and_a_password_in_the_address(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="MILVUS_TOKEN") as caught:
        milvus.open_milvus(engine_address("milvus:http://me:secret@127.0.0.1:1"), "c", DIM, MODEL)
    assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UserError, match=r"python -m pip install -r requirements-milvus\.txt"):
        milvus.open_milvus(engine_address(f"milvus:{tmp_path}/map.db"), "c", DIM, MODEL)


@pytest.mark.parametrize("takes_half", [True, False])
def test_a_server_gets_halves_where_it_takes_them(tmp_path, monkeypatch, takes_half):
    monkeypatch.setattr("vpr.database.milvus.collection.PAGE", 16)
    port, end = half_server.start_half_server(monkeypatch, tmp_path / "data", takes_half)
    try:
        address = engine_address(f"milvus:http://127.0.0.1:{port}")
        engine = milvus.open_milvus(address, "c", DIM, MODEL)
        kind = "float16" if takes_half else "float32"
        assert f"2.6.4, collection c, FLAT, {kind}" in engine.name and not engine.approximate
        values, queries = descriptors(100, DIM, 0), descriptors(8, DIM, 1)  # halves, as an index has them
        engine.add(images(100), values)
        check(engine, values, queries, 20, range(100))
        assert half_server.HalfServer.halves == (108 if takes_half else 0)
        assert torch.equal(engine.descriptors(range(90, 100)), values[90:].half())
        again = milvus.open_milvus(address, "c", DIM, MODEL)
        assert again.name == engine.name and sorted(again.records.names) == images(100).names
        check(again, values, queries, 5, range(50, 100), SearchFilter(box=box_from(again, 50)))
    finally:
        end()


def box_from(engine, first):
    """A box around the images of the test from `first` on, which go eastwards."""
    longitudes = engine.records.degrees[[engine.records.row_of[f"street/{row:05}.jpg"] for row in (first - 1, first)]][
        :, 1
    ]
    return (-90.0, float(longitudes.mean()), 90.0, 180.0)


class Server:
    """`milvus-lite server` on a free port."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.process = folder, None
        self.address = engine_address(f"milvus:http://127.0.0.1:{self.port}")

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
    monkeypatch.setattr(milvus, "BATCH_BYTES", 20 * (4 * DIM + 256))  # 20 images
    values, queries, given = descriptors(200, DIM, 0), descriptors(5, DIM, 1), images(200)
    engine = milvus.open_milvus(server.address, "c", DIM, MODEL)
    assert "milvus_lite" in engine.name and "float32" in engine.name
    real, calls = engine._call, []

    def call(work, **arguments):
        calls.append(work)
        if len(calls) == 6:
            server.kill()
        real(work, **arguments)

    engine._call = call
    monkeypatch.setattr(milvus_connection, "WAITS", (0.05, 0.05))
    with pytest.raises(UserError, match="does not answer, after 3 tries"):
        engine.add(given, values)
    with pytest.raises(UserError, match="does not answer"):
        engine.search(queries, 3)
    assert engine.count() == 100
    engine.hasten()
    for ask in (engine.check, lambda: engine.search(queries, 3)):
        with pytest.raises(Unreachable, match="does not answer, after 2 tries"):
            ask()
    engine.collection.connection.is_patient = True

    server.start()
    monkeypatch.setattr(milvus_connection, "WAITS", (0.2,) * 40)  # the server comes back while we try
    check(engine, values, queries, 20, range(100))
    engine.check()
    again = milvus.open_milvus(server.address, "c", DIM, MODEL)
    kept = again.records
    missing = [row for row, name in enumerate(given.names)
               if name not in kept.row_of or (kept.hashes[kept.row_of[name]] != given.hashes[row]).any()]  # fmt: skip
    assert missing == list(range(100, 200))
    again.add(given.only(missing), values[missing])
    check(again, values, queries, 20, range(200))
    check(engine, values, queries, 20, range(200))  # it learns of those that another has added
    assert milvus.open_milvus(server.address, "c", DIM, MODEL).count() == 200
    assert capfd.readouterr().err == ""
    assert logging.getLogger("pymilvus").level > logging.CRITICAL
