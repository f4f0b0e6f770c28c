"""Conversion to float32 against NumPy's, of every float16 there is."""

import sys

import numpy as np
import pytest

from vpr.search.exact import descriptor_distances, nearest
from vpr.search.floats import Float32Rows, to_float32

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)  # subnormal, infinite and NaN among them


@pytest.fixture(params=["by PyTorch", "by FAISS"], autouse=True)
def _converted(request, monkeypatch):
    __import__("torch")
    if request.param == "by FAISS":
        monkeypatch.delitem(sys.modules, "torch")


def test_every_float16_becomes_the_float32_of_its_value():
    finite = EVERY[np.isfinite(EVERY)]
    for values in (EVERY, finite, finite[finite < 0], finite[finite >= 0], EVERY[:0], finite[::3]):
        values = values[:, None]
        wide = np.empty(values.shape, np.float32)
        to_float32(values, wide)
        np.testing.assert_array_equal(wide, values.astype(np.float32))
        np.testing.assert_array_equal(np.signbit(wide), np.signbit(values))


@pytest.mark.parametrize("not_finite", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_value_that_is_not_finite_stays_so(not_finite):
    values = np.array([[0.5, not_finite, -65504]], np.float16)
    wide = np.empty((1, 3), np.float32)
    to_float32(values, wide)
    np.testing.assert_array_equal(wide, values.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_those_that_were_asked_for(dtype):
    """Of slices and of chosen rows, in memory that was larger before."""
    values, rows = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype), Float32Rows()
    for wanted in (slice(0, 50), slice(3, 20), slice(4, 4), np.array([7, 7, 49, 0]), np.arange(0), slice(10, 50)):
        found = rows(values, wanted)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, values[wanted].astype(np.float32))


def test_memory_is_used_again_and_never_the_descriptors_own_where_a_copy_is_wanted():
    half, whole, rows = np.ones((9, 4), np.float16), np.ones((9, 4), np.float32), Float32Rows()
    assert np.shares_memory(rows(half, slice(0, 9)), rows(half, slice(2, 5)))
    assert np.shares_memory(rows(whole, slice(0, 9)), whole)
    rows(whole, slice(0, 9), own=True)[:] = 2
    assert (whole == 1).all()


@pytest.mark.parametrize("queries", [3, 30])
def test_of_equal_rows_the_first_is_found_first(queries):
    database = np.repeat(np.random.default_rng(1).normal(size=(5, 16)), 8, axis=0).astype(np.float16)
    asked = np.resize(database[::8], (queries, 16))
    found = nearest(database, asked, 8)
    np.testing.assert_array_equal(found, 8 * (np.arange(queries) % 5)[:, None] + np.arange(8))
    np.testing.assert_array_equal(descriptor_distances(database, asked, found), np.zeros((queries, 8)))


def test_distances_are_those_of_float64_and_nan_where_nothing_was_found():
    random = np.random.default_rng(2)
    database, queries = random.normal(size=(20, 600)).astype(np.float16), random.normal(size=(7, 600))
    database[3] = np.nan
    found = random.integers(-1, 20, size=(7, 9))
    wanted = np.linalg.norm(queries.astype(np.float32)[:, None].astype(float) - database[found].astype(float), axis=2)
    wanted[found < 0] = np.nan
    distances = descriptor_distances(database, queries.astype(np.float32), found)
    assert np.isnan(distances).any()
    np.testing.assert_allclose(distances, wanted, rtol=1e-6)
