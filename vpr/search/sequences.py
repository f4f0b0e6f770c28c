"""Search by sequences: a database image is like a query if the frames around both are alike.

SeqSLAM (Milford and Wyeth, ICRA 2012, section III) adds the differences of images along straight lines through the
matrix of all query and database frames, one line for each plausible ratio of speeds, and takes the best line. Here the
similarities of descriptors are averaged along such lines, which end at the ends of sequences:

    score(q, m) = max over v of the mean over i of S[q + i, m + round(v (t(q + i) - t(q)))]

q + i are the query's frames -L .. L of its own sequence, t(q) their numbers in it. Where the line leaves the sequence
of m, the mean of S[q + i] over the database stands for the frame that is missing: it counts neither for nor against m.
So every candidate of a query is judged by equally many terms; one at the end of a sequence cannot win by averaging few.
"""

import functools

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import Progress, say
from vpr.data.frames import Frames, usual_step
from vpr.search.floats import Descriptors, Float32Rows, tiles
from vpr.search.rules import Excluded, SequenceRule

TILE_BYTES = 32 << 20  # of similarities at a time
SAID_BYTES = 1 << 30  # of similarities, from which on a line says how many there are


def sequence_scores(similarities: np.ndarray, queries: Frames, database: Frames, rule: SequenceRule) -> np.ndarray:
    """Combine similarities along sequences.

    Args:
        similarities: float32 [M, N] of queries and database images, both in the order of `Frames.order`. NaN: the image
            may not be found for that query; it counts as missing, and stays NaN.

    Returns:
        float32 [M, N], of the similarities' scale.
    """
    missing = np.isnan(similarities)
    present = np.maximum((~missing).sum(axis=1, keepdims=True), 1).astype(similarities.dtype)
    means = np.where(missing, 0, similarities).sum(axis=1, keepdims=True) / present
    known = np.where(missing, means, similarities)
    totals = [known.copy() for _ in rule.speeds]
    known = np.concatenate([known, means], axis=1)  # [M, N + 1], the last for frames beyond a sequence's ends
    step = usual_step(database)
    longest = np.rint(database.numbers.max(initial=0) / step) + 1  # so many steps on, every sequence has ended
    neighbours, there, passed = _frames_around(queries, rule)  # each [M, offsets]
    moves = np.rint(np.array(rule.speeds)[:, None, None] * passed / step)  # [speeds, M, offsets]
    moves = moves.clip(-longest, longest)
    moved = functools.cache(lambda move: _moved(database, move, step))
    for offset in range(there.shape[1]):
        asking = np.flatnonzero(there[:, offset])
        # Queries whose frames are equally far apart have the same moves: one selection of columns serves them all.
        alike, group = np.unique(moves[:, asking, offset], axis=1, return_inverse=True)
        for number, own in enumerate(alike.T):
            rows = asking[group.ravel() == number]
            frames = known[neighbours[rows, offset]]
            along = {move: frames.take(moved(move), axis=1) for move in set(own)}
            for total, move in zip(totals, own, strict=True):
                total[rows] += along[move]
    best = functools.reduce(np.maximum, totals)
    best /= (1 + there.sum(axis=1, keepdims=True)).astype(best.dtype)
    best[missing] = np.nan
    return best


def frames_used(queries: Frames, rule: SequenceRule) -> np.ndarray:
    """Of how many frames each query's score is the mean, itself among them: int64 [M]. Queries may be in any order."""
    order = queries.order()
    _, there, _ = _frames_around(queries.of(order), rule)
    used = np.empty(len(queries), np.int64)
    used[order] = 1 + there.sum(axis=1)
    return used


def _frames_around(queries: Frames, rule: SequenceRule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The frames around each query, without itself: row, whether it is there, and its number less the query's."""
    offsets = [i for i in range(-rule.length, 1 if rule.causal else rule.length + 1) if i]
    rows = np.arange(len(queries))[:, None] + np.array(offsets, np.int64)  # [M, offsets]
    inside = (rows >= 0) & (rows < len(queries))
    rows = np.where(inside, rows, 0)
    there = inside & (queries.sequences[rows] == queries.sequences[:, None])
    return rows, there, queries.numbers[rows] - queries.numbers[:, None]


def _moved(database: Frames, move: float, step: float) -> np.ndarray:
    """For each database image the one `move` steps on in its sequence, of two as near the first; N beyond the ends."""
    sequences, count = database.sequences, len(database)
    frames = np.rint(database.numbers / step)  # [N], from 0 in each sequence
    span = frames.max(initial=0) + abs(move) + 1  # keeps the sequences apart on one line
    line, wanted = 3 * span * sequences + frames, 3 * span * sequences + frames + move
    behind = np.searchsorted(line, wanted).clip(0, count - 1)
    before = np.searchsorted(line, line[(behind - 1).clip(0)])  # of frames that round to one number the first
    nearest = np.where(np.abs(line[before] - wanted) <= np.abs(line[behind] - wanted), before, behind)
    first = np.searchsorted(sequences, sequences, "left")
    last = np.searchsorted(sequences, sequences, "right") - 1
    inside = (wanted >= line[first]) & (wanted <= line[last])
    return np.where(inside, nearest, count)


def require_order(sequences: tuple[Frames, Frames], rule: SequenceRule) -> None:
    """Refuse images of database and queries that are no sequences, unless single frames are asked for. Raises a
    UserError: no two images of either are frames of one sequence, or no line meets two of the database's frames."""
    if not rule.length:
        return
    for role, each in zip(("database images", "queries"), sequences, strict=True):
        if len(np.unique(each.sequences)) == len(each):
            raise UserError(
                f"--sequence wants frames in order, and no two of the {len(each)} {role} are of one sequence: "
                "wanted names in one folder that differ in their last number alone; rename the images, or drop "
                "--sequence"
            )
    steps = [usual_step(each.of(each.order())) for each in sequences]
    nearest_move = min(map(abs, rule.speeds)) * steps[1] / steps[0]
    if round(nearest_move) > sequences[0].numbers.max() / steps[0]:
        raise UserError(
            f"--sequence: the queries' numbers go in steps of {steps[1]:g}, the database's in steps of {steps[0]:g} "
            f"over sequences of {sequences[0].numbers.max():g} at most: give --speeds, by which the former are "
            "multiplied"
        )


def search_sequences(
    database: Descriptors,
    queries: Descriptors,
    count: int,
    sequences: tuple[Frames, Frames],
    rule: SequenceRule,
    excluded: Excluded | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The database images whose sequences are most like those of the queries.

    Args:
        database: [N, dim]; queries: [M, dim]; both of length 1, float16 or float32; `sequences` are theirs.
        excluded: which database images may not be found; their similarities are not used either.

    Returns:
        indices int64 [M, min(count, N)], best first, -1 where there are not so many; scores float32, likewise, -inf.
    """
    columns, order = (each.order() for each in sequences)
    of_database, of_queries = sequences[0].of(columns), sequences[1].of(order)
    count = min(count, len(database))
    found, scores = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
    size = 4 * len(queries) * len(database)
    reach, rows = rule.length, max(1, TILE_BYTES // (4 * len(database)))
    with Progress("search by sequences", len(queries), "queries") as progress:
        if rule.length and progress.shown:
            say(f"sequences: database, {sequences[0].text()}; queries, {sequences[1].text()}")
        if size > SAID_BYTES and progress.shown:
            say(f"sequences: {len(queries)} x {len(database)} similarities, {size / 1e9:.1f} GB, a part at a time")
        for start in range(0, len(queries), rows):
            stop = min(start + rows, len(queries))
            around = slice(max(0, start - reach), min(stop + reach, len(queries)))
            asking = order[around]
            similarities = _similarities(database, queries, asking, columns)
            if excluded is not None:
                similarities[excluded(asking)[:, columns]] = np.nan
            combined = sequence_scores(similarities, of_queries.of(around), of_database, rule)
            own = combined[start - around.start : stop - around.start]
            which = _greatest(np.where(np.isnan(own), -np.inf, own), count)
            best = np.take_along_axis(own, which, axis=1)
            found[order[start:stop]] = np.where(np.isnan(best), -1, columns[which])
            scores[order[start:stop]] = np.where(np.isnan(best), -np.inf, best)
            progress.advance(stop - start)
    return found, scores


def _similarities(database: Descriptors, queries: Descriptors, asking: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Inner products float32 [m, N], of some queries [m] and the database in the order of `columns`."""
    products, of_database = np.empty((len(asking), len(columns)), np.float32), Float32Rows()
    rows = Float32Rows()(queries, asking)
    for tile in tiles(len(columns), database.shape[1]):
        products[:, tile] = rows @ of_database(database, columns[tile]).T
    return products


def _greatest(scores: np.ndarray, count: int) -> np.ndarray:
    """Where the greatest `count` of each row stand, greatest first, of equal ones the first: int64 [m, count]."""
    if count < scores.shape[1]:
        which = np.sort(np.argpartition(-scores, count - 1, axis=1)[:, :count], axis=1)
    else:
        which = np.broadcast_to(np.arange(count), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, which, axis=1), axis=1, kind="stable")
    return np.take_along_axis(which, order, axis=1)
