"""Images and descriptors that tests of engines share."""

from pathlib import Path

import numpy as np

from vpr.database.engine import Source, WantedIndex
from vpr.database.records import Records

ZONE = "31N"


def descriptors(count, dim, seed):
    """float32 [count, dim] of length 1, rounded to float16 as an index stores them."""
    values = np.random.default_rng(seed).normal(size=(count, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def images(count, first=0, **changes):
    """Records of `count` images, 10 m apart eastwards, with columns weather (text) and floor (numbers, some silent)."""
    numbers = np.arange(first, first + count)
    fields = {
        "names": [f"street/{number:05}.jpg" for number in numbers],
        "positions": np.stack([448000.0 + 10 * numbers, np.full(count, 5411000.0)], axis=1),
        "zone": ZONE,
        "sizes": 1000 + numbers,
        "modified": 1_700_000_000_000_000_000 + numbers,
        "hashes": np.random.default_rng(first).integers(0, 256, (count, 32), dtype=np.uint8),
        "folders": [""] * count,
        "columns": {
            "weather": ["rain" if number % 2 else "sun" for number in numbers],
            "floor": [float(number % 5) if number % 7 else None for number in numbers],
        },
    }
    return Records(**{**fields, **changes})


def nearest_of(values, queries, count, rows):
    """By a loop: rows int [M, count] nearest first, and distances, for float64 descriptors."""
    found, distances = [], []
    for query in queries.astype(np.float64):
        each = {row: float(np.sqrt(((values[row].astype(np.float64) - query) ** 2).sum())) for row in rows}
        order = sorted(each, key=each.get)[:count]
        found.append(order)
        distances.append([each[row] for row in order])
    return np.array(found), np.array(distances)


def found_names(engine, rows):
    """Names of rows of hits; None where there is none."""
    return [[engine.records.names[row] if row >= 0 else None for row in hits] for hits in rows]


def open_milvus(target, collection, dim, provenance, index=None):
    """A collection of Milvus in a file or on a server."""
    from vpr.database.milvus.engine import open_engine

    return open_engine(Source(str(target), Path(), collection, dim, provenance, {}), WantedIndex(index))


def names_of(hits):
    """Names of hits; None where there is none."""
    return [[hits.records.names[row] if row >= 0 else None for row in rows] for rows in hits.rows]


def check(engine, values, queries, count, rows, wanted=None):
    """The engine's hits are those of a loop over some rows, by name, with their distances."""
    expected, distances = nearest_of(values, queries, count, rows)
    hits = engine.search(queries, count, wanted)
    found, measured = hits.rows, hits.distances
    names = [f"street/{row:05}.jpg" for row in range(len(values))]
    width = expected.shape[1]
    assert [hits[:width] for hits in names_of(hits)] == [[names[row] for row in hits] for hits in expected]
    np.testing.assert_allclose(measured[:, :width], distances, rtol=1e-5, atol=1e-7)
    assert (found[:, width:] == -1).all() and np.isnan(measured[:, width:]).all()
