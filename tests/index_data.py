"""An index of made-up images, and what a dictionary and brute force say of it."""

import numpy as np

from vpr.database.engine import Source, WantedIndex
from vpr.database.faiss_engine import open_engine
from vpr.database.filters import Condition, SearchFilter
from vpr.database.records import Records
from vpr.descriptors.local_maps import SCALE

DIM, MADE = 8, {"arch": "alexnet", "weights_hash": "abc"}


def vector(seed):
    value = np.random.default_rng(seed).normal(size=DIM)
    return (value / np.linalg.norm(value)).astype(np.float16)


def local_of(seed):
    """Local descriptors of one image: 2 x 3 places of 4 dimensions."""
    return np.random.default_rng(seed).integers(-SCALE, SCALE, (6, 4)).astype(np.int8), (2, 3)


def records_of(names, **columns):
    count = len(names)
    positions = np.array([(float(len(name)), float(sum(map(ord, name)))) for name in names]).reshape(-1, 2)
    hashes = np.array([[sum(map(ord, name)) % 256] * 32 for name in names], np.uint8).reshape(-1, 32)
    times = np.arange(count, dtype=np.int64)
    return Records(list(names), positions, None, times + 5, times, hashes, [""] * count, columns)


def add(index, names, seed=0, local=False):
    rows = np.stack([vector([seed, *map(ord, name)]) for name in names])
    maps = [local_of([seed, *map(ord, name)]) for name in names] if local else None
    index.add(records_of(names, side=[name[0] for name in names]), rows, maps)
    return dict(zip(names, rows, strict=True))


def check(index, truth, count=5):
    """What is there is what was added; searches find what brute force finds, all of it and a part."""
    rows = index.rows()
    names = [index.records.names[row] for row in rows]
    assert sorted(names) == sorted(truth) and index.count() == len(truth)
    for row, name, value in zip(rows, names, index.descriptors(rows), strict=True):
        assert np.array_equal(value, truth[name]) and index.row_of[name] == row
        assert index.records.positions[row].tolist() == [len(name), sum(map(ord, name))]
    queries = np.stack([vector([99, n]) for n in range(4)]).astype(np.float32)
    for wanted in (None, SearchFilter(where=(Condition("side", "=", "b"),))):
        allowed = [name for name in truth if wanted is None or name[0] == "b"]
        found, distances, _ = index.search(queries, count, wanted)
        for query, hits, apart in zip(queries, found, distances, strict=True):
            true = {name: float(np.linalg.norm(truth[name].astype(np.float32) - query)) for name in allowed}
            best = sorted(true, key=true.__getitem__)[:count]
            hits = hits[hits >= 0]
            assert [index.records.names[hit] for hit in hits] == best
            np.testing.assert_allclose(apart[: len(hits)], [true[name] for name in best], rtol=1e-3)


def source(path, **made_by):
    return Source("", path, "", DIM, {**MADE, **made_by}, {})


def opened(path, wanted=WantedIndex(), anew=False, **made_by):  # noqa: B008 - frozen
    return open_engine(source(path, **made_by), wanted, anew)
