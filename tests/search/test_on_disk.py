"""FAISS inverted lists in a memory-mapped file, and searches limited to some rows."""

import os
import subprocess
import sys

import faiss
import h5py
import numpy as np
import pytest
import torch

from tests.engine_data import descriptors
from vpr.common import files
from vpr.common.errors import UserError
from vpr.search import on_disk
from vpr.search.limited import search_index
from vpr.search.on_disk import build_on_disk, index_files, open_on_disk

COUNT, DIM = 1000, 16
VALUES = descriptors(COUNT, DIM, 0)
QUERIES = descriptors(6, DIM, 1)


def squared_distances(queries=QUERIES, values=VALUES):
    return ((queries[:, None].astype(float) - values) ** 2).sum(axis=2)


def brute_force(count, rows, values=VALUES, queries=QUERIES):
    """Squared distances and rows, by a sort of all."""
    squared = squared_distances(queries, values[rows])
    order = np.argsort(squared, axis=1)[:, :count]
    return np.take_along_axis(squared, order, axis=1), np.asarray(rows)[order]


@pytest.fixture
def stem(tmp_path):
    return tmp_path / "database_a.b"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(on_disk, "BLOCK_BYTES", 300 * 4 * DIM)  # the last of four has 100 rows


def in_memory(factory, values=VALUES):
    """An index of these descriptors; their rows are the ids."""
    index = faiss.index_factory(DIM, factory)
    index.train(values)
    index.add_with_ids(values, np.arange(COUNT)) if factory.startswith("IDMap") else index.add(values)
    return index


def search_rows(index, count, rows, queries=QUERIES):
    return search_index(index, torch.from_numpy(queries), count, rows)


def rows_of(kind, stem):
    """The descriptors as a dataset of h5py, a tensor or a numpy.memmap."""
    if kind == "tensor":
        return torch.from_numpy(VALUES).half()
    if kind == "h5py":
        return h5py.File(stem.with_suffix(".h5"), "w").create_dataset("descriptors", data=VALUES.astype(np.float16))
    rows = np.lib.format.open_memmap(stem.with_suffix(".npy"), "w+", np.float16, (COUNT, DIM))
    rows[:] = VALUES
    return rows


@pytest.mark.parametrize("kind", ["h5py", "tensor", "memmap"])
def test_blocks_make_the_index_of_all_whatever_the_rows_come_from(stem, small_blocks, kind, capfd):
    build_on_disk(stem, "IVF8,Flat", rows_of(kind, stem), 0, nprobe=8)
    index = open_on_disk(stem)
    printed = capfd.readouterr().out
    assert "resizing" not in printed and "updating" not in printed  # which FAISS would print
    assert index.ntotal == COUNT
    distances, found = index.search(QUERIES, 10)
    expected = brute_force(10, np.arange(COUNT))
    np.testing.assert_array_equal(found, expected[1])
    np.testing.assert_allclose(distances, expected[0], atol=1e-5)
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    assert index_files(stem)[1].stat().st_size >= COUNT * (4 * DIM + 8)
    assert sorted(file.name for file in stem.parent.iterdir() if file.suffix in (".faiss", ".lists", ".part")) == [
        "database_a.b.faiss", "database_a.b.lists"
    ]  # fmt: skip


def test_codes_and_transforms_are_those_of_the_index_in_memory(stem, small_blocks):
    """Trained on the same rows: with as many as there are, the sample is all of them, in order."""
    build_on_disk(stem, "PCAR8,IVF4,SQ8", VALUES, 0, nprobe=3)
    direct = in_memory("PCAR8,IVF4,SQ8")
    for nprobe in (None, 1):
        faiss.extract_index_ivf(direct).nprobe = nprobe or 3
        for mine, theirs in zip(
            open_on_disk(stem, nprobe).search(QUERIES, 20), direct.search(QUERIES, 20), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_an_index_travels_with_its_lists(stem, tmp_path):
    build_on_disk(stem, "IVF4,Flat", VALUES, 0)
    (tmp_path / "elsewhere").mkdir()
    for file in index_files(stem):
        file.rename(tmp_path / "elsewhere" / file.name)
    assert (open_on_disk(tmp_path / "elsewhere" / stem.name).search(VALUES[:5], 1)[1][:, 0] == np.arange(5)).all()


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,PQ4x4fs", "IVF4,Flat,RFlat", "IVF4,PQ4+4", "IVF4,Fla"])
def test_other_indexes_are_refused_and_the_old_one_stays(stem, factory):
    build_on_disk(stem, "IVF4,Flat", VALUES, 0)
    with pytest.raises(UserError, match="--index="):
        build_on_disk(stem, factory, VALUES[:400], 0)
    assert open_on_disk(stem).ntotal == COUNT
    assert len(list(stem.parent.iterdir())) == 2


def test_damage_is_found_before_faiss_reads(stem, monkeypatch):
    build_on_disk(stem, "IVF4,Flat", VALUES, 0)
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("FAISS was given a damaged file"))
    for file in index_files(stem):
        sound = file.read_bytes()
        for where in (0, len(sound) // 2, len(sound) - 100, len(sound) - 1):
            file.write_bytes(sound[:where] + bytes([sound[where] ^ 1]) + sound[where + 1 :])
            with pytest.raises(UserError, match="damaged"):
                open_on_disk(stem)
        file.write_bytes(sound[:-3])
        with pytest.raises(UserError, match="damaged"):
            open_on_disk(stem)
        file.unlink()
        with pytest.raises(UserError, match="No such file"):
            open_on_disk(stem)
        file.write_bytes(sound)


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from vpr.search import on_disk
on_disk.BLOCK_BYTES = 100 * 4 * 16
real = on_disk.faiss.write_index
def write(index, name, *more):
    real(index, name, *more)
    if str(name).endswith("-3.part"):
        os.kill(os.getpid(), 9)
on_disk.faiss.write_index = write
on_disk.build_on_disk(Path(sys.argv[1]), "IVF4,Flat", np.load(sys.argv[2]), 0)
"""


def test_a_killed_writer_leaves_the_old_index_and_nothing_that_stays(stem, tmp_path):
    build_on_disk(stem, "IVF4,Flat", VALUES[:500], 0)
    np.save(tmp_path / "values.npy", VALUES)
    words = [sys.executable, "-c", KILLED, str(stem), str(tmp_path / "values.npy")]
    assert subprocess.run(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode == -9
    assert open_on_disk(stem).ntotal == 500
    assert len(list(tmp_path.glob(".*.part"))) >= 4
    files._remove_leftovers.cache_clear()  # once in a process
    build_on_disk(stem, "IVF4,Flat", VALUES, 0)
    assert open_on_disk(stem).ntotal == COUNT
    assert not list(tmp_path.glob(".*.part"))


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot"):
        build_on_disk(tmp_path / "file" / "index", "IVF4,Flat", VALUES, 0)


EXACT = ["Flat", "IVF8,Flat", "HNSW16", "IDMap,Flat", "PCAR16,Flat", "PCAR16,IVF8,Flat", "IDMap2,IVF8,Flat", "NSG16",
         "IVF8,Flat,RFlat", "L2norm,Flat"]  # fmt: skip


@pytest.mark.parametrize("factory", EXACT)
@pytest.mark.parametrize("rows", [np.arange(3, COUNT, 9), np.array([5, 777, 12]), np.arange(0, 998)])
def test_a_search_of_some_rows_is_brute_force_among_them(factory, rows):
    index = in_memory(factory)
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and len(rows) > 100:
        lists.nprobe = 8  # few rows are found from one list on
    if factory == "HNSW16":
        index.hnsw.efSearch = 500
    found, (distances, expected) = search_rows(index, 20, rows), brute_force(20, rows)
    assert found.shape == (6, min(20, len(rows)))
    right = (np.sort(found, axis=1) == np.sort(expected, axis=1)).mean()
    assert right > 0.95 if factory in ("NSG16", "HNSW16") else right == 1
    if right == 1:  # L2norm makes lengths 1 that rounding has changed by less than a thousandth
        tolerance = 3e-3 if "norm" in factory else 1e-5
        np.testing.assert_allclose(np.take_along_axis(squared_distances(), found, axis=1), distances, atol=tolerance)


@pytest.mark.parametrize("factory", ["PQ4x4", "LSH", "SQ8", "PCAR8,IVF8,PQ4x4", "PQ4x4fs", "HNSW8",
                                     "IVF64,PQ4+4", "RR16,IVF64,PQ4+4", "IVF64,PQ4x4fsr"])  # fmt: skip
def test_with_or_without_selectors_all_hits_are_wanted_rows_and_none_is_missing(factory):
    """As many as there can be, nearest first as the index measures."""
    index, rows = in_memory(factory), np.arange(1, COUNT, 13)
    found = search_rows(index, 15, rows)
    assert np.isin(found, rows).all()
    assert all(len(set(hits)) == 15 for hits in found.tolist())
    if (lists := faiss.try_extract_index_ivf(index)) is not None:
        lists.nprobe = lists.nlist
    measured = squared_distances()
    if factory != "HNSW8":  # which finds no others than the nearest
        np.put_along_axis(measured, *reversed(index.search(QUERIES, COUNT)), axis=1)
    steps = np.diff(np.take_along_axis(measured, found, axis=1), axis=1)
    assert (steps >= (-0.05 if factory.endswith("fsr") else -1e-6)).all()  # whose tables in 8 bits go by the lists


@pytest.mark.parametrize("factory", ["IVF64,Flat", "HNSW8"])
def test_the_fewer_rows_are_wanted_the_more_of_the_index_is_looked_at(factory):
    """A first hit that is a wanted row is not the nearest of them."""
    rows, queries = np.arange(1, COUNT, 25), descriptors(200, DIM, 2)
    found = search_rows(in_memory(factory), 1, rows, queries)
    assert (found == brute_force(1, rows, queries=queries)[1]).mean() > 0.85


def test_ids_that_are_no_row_numbers():
    ids = np.arange(COUNT) * 10**15
    index = faiss.IndexIDMap(faiss.IndexFlatL2(DIM))
    index.add_with_ids(VALUES, ids)
    np.testing.assert_array_equal(search_rows(index, 7, ids[::3]), 10**15 * brute_force(7, np.arange(0, COUNT, 3))[1])


def test_no_rows_and_rows_that_are_not_there():
    index = in_memory("Flat")
    assert search_rows(index, 5, np.empty(0, int)).shape == (6, 0)
    assert (np.sort(search_rows(index, 5, np.array([3, 4, 2000])), axis=1) == [-1, 3, 4]).all()


def test_an_index_on_disk_is_searched_among_some_rows(stem):
    build_on_disk(stem, "IVF8,Flat", VALUES, 0, nprobe=8)
    rows = np.arange(2, COUNT, 5)
    np.testing.assert_array_equal(search_rows(open_on_disk(stem), 9, rows), brute_force(9, rows)[1])
    assert os.access(index_files(stem)[1], os.R_OK)
