"""Which hits count: the search protocol of each data set."""

import numpy as np
import torch

from pittsburgh import Places
from vpr.data.catalogue import OTHER_TIME, PANORAMA
from vpr.data.frames import Frames, find_sequences
from vpr.search.exact import Search, nearest
from vpr.search.exclusion import Excluded, either, own_time
from vpr.search.sequences import SequenceRule, require_order, search_sequences

CUTOUTS_PER_PANORAMA = 12  # Tokyo 24/7


def search_places(
    database: torch.Tensor, queries: torch.Tensor, count: int, places: Places, search: Search | None = None
) -> np.ndarray:
    """Find `count` hits for each query as the set's own protocol counts them.

    `panorama` (Tokyo 24/7): only the first hit of each panorama counts (Torii et al., CVPR 2015). `other_time`
    (Tokyo Time Machine): hits with the query's own time stamp do not count. `plain`: the nearest.

    Args:
        search: an approximate search of the database; None searches exactly.

    Returns:
        int64 [M, count]; -1 where there are not so many.
    """
    if places.protocol == OTHER_TIME:
        found = _nearest_of_other_times(database, queries, count, places, search)
    elif places.protocol == PANORAMA:
        candidates = _find(database, queries, count * CUTOUTS_PER_PANORAMA, search)
        found = first_per_panorama(candidates, panoramas_of(places.database_names))
    else:
        found = _find(database, queries, count, search)
    padded = np.full((len(queries), count), -1, np.int64)
    padded[:, : min(count, found.shape[1])] = found[:, :count]
    return padded


def search_frames(
    database: torch.Tensor,
    queries: torch.Tensor,
    count: int,
    places: Places,
    rule: SequenceRule,
    excluded: Excluded | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `search_places`, exactly, by sequences of frames; names say which images are frames of one sequence.

    Args:
        excluded: database images that may not be found, beside those of the set's protocol.

    Returns:
        int64 [M, count], best first, -1 where there are not so many; and float32 [M, count], what they were ordered by:
        similarities, -inf where there is none.

    Raises:
        UserError: the images are no frames in order.
    """
    sequences = walks_of(places)
    require_order(sequences, rule)
    if places.protocol == OTHER_TIME:
        excluded = either(excluded, own_time(places))
    factor = CUTOUTS_PER_PANORAMA if places.protocol == PANORAMA else 1
    found, scores = search_sequences(database, queries, count * factor, sequences, rule, excluded)
    if places.protocol == PANORAMA:
        kept = first_of_panoramas(found, panoramas_of(places.database_names))
        found, scores = _in_front(found, kept), _in_front(scores, kept, -np.inf)
    padded, padded_scores = np.full((len(queries), count), -1, np.int64), np.full((len(queries), count), -np.inf)
    padded[:, : found.shape[1]], padded_scores[:, : found.shape[1]] = found[:, :count], scores[:, :count]
    return padded, padded_scores.astype(np.float32)


def walks_of(places: Places) -> tuple[Frames, Frames]:
    """The sequences of the database and of the queries, by their names."""
    return find_sequences(places.database_names), find_sequences(places.query_names)


def _find(database: torch.Tensor, queries: torch.Tensor, count: int, search: Search | None) -> np.ndarray:
    return search(queries, count) if search else nearest(database, queries, count)


def panoramas_of(names: list[str]) -> np.ndarray:
    """The panorama of each Tokyo 24/7 cut-out [N]: names are alike up to the heading behind the last '_'."""
    _, panoramas = np.unique([name.rsplit("_", 1)[0] for name in names], return_inverse=True)
    return panoramas


def first_per_panorama(candidates: np.ndarray, panoramas: np.ndarray) -> np.ndarray:
    """Keep the first hit of each panorama in each row; [M, c] -> [M, c], filled up with -1."""
    return _in_front(candidates, first_of_panoramas(candidates, panoramas))


def first_of_panoramas(candidates: np.ndarray, panoramas: np.ndarray) -> np.ndarray:
    """Which hits are the first of their panorama in their row: bool [M, c]."""
    first = np.zeros(candidates.shape, bool)
    for row, hits in enumerate(candidates):
        first[row, np.unique(panoramas[hits], return_index=True)[1]] = True
    return first & (candidates >= 0)


def _in_front(values: np.ndarray, kept: np.ndarray, filling: float = -1) -> np.ndarray:
    """Move the values that are kept to the front of each row, in their order, and fill up."""
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, values, filling), order, axis=1)


def _nearest_of_other_times(
    database: torch.Tensor, queries: torch.Tensor, count: int, places: Places, search: Search | None
) -> np.ndarray:
    assert places.query_times is not None and places.database_times is not None
    found = np.full((len(queries), count), -1, np.int64)
    for time in np.unique(places.query_times):
        asking = np.flatnonzero(places.query_times == time)
        allowed = np.flatnonzero(places.database_times != time)
        if not len(allowed):
            continue
        if search:
            hits = _search_allowed(search, queries[asking], count, allowed, len(database))
        else:
            hits = nearest(database, queries[asking], count, allowed)
        found[asking, : hits.shape[1]] = hits
    return found


def _search_allowed(
    search: Search, queries: torch.Tensor, count: int, allowed: np.ndarray, database_size: int
) -> np.ndarray:
    """Hits of an approximate search that are allowed [m, count], filled up with -1.

    Each query asks for twice as many as before until `count` of its hits are allowed, as one would in use. To ask
    at once for so many that `count` must be left would be slower and flatter some indexes: refined ones (RFlat) and
    NSG look the deeper the more hits they are asked for.
    """
    found = np.full((len(queries), count), -1, np.int64)
    enough = min(count + database_size - len(allowed), database_size)  # so many leave `count`, whichever they are
    open_queries, wanted = np.arange(len(queries)), count
    while len(open_queries):
        wanted = min(2 * wanted, enough)
        hits = search(queries[open_queries], wanted)
        hits = _in_front(hits, np.isin(hits, allowed))[:, :count]
        found[open_queries, : hits.shape[1]] = hits
        if wanted == enough:
            break
        open_queries = open_queries[(hits < 0).any(axis=1)]
    return found
