"""Searches of a FAISS index that are limited to some of its rows."""

import contextlib
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
import torch

from vpr.search.exact import tiles

PARAMETERS: Any = faiss  # the stubs lack the parameters of searches
DENSEST = 64  # a bit for each row up to the greatest is cheaper than a set unless most are no rows of the index


def search_index(index: faiss.Index, queries: torch.Tensor, count: int, rows: np.ndarray | None) -> np.ndarray:
    """What `search_with_rows` finds for queries [M, dim] of any number format: int64 [M, c], -1 where there is none."""
    count = min(count, index.ntotal if rows is None else len(rows))
    parts = [search_with_rows(index, queries[tile].float().numpy(), count, rows)[1] for tile in tiles(*queries.shape)]
    return np.concatenate(parts) if parts else np.empty((0, count), np.int64)


def search_with_rows(
    index: faiss.Index, queries: np.ndarray, count: int, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest among some rows, by FAISS's selectors where the index has them, else by asking for more.

    An index that looks at a part of itself (lists of an inverted file, a graph) looks at so much that as many of the
    wanted rows are there as it would otherwise look at, and at twice as much until each query has as many hits as there
    can be: few rows among many may lie where it would not have looked.

    Args:
        queries: float32 [M, dim].
        rows: the ids that are wanted, int64; None: all.

    Returns:
        distances float32 [M, c] as the index measures them, NaN where there is none, and ids int64 [M, c], -1 there;
        c is the smaller of count and the number of rows.
    """
    if rows is None:
        distances, found = index.search(queries, count)
        return np.where(found < 0, np.float32(np.nan), distances), found
    rows = np.unique(np.asarray(rows, np.int64))
    count = min(count, len(rows))
    if count == 0 or len(queries) == 0:
        return np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
    try:
        distances, found = _selected(index, queries, count, rows)
    except RuntimeError:  # by which FAISS says that an index has no selectors
        distances, found = _overfetched(index, queries, count, rows)
    return np.where(found < 0, np.float32(np.nan), distances), found


def _selected(index: faiss.Index, queries: np.ndarray, count: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By a selector; queries that lack hits again, with twice the effort."""
    selector = _selector(rows, index.ntotal)
    effort = max(1, min(index.ntotal // len(rows), _greatest_effort(index)))
    distances, found = index.search(queries, count, params=_parameters(index, selector, effort))
    while (lacking := np.flatnonzero((found < 0).any(axis=1))).size and effort < _greatest_effort(index):
        effort *= 2
        parameters = _parameters(index, selector, effort)
        distances[lacking], found[lacking] = index.search(queries[lacking], count, params=parameters)
    return distances, found


def _overfetched(
    index: faiss.Index, queries: np.ndarray, count: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By searching everywhere, in all lists, for twice as many until enough of them are wanted."""
    distances = np.full((len(queries), count), np.nan, np.float32)
    found = np.full((len(queries), count), -1, np.int64)
    pending, depth = np.arange(len(queries)), min(2 * count, index.ntotal)
    with _all_lists(index):
        while pending.size:
            measured, ids = index.search(queries[pending], depth)
            wanted = np.isin(ids, rows)
            # The wanted ones first, in their order.
            order = np.argsort(~wanted, axis=1, kind="stable")[:, :count]
            there = np.take_along_axis(wanted, order, axis=1)
            distances[pending] = np.where(there, np.take_along_axis(measured, order, axis=1), np.nan)
            found[pending] = np.where(there, np.take_along_axis(ids, order, axis=1), -1)
            if depth == index.ntotal:
                break
            pending, depth = pending[~there.all(axis=1)], min(2 * depth, index.ntotal)
    return distances, found


@contextlib.contextmanager
def _all_lists(index: faiss.Index) -> Iterator[None]:
    """Have an inverted file look through all its lists."""
    lists = faiss.try_extract_index_ivf(index)
    if lists is None:
        yield
        return
    usual = lists.nprobe
    lists.nprobe = lists.nlist
    try:
        yield
    finally:
        lists.nprobe = usual


def _selector(rows: np.ndarray, total: int) -> faiss.IDSelector:
    if rows[0] < 0 or rows[-1] >= DENSEST * max(total, 1):
        return faiss.IDSelectorBatch(rows)
    wanted = np.zeros(rows[-1] + 1, bool)
    wanted[rows] = True
    return PARAMETERS.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))


def _parameters(index: faiss.Index, selector: faiss.IDSelector, effort: int) -> Any:
    """What an index and those within it are searched with; `effort` times as thoroughly as it is set to be."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return PARAMETERS.SearchParametersPreTransform(index_params=_parameters(index.index, selector, effort))
    if isinstance(index, (faiss.IndexIDMap, faiss.IndexIDMap2)):
        return _parameters(index.index, selector, effort)  # FAISS translates the selector's ids
    if isinstance(index, faiss.IndexRefine):
        base = _parameters(index.base_index, selector, effort)
        return PARAMETERS.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
    if isinstance(index, faiss.IndexIVF):
        return PARAMETERS.SearchParametersIVF(sel=selector, nprobe=min(effort * index.nprobe, index.nlist))
    if isinstance(index, faiss.IndexHNSW):
        return PARAMETERS.SearchParametersHNSW(sel=selector, efSearch=effort * index.hnsw.efSearch)
    return PARAMETERS.SearchParameters(sel=selector)


def _greatest_effort(index: faiss.Index) -> int:
    """An effort with which all of an index is looked at; 1 where it always is."""
    index = faiss.downcast_index(index)
    if isinstance(index, (faiss.IndexPreTransform, faiss.IndexIDMap, faiss.IndexIDMap2)):
        return _greatest_effort(index.index)
    if isinstance(index, faiss.IndexRefine):
        return _greatest_effort(index.base_index)
    if isinstance(index, faiss.IndexIVF):
        return -(-index.nlist // index.nprobe)
    if isinstance(index, faiss.IndexHNSW):
        return -(-index.ntotal // index.hnsw.efSearch)
    return 1
