"""Searches that are limited to some images: by FAISS's selectors, or by asking any search for more."""

import contextlib
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from vpr.search.exact import in_front
from vpr.search.floats import Descriptors, Float32Rows, tiles

PARAMETERS: Any = faiss  # the stubs lack the parameters of searches
DENSEST = 64  # a bit for each row up to the greatest is cheaper than a set unless most are no rows of the index


def search_index(index: faiss.Index, queries: Descriptors, count: int, rows: np.ndarray | None) -> np.ndarray:
    """The nearest among some rows of an index, by its selectors where it has them, else by asking for more.

    An index that looks at a part of itself (lists of an inverted file, a graph) looks at so much that as many of the
    wanted rows are there as it would otherwise look at, and at twice as much until each query has as many hits as there
    can be: few rows among many may lie where it would not have looked.
    `queries`: [M, dim], float16 or float32. `rows`: the ids that are wanted, int64; None: all. Gives ids int64 [M,
    min(count, number of rows)], nearest first as the index measures; -1 where there is none.
    """
    rows = None if rows is None else np.unique(np.asarray(rows, np.int64))
    count = min(count, index.ntotal if rows is None else len(rows))
    if not count:
        return np.empty((len(queries), 0), np.int64)
    floats = Float32Rows()
    parts = [_search(index, floats(queries, tile), count, rows) for tile in tiles(*queries.shape)]
    return np.concatenate(parts) if parts else np.empty((0, count), np.int64)


def search_allowed(
    search: Callable[[Any, int], np.ndarray], queries: Any, count: int, allowed: np.ndarray, most: int
) -> np.ndarray:
    """Hits of any search that are allowed, int64 [m, count], filled up with -1.

    Each query asks for twice as many as before until `count` of its hits are allowed, as one would in use. To ask
    at once for so many that `count` must be left would be slower and flatter some indexes: refined ones (RFlat) and
    NSG look the deeper the more hits they are asked for.
    `search`: of (queries [m, dim], hits asked for), gives indices [m, hits], nearest first. `most`: hits to ask for.
    """
    found = np.full((len(queries), count), -1, np.int64)
    lacking, depth = np.arange(len(queries)), count
    while len(lacking):
        depth = min(2 * depth, most)
        hits = search(queries[lacking], depth)
        hits = in_front(hits, np.isin(hits, allowed))[:, :count]
        found[lacking, : hits.shape[1]] = hits
        if depth == most:
            break
        lacking = lacking[(hits < 0).any(axis=1)]
    return found


def _search(index: faiss.Index, queries: np.ndarray, count: int, rows: np.ndarray | None) -> np.ndarray:
    if rows is None:
        return index.search(queries, count)[1]
    try:
        return _selected(index, queries, count, rows)
    except RuntimeError:  # by which FAISS says that an index has no selectors
        with contextlib.ExitStack() as stack:
            if (lists := faiss.try_extract_index_ivf(index)) is not None:
                stack.callback(setattr, lists, "nprobe", lists.nprobe)
                lists.nprobe = lists.nlist
            return search_allowed(lambda some, depth: index.search(some, depth)[1], queries, count, rows, index.ntotal)


def _selected(index: faiss.Index, queries: np.ndarray, count: int, rows: np.ndarray) -> np.ndarray:
    """By a selector; queries that lack hits again, with twice the effort."""
    parameters, most = _parameters(index, _selector(rows, index.ntotal))
    effort = max(1, min(index.ntotal // len(rows), most))
    found = index.search(queries, count, params=parameters(effort))[1]
    while (lacking := np.flatnonzero((found < 0).any(axis=1))).size and effort < most:
        effort *= 2
        found[lacking] = index.search(queries[lacking], count, params=parameters(effort))[1]
    return found


def _selector(rows: np.ndarray, total: int) -> faiss.IDSelector:
    if rows[0] < 0 or rows[-1] >= DENSEST * max(total, 1):
        return faiss.IDSelectorBatch(rows)
    wanted = np.zeros(rows[-1] + 1, bool)
    wanted[rows] = True
    return PARAMETERS.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))


def _parameters(index: faiss.Index, selector: faiss.IDSelector) -> tuple[Callable[[int], Any], int]:
    """What an index and those within it are searched with, by effort: 1 is as thoroughly as it is set to be.

    Also the effort with which all of it is looked at; 1 where it always is.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        return _parameters(index.index, selector)  # FAISS translates the selector's ids
    if isinstance(index, faiss.IndexPreTransform):
        inner, most = _parameters(index.index, selector)
        return lambda effort: PARAMETERS.SearchParametersPreTransform(index_params=inner(effort)), most
    if isinstance(index, faiss.IndexRefine):
        inner, most = _parameters(index.base_index, selector)
        refine, factor = PARAMETERS.IndexRefineSearchParameters, index.k_factor
        return lambda effort: refine(k_factor=factor, base_index_params=inner(effort)), most
    if isinstance(index, faiss.IndexIVF):
        usual, lists = index.nprobe, index.nlist
        of_lists = PARAMETERS.SearchParametersIVF
        return lambda effort: of_lists(sel=selector, nprobe=min(effort * usual, lists)), -(-lists // usual)
    if isinstance(index, faiss.IndexHNSW):
        breadth = index.hnsw.efSearch
        of_graph = PARAMETERS.SearchParametersHNSW
        return lambda effort: of_graph(sel=selector, efSearch=effort * breadth), -(-index.ntotal // breadth)
    return lambda _: PARAMETERS.SearchParameters(sel=selector), 1
