"""What a store keeps when the disk is full, a sync fails, a bit flips, or several processes use it."""

import errno
import functools
import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from index_data import DIM, add, check, local_of, opened, records_of, vector

from vpr.common.errors import UserError
from vpr.data.frames import find_sequences
from vpr.database.engine import WantedIndex
from vpr.database.filters import Condition, SearchFilter
from vpr.database.store.flat_files import FlatFiles
from vpr.database.store.sqlite_file import SqliteFile
from vpr.database.store.store import Store
from vpr.models.local_projection import LocalProjection
from vpr.search.sequences import SequenceRule


@pytest.fixture
def path(tmp_path):
    return tmp_path / "database_x.sqlite"


def flip_bit(path, row):
    (rows,) = path.parent.glob("*.descriptors")
    content = bytearray(rows.read_bytes())
    content[2 * DIM * row + 3] ^= 1
    rows.write_bytes(content)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_then_full(write):
    """The first call writes half of what it is given, the next ones nothing."""
    calls = []

    def pwrite(file, data, at):
        if calls:
            full()
        calls.append(1)
        return write(file, bytes(data)[: len(data) // 2], at)

    return pwrite


@pytest.mark.parametrize("failure", ["nothing", "half", "sync"])
@pytest.mark.parametrize("first", [True, False])
def test_what_was_refused_never_happens_and_what_was_acknowledged_stays(path, monkeypatch, failure, first):
    """A failure at the first change, or later; then the disk has room again."""
    index, truth = opened(path), {}
    if not first:
        truth |= add(index, ["a1", "keep-me"])
    with monkeypatch.context() as patched:
        if failure == "sync":
            patched.setattr(os, "fsync", full)
        else:
            patched.setattr(os, "pwrite", full if failure == "nothing" else half_then_full(os.pwrite))
        for _ in range(2):
            with pytest.raises(UserError, match=r"No space left on device.*nothing has changed"):
                add(index, ["ghost", "a1"], 5)
    assert sorted(index.row_of) == sorted(truth) and index.count() == len(truth)
    truth |= add(index, ["b1"])
    check(index, truth)
    index.close()
    check(opened(path), truth)


def test_a_full_disk_under_sqlite_refuses_and_forgets(path):
    """A limit on the size of files stands for a full disk; removing an image writes to SQLite's file alone."""
    index = opened(path)
    truth = add(index, [f"a{n}" for n in range(40)])
    index.close()
    code = f"""
import resource, signal, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from index_data import add, opened
from vpr.common.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
index = opened(Path({str(path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
for work in (lambda: index.remove(["a1"]), lambda: add(index, ["ghost"])):
    try:
        work()
    except UserError as error:
        print("refused", "nothing has changed" in str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
add(index, ["b1"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["refused True"] * 2, done.stderr
    value = {"b1": np.stack([vector([0, *map(ord, "b1")])])[0]}
    check(opened(path), truth | value)


def test_rows_that_were_not_committed_are_written_over(path, monkeypatch):
    index = opened(path)
    truth = add(index, ["a1"])
    with monkeypatch.context() as patched:
        patched.setattr(SqliteFile, "writing", full)  # as if it were killed behind the flat file
        with pytest.raises(OSError, match="No space"):
            add(index, ["a2", "a3"])
    (rows,) = path.parent.glob("*.descriptors")
    assert rows.stat().st_size == 3 * 2 * DIM
    index.close()
    index = opened(path)
    check(index, truth)
    truth |= add(index, ["b1"], 3)
    check(index, truth)
    assert index.rows().tolist() == [0, 1]


@pytest.mark.parametrize("anew", [True, False])
@pytest.mark.parametrize("spoil", ["bit", "end", "record"])
def test_a_damaged_row_is_named_and_the_others_stay(path, capsys, anew, spoil):
    index = opened(path)
    truth = add(index, ["a1", "b1", "a2"])
    index.close()
    if spoil == "bit":
        flip_bit(path, 2)
    elif spoil == "end":
        (rows,) = path.parent.glob("*.descriptors")
        rows.write_bytes(rows.read_bytes()[:-1])
    else:
        connection = sqlite3.connect(path)
        connection.execute("UPDATE images SET easting = easting + 1 WHERE row = 2")
        connection.commit()
        connection.close()
    del truth["a2"]
    index = opened(path, anew=anew)
    check(index, truth)
    said = capsys.readouterr().out
    assert said.count("is damaged") == 1 and "the descriptor of a2 is damaged" in said
    truth |= add(index, ["a2"], 7)
    check(index, truth)
    index.close()
    check(opened(path, anew=True), truth)
    assert "damaged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP TABLE meta; CREATE TABLE meta (content, crc); INSERT INTO meta VALUES (NULL, 0)", "its checksum"),
        ("UPDATE images SET row = 'x' WHERE gone = 1", "cannot be read as an index"),
    ],
)
def test_what_sqlite_reads_of_a_damaged_page_is_refused(path, change, said):
    """SQLite gives values of any type for a column."""
    index = opened(path)
    add(index, ["a1", "b1"])
    index.remove(["a1"])
    index.close()
    connection = sqlite3.connect(path)
    connection.executescript(change)
    connection.close()
    with pytest.raises(UserError, match=said):
        Store(path, DIM).state()


def test_images_from_elsewhere_wait_to_be_described_again(path, capsys):
    """Those of a damaged row, and all of them where another model begins."""
    index = opened(path)
    records = records_of(["card/1", "card/2"])
    records.folders[:] = ["/elsewhere", "/elsewhere"]
    index.add(records, np.stack([vector(1), vector(2)]))
    add(index, ["own"])
    index.close()
    flip_bit(path, 0)
    index = opened(path, anew=True)
    assert index.lacking.names == ["card/1"] and sorted(index.row_of) == ["card/2", "own"]
    assert index.lacking.positions.tolist() == records.positions[:1].tolist()
    index.close()
    with pytest.raises(UserError, match="weights_hash=abc, wanted xyz"):
        opened(path, weights_hash="xyz")
    index = opened(path, anew=True, weights_hash="xyz")
    assert sorted(index.lacking.names) == ["card/1", "card/2"] and index.count() == 0
    assert "2 images of other folders are described again" in capsys.readouterr().out
    index.remove(["card/1"])
    index.add(records.only([1]), vector(3)[None])
    assert index.lacking.names == [] and list(index.row_of) == ["card/2"]


def test_a_damaged_row_is_not_copied(path):
    index = opened(path)
    add(index, ["a1", "b1"])
    flip_bit(path, 0)
    for work in (lambda: index.descriptors([1, 0]), lambda: index.finish(["b1", "a1"])):
        with pytest.raises(UserError, match="the descriptor of a1 is damaged"):
            work()
    assert index.descriptors([1]).shape == (1, DIM) and len([*path.parent.glob("*.descriptors")]) == 1


def test_one_writes_and_readers_see_each_commit_at_their_next_search(path):
    writer = opened(path)
    truth = add(writer, ["a1"])
    readers = [opened(path), opened(path)]
    for reader in readers:
        with pytest.raises(UserError, match="is being written by another process"):
            add(reader, ["b2"])
        with pytest.raises(UserError, match="is being written by another process"):
            reader.prepare_to_serve(writable=True)
    hits = readers[0].search(vector(3)[None].astype(np.float32), 1)
    for step in range(4):
        truth |= add(writer, [f"b{step}", "a2"], step)
        if step == 2:
            writer.remove(["a1"])
            writer.finish(["a2", "b2"])  # other rows, in other files
            del truth["a1"]
        for reader in readers:
            reader.search(vector(3)[None].astype(np.float32), 1)
            check(reader, truth)
    assert hits.records.names == ["a1"], "what was found stays what it was"
    writer.close()
    truth |= add(readers[1], ["c1"])
    check(readers[0], truth) if readers[0].search(vector(3)[None].astype(np.float32), 1) else None


def test_a_reader_goes_on_when_another_model_takes_its_place(path, capsys):
    writer = opened(path)
    truth = add(writer, ["a1", "b1"])
    reader = opened(path)
    writer.close()
    other = opened(path, anew=True, weights_hash="xyz")
    add(other, ["a2"], 4)
    capsys.readouterr()
    check(reader, truth)
    assert capsys.readouterr().out.count("another model") == 1


def test_an_exact_search_does_not_copy_the_database_for_images_that_were_removed(path, monkeypatch):
    """Nor for such as a filter leaves out, where most are left."""
    index = opened(path)
    add(index, [f"a{n}" for n in range(60)])
    index.remove(["a7", "a31"])
    whole, asked = type(index.map), []

    class Watched(whole):
        def __getitem__(self, rows):
            asked.append(rows)
            return super().__getitem__(rows)

        def take(self, rows, axis):
            asked.append(rows)
            return super().take(rows, axis)

    index.map = index.map.view(Watched)
    index.search(vector(3)[None].astype(np.float32), 4)
    copied = [rows for rows in asked if not isinstance(rows, slice)]
    assert asked and all(len(rows) <= 4 for rows in copied), copied  # hits alone, whose distances are measured anew
    found, _, records = index.search(vector(3)[None].astype(np.float32), 60)
    names = [records.names[row] for row in found[0] if row >= 0]
    assert len(names) == 58 and not {"", "a7", "a31"} & set(names)


def test_sequences_are_found_among_the_images_that_are_there(path):
    index = opened(path)
    add(index, [f"a{n}" for n in range(9)])
    index.remove(["a4"])
    add(index, ["a9"])
    names = index.records.names
    live = [name for name in names if name]
    queries = index.descriptors(index.rows()).astype(np.float32)
    orders = find_sequences(names), find_sequences([f"q{name[1:]}" for name in live])
    found, distances, _ = index.search_in_order(queries, 1, orders, SequenceRule(1))
    assert [names[row] for row in found[:, 0]] == live and np.abs(distances).max() < 1e-3


def test_rows_of_removed_images_are_left_out_once_they_are_many(path, monkeypatch):
    monkeypatch.setattr("vpr.database.faiss_engine.SMALL_BYTES", 0)
    index = opened(path)
    truth = add(index, [f"a{n}" for n in range(8)])
    for names, rows in ((["a0", "a1"], 8), (["a2"], 5)):
        index.remove(names)
        truth = {name: value for name, value in truth.items() if name not in names}
        index.finish()
        assert index.next_row == rows
        check(index, truth)
    (file,) = path.parent.glob("*.descriptors")
    assert file.stat().st_size == 5 * 2 * DIM


def test_a_store_says_nothing_and_writes_nothing_where_nothing_changes(path, capsys):
    opened(path)
    assert not list(path.parent.iterdir())
    index = opened(path, WantedIndex("Flat"), anew=True)
    add(index, ["a1"])
    index.finish(["a1"])
    index.close()
    before = path.read_bytes()
    capsys.readouterr()
    index = opened(path, WantedIndex("Flat"), anew=True)
    index.finish(["a1"])
    assert path.read_bytes() == before and not capsys.readouterr().out
    assert not [file for file in path.parent.iterdir() if file.suffix == ".lock"]


def test_no_writer_where_a_disk_has_no_locks(tmp_path, monkeypatch):
    """Two writers would overwrite each other's descriptors."""
    from vpr.common import files

    monkeypatch.setattr(files, "flock", lambda file, wait=False: None)
    with pytest.raises(UserError, match=r"cannot write .*no locks"):
        FlatFiles(tmp_path / "index").hold()


@pytest.mark.parametrize("factory", [None, "IVF4,Flat"])
def test_a_damaged_row_of_a_large_index_is_no_hit(path, monkeypatch, capsys, factory):
    """Too large to be checked whole: each row is when it is first found, and the next nearest take its place."""
    monkeypatch.setattr("vpr.database.faiss_engine.SMALL_BYTES", 0)
    index = opened(path, WantedIndex(factory), anew=True)
    truth = add(index, [f"{'ab'[n % 2]}{n}" for n in range(40)])
    index.finish()
    index.close()
    flip_bit(path, 7)
    query = truth.pop("b7")[None].astype(np.float32)
    index = opened(path)
    assert "is damaged" not in capsys.readouterr().out
    hits = index.search(query, 40 if factory is None else 5)
    assert "b7" not in {hits.records.names[row] for row in hits.rows[0] if row >= 0} and len(hits.rows[0])
    assert index.count() == 39 and capsys.readouterr().out.count("the descriptor of b7 is damaged") == 1
    if factory is None:
        check(index, truth)
        orders = find_sequences(list(index.records.names)), find_sequences(["q1"])
        found = opened(path).search_in_order(query, 1, orders, SequenceRule(1))[0]
        assert found[0, 0] != 7 and "the descriptor of b7 is damaged" in capsys.readouterr().out


def test_a_search_reads_the_records_of_its_hits_alone(path, monkeypatch):
    index = opened(path)
    truth = add(index, [f"a{n}" for n in range(50)])
    index.close()
    monkeypatch.setattr("vpr.database.faiss_engine.SMALL_BYTES", 0)
    asked, rows_of = [], Store.rows
    monkeypatch.setattr(Store, "columns", None)
    monkeypatch.setattr(Store, "rows", lambda self, made, rows: asked.extend(rows) or rows_of(self, made, rows))
    index = opened(path)
    hits = index.search(truth["a7"][None].astype(np.float32), 3)
    names = [hits.records.names[row] for row in hits.rows[0]]
    assert names[0] == "a7" and hits.records.positions[hits.rows][0, 0].tolist() == [2, sum(map(ord, "a7"))]
    assert hits.records.file(int(hits.rows[0, 0]), path.parent).name == "a7"
    assert hits.records.only(hits.rows[0]).names == names and sorted(asked) == sorted(hits.rows[0].tolist())
    assert np.array_equal(index.descriptors([3, 3]), np.stack([truth["a3"]] * 2)) and asked[3:] == [3, 3]


def test_a_reader_goes_on_while_the_database_is_written_anew(path, monkeypatch):
    """Twice, wherever it asks the store, though earlier records are kept no longer."""
    monkeypatch.setattr("vpr.database.store.store.KEPT_SECONDS", 0)
    writer = opened(path, WantedIndex(local_dim=4), anew=True)
    writer.begin(LocalProjection(np.arange(6.0), np.eye(4, 6), "nothing"))
    truth, happened = add(writer, ["a1", "b1", "b2", "a2"], local=True), []
    held = opened(path)
    query = truth["b2"][None].astype(np.float32)

    def anew_before(name, original, store, *about):
        if store is not writer.store and happened[-1:] != [f"now {name}"]:
            happened.append(f"now {name}")
            for order in (["b2", "a1"], ["a1", "b1"]):
                writer.finish(order)
        return original(store, *about)

    def steadily(name, work):
        with monkeypatch.context() as patched:
            happened.append("")
            original = getattr(Store, name)
            patched.setattr(Store, name, lambda *about: anew_before(name, original, *about))
            return work()

    for name in ("state", "flat", "rows", "columns"):
        reader = steadily(name, lambda: opened(path))
        for wanted in (None, SearchFilter(where=(Condition("side", "=", "b"),))):
            writer.finish(["b1"])
            hits = steadily(name, functools.partial(reader.search, query, 2, wanted))
            assert hits.records.names[hits.rows[0, 0]] == "b2"
        check(reader, truth)
    assert set(happened) == {"", "now state", "now flat", "now rows", "now columns"}
    np.testing.assert_array_equal(held.local.rows(0), local_of([0, *map(ord, "a1")])[0])


def test_records_of_an_earlier_generation_are_kept_for_who_reads_them(path):
    index = opened(path)
    add(index, ["a1", "a2"])
    reader = opened(path)
    for order in (["a2", "a1"], ["a1", "a2"], ["a2", "a1"]):
        index.finish(order)
    assert reader.records.names == ["a1", "a2"] and reader.records.sizes.tolist() == [5, 6]
    served = opened(path)
    served.prepare_to_serve(writable=False)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM images")
    assert served.records.names == ["a2", "a1"]


def test_a_transaction_that_breaks_off_leaves_nothing(path):
    index = opened(path)
    truth = add(index, ["a1", "b1"])
    index.close()
    table = SqliteFile(path, FlatFiles(path))
    with pytest.raises(ZeroDivisionError), table.writing({}, 1, 2) as connection:
        connection.execute("DELETE FROM images")
        _ = 1 / 0
    table.close()
    check(opened(path), truth)


@pytest.mark.parametrize("factory", [None, "Flat"])
def test_a_reader_takes_up_another_index_that_was_put_in_its_place(path, tmp_path, factory):
    """As where a backup is restored, or an index is copied from another machine."""
    index = opened(path, WantedIndex(factory), anew=True)
    truth = add(index, [f"{side}{n}" for side in "ab" for n in range(9)])
    index.finish()
    index.close()
    other = opened(tmp_path / "other" / path.name, WantedIndex(factory), anew=True)
    another = add(other, [f"{side}{n}" for side in "cb" for n in range(9)], 5)
    other.finish()
    other.close()
    reader = opened(path)
    check(reader, truth)
    for file in (tmp_path / "other").iterdir():
        if file.suffix != ".faiss":  # it can be made again, and need not be copied
            file.replace(path.with_name(file.name))
    reader.search(vector(3)[None].astype(np.float32), 1)
    check(reader, another, 2)
