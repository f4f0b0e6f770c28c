"""The stages from descriptors to answers, each a function: search, re-rank, say how sure, answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vpr.common.progress import Progress
from vpr.data.frames import find_sequences, usual_step
from vpr.database.records import Records
from vpr.descriptors.local_maps import LocalMaps
from vpr.retrieval import answer_features
from vpr.retrieval.answer import Answer, match_of
from vpr.retrieval.answer_features import Answers
from vpr.retrieval.ask import Ask, NotServed
from vpr.retrieval.calibration_file import StoredCalibration
from vpr.retrieval.conditions.centring import MapConditions
from vpr.retrieval.conditions.session import Session
from vpr.retrieval.long_work import Pause, no_pause
from vpr.retrieval.matching import beyond_chance
from vpr.retrieval.rerank import Compare, comparer, rerank
from vpr.retrieval.rules import HEAD, Reranking
from vpr.retrieval.verification.head import head_of, probability
from vpr.retrieval.verification.kept import KeypointPairs
from vpr.search.sequences import SequenceRule, frames_used

NO_PART = (
    "--sequence searches exactly, and whole sequences, by --engine=faiss: drop --near, --box, --where, --engine and "
    "--index, or name an exact index with --indexFile"
)


@dataclass(frozen=True)
class Ranking:
    """What was found for M images, in the order so far."""

    answers: Answers  # hits, as rows of `records`, with what ordered them
    records: Records  # of the database, as it was when it was searched
    filtered: bool = False  # whether only a part of the database was searched
    steps: tuple[str, ...] = ()  # see `order`
    approximate: str = ""  # see `vpr.database.engine.Searchable`
    excluded: str = ""  # which images might not be found, in words; empty: all might
    # Finds the matches of an image's local descriptors with those of a hit; None where it has none.
    compare: Compare | None = None
    # Scores [M, K] of the first K hits by name: global, and those of local descriptors.
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    # Rows of database images that were drawn at random, with which it can be compared as well.
    drawn: tuple[int, ...] = ()
    queries: np.ndarray | None = None  # descriptors of the images as they were searched for, [M, dim]
    usual_distances: np.ndarray | None = None  # see `Answer`, float [M]; None where the engine measures none

    @property
    def order(self) -> str:
        """What ordered hits beside the descriptors of single images, and what found them unless exactly, in words.

        A calibration serves answers of one order alone.
        """
        order = ", then ".join(self.steps) or "none"
        order = f"{order}; found by the approximate index {self.approximate}" if self.approximate else order
        return f"{order}; {self.excluded}" if self.excluded else order

    def drawn_elsewhere(self, row: int) -> list[int]:
        """The images that were drawn and lie over ELSEWHERE metres from a row, as far as positions are known."""
        positions, drawn = self.records.positions, np.array(self.drawn, np.int64)
        near = np.linalg.norm(positions[drawn] - positions[row], axis=1) <= answer_features.ELSEWHERE
        return [int(each) for each in drawn[~near] if each != row]

    def only(self, row: int) -> np.ndarray:
        """The hits of an image, without those that there are not: rows of `records`."""
        hits = self.answers.found[row]
        return hits[hits >= 0]


def search(engine: Any, descriptors: np.ndarray, ask: Ask, count: int, names: Sequence[str] = ()) -> Ranking:
    """The hits of images, by their descriptors or by those of the frames around them.
    Raises a NotServed: the engine does not search so; a UserError: it does not answer.

    Args:
        engine: a `vpr.database.engine.Engine`, or what has its `search` and `search_in_order`.
        descriptors: [M, dim]; count: hits of each.
        names: of the images, which say which are frames of one sequence; wanted for sequences and exclusion alone.
    """
    if not (ask.sequence or ask.exclusion or ask.session):
        found, distances, records = engine.search(descriptors, count, ask.filter)
        answers = Answers(found, distances, records.positions)
        return Ranking(answers, records, ask.filter is not None, approximate=engine.approximate)
    if ask.filter or not engine.searches_sequences:
        raise NotServed(NO_PART, "a session is searched whole and exactly by the engine faiss: ask without a filter")
    if ask.session:
        return _search_in_session(engine, descriptors, ask.session, count)
    rule, records = ask.sequence or SequenceRule(0), engine.records
    sequences = records.frames, find_sequences(names)
    more, excluded = {}, ""
    if ask.exclusion:
        if not getattr(engine, "excludes", False):
            raise NotServed("frames are left out of the search of a split alone: ask without exclusion")
        more, excluded = {"exclusion": ask.exclusion}, ask.exclusion.text()
    found, distances, similarities = engine.search_in_order(descriptors, count, sequences, rule, **more)
    answers = Answers(found, distances, records.positions)
    if not ask.sequence:
        return Ranking(answers, records, excluded=excluded)
    answers = replace(answers, sequence=similarities, frames=frames_used(sequences[1], rule))
    return Ranking(answers, records, steps=(rule.text(),), excluded=excluded)  # sequences are searched exactly


def search_for(
    conditions: MapConditions, descriptors: np.ndarray, ask: Ask, count: int, names: Sequence[str] = ()
) -> Ranking:
    """As `search`, in the map of these conditions; of queries and database without means, where that is asked for."""
    session = ask.session
    engine, queries, centring = conditions.of(descriptors, ask.conditions, session)
    if session and centring and not in_order(engine):
        ask = replace(ask, session=None)  # then its frames have the mean in common alone
    ranking = search(engine, queries, ask, count, names)
    if session:
        session.count_in(descriptors)
    return replace(ranking, queries=queries, steps=(*filter(None, [centring]), *ranking.steps))


def in_order(engine: Any) -> bool:
    """Whether some of a database's images are frames in order."""
    rows = engine.rows()
    return len(np.unique(engine.records.frames.sequences[rows])) < len(rows)


def _search_in_session(engine: Any, descriptors: np.ndarray, session: Session, count: int) -> Ranking:
    """The hits of the next frames of a session, [m, dim], by those before each, which they join."""
    engine.check()  # what others have committed is taken before rows are numbered
    records = engine.records
    own = records.frames
    if not in_order(engine):
        raise NotServed("the database's images are in no order: a session wants names that differ in a number alone")
    frames, order = session.with_next(descriptors, usual_step(own.of(own.order())))
    found, distances, similarities = engine.search_in_order(frames, count, (own, order), session.rule)
    session.add(descriptors)
    answers = Answers(found, distances, records.positions, None, None, similarities, frames_used(order, session.rule))
    last = np.arange(len(frames) - len(descriptors), len(frames))
    return Ranking(answers.only(last), records, steps=(session.rule.text(),))


def rerank_hits(
    ranking: Ranking,
    queries: LocalMaps,
    known: LocalMaps,
    how: Reranking,
    images: np.ndarray | None = None,
    pause: Pause = no_pause,
) -> Ranking:
    """The first hits in the order of their local descriptors: `queries` has those of the images; `known` and `images`,
    as of `rerank`, those of the database."""
    before, similarities = ranking.answers, _similarities(ranking.answers)
    again = rerank(before.found, similarities, queries, known, how, pause, images)
    distances = _reordered(before.distances, again.order)
    answers = Answers(again.found, distances, before.positions, again.scores, again.agreeing)
    parts = {"global": _reordered(similarities, again.order)[:, : again.order.shape[1]], **again.local}
    compare, steps = comparer(queries, known, how, images), (*ranking.steps, how.text(queries.dim))
    return replace(ranking, answers=answers, steps=steps, compare=compare, parts=parts)


def verify_hits(ranking: Ranking, pairs: KeypointPairs, how: Reranking, pause: Pause = no_pause) -> Ranking:
    """The first hits in the order of their keypoints that agree with one camera's movement, beside what is known."""
    before, parts = ranking.answers, dict(ranking.parts) or {"global": _similarities(ranking.answers)}
    depth = min(how.depth, how.verified, before.found.shape[1])
    inliers, scores = np.zeros((len(before.found), depth), np.int64), np.full((len(before.found), depth), -np.inf)
    with Progress("verification", len(before.found), "queries") as progress:
        for query, hits in enumerate(before.found[:, :depth]):
            there = np.flatnonzero(hits >= 0)
            if not len(there):
                continue
            inliers[query, there] = [pair.inliers for pair in pairs.of(query, hits[there], pause)]
            own = {name: values[query, there] for name, values in parts.items()}
            if how.by == HEAD:
                odds = head_of(True).log_odds({**own, "inliers": inliers[query, there]})
                scores[query, there] = probability(odds)
            else:
                scores[query, there] = inliers[query, there] + probability(own["global"])  # which orders equals
            progress.advance()
    order = np.argsort(-scores, axis=1, kind="stable")
    scores, inliers = (np.take_along_axis(values, order, axis=1) for values in (scores, inliers))
    agreeing = None if before.agreeing is None else _reordered(before.agreeing, order)
    found, distances = _reordered(before.found, order), _reordered(before.distances, order)
    answers = Answers(found, distances, before.positions, scores, agreeing, inliers=inliers)
    parts = {name: _reordered(values, order) for name, values in parts.items()}
    steps = (*ranking.steps, how.verified_text())
    return replace(ranking, answers=answers, steps=steps, compare=pairs.compared, parts=parts)


def _similarities(answers: Answers) -> np.ndarray:
    """Cosines of the global descriptors, [M, c]; of sequences their sums: each frame's counts as one image's does."""
    if answers.sequence is not None and answers.frames is not None:
        return answers.sequence * answers.frames[:, None]
    return 1 - answers.distances**2 / 2


def _reordered(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Values of hits [M, c], of which the first K come in another order [M, K]."""
    depth = order.shape[1]
    return np.concatenate([np.take_along_axis(values[:, :depth], order, axis=1), values[:, depth:]], axis=1)


def confidences(ranking: Ranking, stored: StoredCalibration | None) -> tuple[np.ndarray, str]:
    """How sure the first hits are [M], NaN where unknown, and what that is, in words.

    Nothing is known where a filter hides what looks as similar. A calibration gives a probability; without one a ratio
    stands for it, unless the first hit has no position: then none is known to be of another place.
    """
    answers, unknown = ranking.answers, np.full(len(ranking.answers.found), np.nan)
    if ranking.filtered:
        return unknown, answer_features.LIMITED
    if stored:
        return stored.calibration.probability(answers), stored.label
    ratio, kind = answer_features.uncalibrated(answers)
    placed = answer_features.first_is_placed(answers)
    if (answers.found >= 0).any() and not placed.any():
        kind = answer_features.UNPLACED
    return np.where(placed, ratio, unknown), kind


def with_threshold(ask: Ask, stored: StoredCalibration | None) -> Ask:
    """A question with the least confidence that keeps false answers rare; without a guarantee none is enough."""
    if ask.false_rate is None:
        return ask
    least = stored.guarantee.threshold(ask.false_rate) if stored and stored.guarantee else np.inf
    return replace(ask, least=max(least, ask.least or 0.0))


def answer(ranking: Ranking, number: int, ask: Ask, confidence: float, kind: str, root: Path) -> Answer:
    """The answer to one of the images, with the confidence of its first hit, NaN where unknown, and what that is.

    `root` is the folder of the database's images, where the records do not say.
    """
    records, rows = ranking.records, ranking.only(number)[: ask.top]
    hits = zip(rows, ranking.answers.distances[number], ranking.answers.ordering(number), strict=False)
    matches = [
        match_of(records.names[row], distance, records.positions[row], records.zone, score)
        for row, distance, score in hits
    ]
    sure = None if np.isnan(confidence) else float(confidence)
    refused = ask.least is not None and (sure is None or sure < ask.least)
    compare = ranking.compare if ask.agreement and len(rows) else None
    agreement = verification = None
    if compare:
        others, first = ranking.drawn_elsewhere(int(rows[0])), compare(number, int(rows[0]))
        verification = first.verification
        agreement = beyond_chance(first.matches, [compare(number, n).matches for n in others])
    usual = None if ranking.usual_distances is None else float(ranking.usual_distances[number])
    files = [records.file(int(row), root) for row in rows]
    off = answer_features.place_uncertainty(ranking.answers, number)
    return Answer(matches, files, sure, kind, refused, agreement, verification, usual, off)
