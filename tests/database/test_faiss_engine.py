"""An index of which images come and go, against a dictionary and brute force."""

import numpy as np
import pytest
from index_data import add, check, local_of, opened, vector

from vpr.database.engine import WantedIndex
from vpr.database.filters import Condition, SearchFilter
from vpr.models.local_projection import LocalProjection


@pytest.fixture
def path(tmp_path):
    return tmp_path / "database_x.sqlite"


@pytest.mark.parametrize("factory", [None, "IVF1,Flat", "HNSW8", "RR8,Flat"])
def test_images_come_are_replaced_and_go(path, factory):
    index, truth = opened(path, WantedIndex(factory), anew=True), {}
    truth |= add(index, ["a1", "b1", "b2"])
    truth |= add(index, ["a2", "b3", "b1"], 1)  # b1 again
    check(index, truth)
    index.finish()
    check(index, truth)
    truth |= add(index, ["b4", "a1"], 2)  # beside what FAISS's index has
    index.remove(["b2", "nobody"])
    del truth["b2"]
    check(index, truth)
    index.close()
    again = opened(path)
    check(again, truth)
    again.finish(["b4", "b1"])
    assert again.records.names[:2] == ["b4", "b1"] and again.next_row == len(truth), "in order, without the removed"
    check(again, truth)
    again.close()
    check(opened(path), truth)


def test_local_descriptors_come_and_go_with_their_images(path):
    index = opened(path, WantedIndex(local_dim=4), anew=True)
    projection = LocalProjection(np.arange(6.0), np.eye(4, 6), "nothing")
    index.begin(projection)
    add(index, ["a1", "b1", "c1"], local=True)
    add(index, ["b1", "d1"], 1, local=True)
    index.close()
    seeds = {"a1": 0, "b1": 1, "c1": 0, "d1": 1, "e1": 1}

    def check_local(index):
        for name, row in index.row_of.items():
            values, grid = local_of([seeds[name], *map(ord, name)])
            np.testing.assert_array_equal(index.local.rows(row), values)
            assert tuple(index.local.grids[row]) == grid
        assert np.array_equal(index.projection.components, projection.components)
        assert index.projection.learnt_on == "nothing" and index.keeps_local

    index = opened(path)
    check_local(index)
    index.finish(["d1", "a1"])
    assert index.records.names == ["d1", "a1", "c1", "b1"]
    check_local(index)
    add(index, ["e1"], 1, local=True)
    index.remove(["a1"])
    check_local(opened(path))
    index.finish()
    check_local(index)
    index.close()
    index = opened(path, anew=True)
    index.finish([])
    assert index.local is None and index.projection is None and index.count() == 4


def test_an_index_says_whether_it_was_changed_by_hand(path):
    index = opened(path)
    truth = add(index, ["a1", "b1"])
    index.finish([])
    assert not opened(path).edited
    index.by_hand = True
    index.remove(["a1"])
    index.close()
    again = opened(path)
    assert again.edited
    check(again, {"b1": truth["b1"]})
    again.finish()
    assert opened(path).edited
    again.finish(["b1"])
    assert not opened(path).edited


def test_a_server_finds_the_same_at_the_same_distances(path):
    index = opened(path)
    truth = add(index, [f"{side}{n}" for side in "ab" for n in range(9)])
    queries = np.stack([vector([99, n]) for n in range(4)])
    narrow = index.search(queries, 7)
    index.prepare_to_serve(writable=True)
    for before, after in zip(narrow[:2], index.search(queries, 7)[:2], strict=True):
        np.testing.assert_array_equal(before, after)
    truth |= add(index, ["b3", "c1"], seed=4)
    index.remove(["a1"])
    del truth["a1"]
    check(index, truth)
    index.close()
    check(opened(path), truth)


# Estimates of codes and bits are far from true distances, and a search of one list misses most.
COARSE = ["PQ2x4", "IVF16,PQ2x4", "IVF16,PQ2+2", "LSH", "IVF16,Flat", "HNSW4", "PQ2x4,RFlat", "PCA2,Flat"]


def coarse(path, factory, count, side="ab"):
    """An index of `count` images by a factory, of which one list is looked through; and what it holds."""
    index = opened(path, WantedIndex(factory, nprobe=1), anew=True)
    truth = add(index, [f"{side[n % len(side)]}{n}" for n in range(count)])
    index.finish()
    return index, truth


def true_distances(index, query, names, truth):
    return {name: np.linalg.norm(truth[name].astype(np.float64) - query.astype(np.float64)) for name in names}


@pytest.mark.parametrize("factory", COARSE)
def test_an_approximate_index_tells_the_distances_of_the_stored_descriptors(path, factory):
    """In their order; and an image lies at 0 from itself, whatever its code is."""
    index, truth = coarse(path, factory, 300)
    queries = np.stack([vector([99, n]) for n in range(8)] + list(truth.values())[:8])
    found, distances, _ = index.search(queries, 12)
    assert index.measures and (np.diff(distances[:, :3], axis=1) >= 0).all()
    for query, hits, apart in zip(queries, found, distances, strict=True):
        hits, apart = hits[hits >= 0], apart[hits >= 0]
        true = true_distances(index, query, [index.records.names[hit] for hit in hits], truth)
        np.testing.assert_allclose(apart, list(true.values()), rtol=1e-5)
        assert list(true.values()) == sorted(true.values()) and len(hits) > 2
    itself = [index.row_of[name] for name in list(truth)[:8]]
    zeros = [(hits[0], apart[0]) for hits, apart in zip(found[8:], distances[8:], strict=True)]
    assert all(apart == 0 for row, (hit, apart) in zip(itself, zeros, strict=True) if hit == row)


@pytest.mark.parametrize("factory", COARSE)
@pytest.mark.parametrize("side", ["abbbbbbbbb", "ab"])
def test_a_search_of_few_images_of_an_approximate_index_is_exact(path, factory, side):
    """As it is for each of them that was removed."""
    index, truth = coarse(path, factory, 300, side)
    index.remove(["a0"])
    few = [name for name in truth if name[0] == "a" and name != "a0"]
    queries = np.stack([vector([99, n]) for n in range(6)])
    found, distances, _ = index.search(queries, 20, SearchFilter(where=(Condition("side", "=", "a"),)))
    for query, hits, apart in zip(queries, found, distances, strict=True):
        true = true_distances(index, query, few, truth)
        assert [index.records.names[hit] for hit in hits] == sorted(true, key=true.__getitem__)[:20]
        np.testing.assert_allclose(apart, sorted(true.values())[:20], rtol=1e-5)


@pytest.mark.parametrize("factory", COARSE)
def test_what_came_since_is_compared_as_what_the_index_holds(path, factory):
    """By their true distances."""
    index, truth = coarse(path, factory, 300)
    queries = np.stack([vector([99, n]) for n in range(10)])
    before = index.search(queries, 5)
    truth |= add(index, [f"c{n}" for n in range(60)], 1)
    found, distances, _ = index.search(queries, 5)
    assert (np.diff(distances, axis=1) >= 0).all() and ((found >= 300).any(axis=1) & (found < 300).any(axis=1)).any()
    for query, hits, old in zip(queries, found, before[0], strict=True):
        candidates = [index.records.names[row] for row in old if row >= 0] + [f"c{n}" for n in range(60)]
        true = true_distances(index, query, candidates, truth)
        assert [index.records.names[hit] for hit in hits] == sorted(true, key=true.__getitem__)[:5]


def test_an_index_is_named_where_it_may_miss_the_nearest(path):
    for factory, name in [
        (None, ""), ("Flat", ""), ("IVF4,Flat", "faiss IVF4,Flat (1 of 4 lists looked through)"),
        ("PQ2x4", "faiss PQ2x4"), ("HNSW4", "faiss HNSW4"), ("PQ2x4,RFlat", "faiss PQ2x4,RFlat"),
        ("LSH", "faiss LSH (10 times as many hits, in the order of their descriptors)"),
    ]:  # fmt: skip
        index = coarse(path, factory, 40)[0]
        assert index.approximate == name
        index.close()
        path.unlink()
