"""The head of re-ranking against loops, and hits ordered by it and by keypoints against brute force."""

import json
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
from test_rerank import literal_score, maps_of, random_map

from vpr.retrieval.answer_features import FEATURES, Answers, answer_features
from vpr.retrieval.ranking import Ranking, rerank_hits, verify_hits
from vpr.retrieval.rerank import rerank
from vpr.retrieval.rules import Reranking
from vpr.retrieval.verification.head import FILE, head_of, probability, standardised

SIZES = [(4, 3), (3, 4), (5, 5), (2, 6), (3, 3), (4, 4)]
STORED = json.loads(FILE.read_text())
kinds = pytest.mark.parametrize("kind", ["plain", "verified"])


def by_loop(values):
    """Scores minus their mean, over their deviation."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / deviation if deviation > 1e-6 else 0.0 for value in values]


def odds_by_loop(kind, scores):
    """Log-odds of hits by the coefficients of the file."""
    known, columns = STORED[kind], {}
    for name in known["weights"]:
        values = [float(value) for value in scores[name]]
        columns[name] = by_loop(values)
    count = len(next(iter(columns.values())))
    return [known["bias"] + sum(w * columns[name][n] for name, w in known["weights"].items()) for n in range(count)]


def scores_of_hits(seed, count=9):
    random = np.random.default_rng(seed)
    parts = {name: random.uniform(0, 1, count) for name in ("global", "soft", "spatial")}
    return {**parts, "inliers": random.integers(0, 200, count)}


def test_standardised_scores_are_those_of_a_loop():
    scores = np.random.default_rng(0).normal(3, 5, (4, 7))
    found = standardised(scores)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [by_loop(row.tolist()) for row in scores], rtol=1e-12)
    np.testing.assert_allclose(standardised(scores.astype(np.float32)), found, atol=1e-5)


@pytest.mark.parametrize("value", [0, 0.1, 1e9, -3])
def test_of_equal_scores_none_tells_anything(value):
    for count in (1, 2, 7):
        assert (standardised(np.full(count, value)) == 0).all()
    assert (standardised(np.zeros((2, 3), np.int64)) == 0).all()


def test_shift_and_scale_of_a_score_change_nothing():
    scores = np.random.default_rng(1).normal(size=20)
    for scale, shift in ((1, 100), (1e-3, 0), (1e4, -5)):
        np.testing.assert_allclose(standardised(scale * scores + shift), standardised(scores), atol=1e-9)


@kinds
def test_log_odds_are_those_of_a_loop_over_the_stored_coefficients(kind):
    head = head_of(kind == "verified")
    for seed in range(3):
        scores = scores_of_hits(seed)
        np.testing.assert_allclose(head.log_odds(scores), odds_by_loop(kind, scores), rtol=1e-12)
    alike = {name: np.full(4, 5) for name in scores}
    np.testing.assert_allclose(head.log_odds(alike), STORED[kind]["bias"], rtol=1e-12)


@kinds
def test_log_odds_go_with_their_hits_and_ignore_units(kind):
    head, scores = head_of(kind == "verified"), scores_of_hits(5)
    order = np.random.default_rng(0).permutation(9)
    moved = head.log_odds({name: values[order] for name, values in scores.items()})
    np.testing.assert_allclose(moved, head.log_odds(scores)[order], rtol=1e-12)
    other = {**scores, "global": 7 * scores["global"] - 2, "inliers": 9 * scores["inliers"]}
    np.testing.assert_allclose(head.log_odds(other), head.log_odds(scores), rtol=1e-9)


def test_a_score_that_speaks_for_a_hit_raises_its_odds():
    for kind in ("plain", "verified"):
        scores = {name: np.arange(9) for name in STORED[kind]["weights"]}
        assert (np.diff(head_of(kind == "verified").log_odds(scores)) > 0).all()


def test_probabilities_are_of_the_logistic_function_and_never_overflow():
    with np.errstate(all="raise"):
        found = probability(np.array([-1e308, -800.0, 800.0, 1e308]))
    assert found.tolist() == [0, 0, 1, 1]
    odds = np.linspace(-30, 30, 61)
    np.testing.assert_allclose(probability(odds), [1 / (1 + math.exp(-value)) for value in odds], rtol=1e-3)
    np.testing.assert_allclose(probability(odds) + probability(-odds), 1)


@kinds
def test_the_stored_coefficients_are_whole(kind):
    known = STORED[kind]
    assert list(known["weights"]) == ["global", "soft", "spatial", "inliers"][: 4 if kind == "verified" else 2]
    assert all(math.isfinite(value) for value in [*known["weights"].values(), known["bias"]])


def test_the_file_says_what_it_was_learnt_on():
    assert STORED["sets"] and STORED["models"] and STORED["seeds"] and re.fullmatch(r"\d{4}-\d\d-\d\d", STORED["date"])


# Re-ranking. ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maps():
    """Six database maps and three queries: noise, a database map with noise, and one of them itself."""
    known = [random_map(seed, *size) for seed, size in enumerate(SIZES)]
    queries = [random_map(10, 4, 4), known[2] + 0.7 * random_map(11, 5, 5), known[4]]
    return known, queries


def test_the_head_orders_as_brute_force_does(maps):
    known, queries = maps
    found = np.array([[5, 3, 0, 1, 2], [0, 2, -1, 4, 1], [1, 2, 3, 4, -1]])
    cosines = np.random.default_rng(3).uniform(-0.2, 1, found.shape)
    new = rerank(found, cosines, maps_of(*queries), maps_of(*known), Reranking(4, "head"))
    assert set(new.local) == {"soft", "spatial"}
    for row, hits in enumerate(found):
        there = [n for n in range(4) if hits[n] >= 0]
        parts = {by: [literal_score(queries[row], known[hits[n]], by)[0] for n in there] for by in ("soft", "spatial")}
        counts = [literal_score(queries[row], known[hits[n]], "soft")[1] for n in there]
        odds = odds_by_loop("plain", {"global": cosines[row, there], **parts})
        order = sorted(range(len(there)), key=lambda n: -odds[n])
        wanted = [there[n] for n in order]
        assert new.found[row].tolist() == [*hits[wanted], *[-1] * (4 - len(there)), hits[4]], (
            "none last; the rest stays"
        )
        assert new.order[row, : len(there)].tolist() == wanted
        sure = [1 / (1 + math.exp(-odds[n])) for n in order]
        np.testing.assert_allclose(new.scores[row, : len(there)], sure, rtol=1e-3)
        assert (new.scores[row, len(there) :] == -np.inf).all()
        for name, values in parts.items():
            np.testing.assert_allclose(new.local[name][row, : len(there)], [values[n] for n in order], atol=1e-4)
        np.testing.assert_allclose(new.agreeing[row, : len(there)], [counts[n] for n in order], rtol=1e-3)


def test_fewer_hits_than_are_looked_at(maps):
    known, queries = maps
    found = np.array([[3, 1], [2, -1], [-1, -1]])
    new = rerank(found, np.ones((3, 2)), maps_of(*queries), maps_of(*known), Reranking(50, "head"))
    assert new.order.shape == (3, 2) and set(new.found[0]) == {1, 3}
    assert new.found[1:].tolist() == [[2, -1], [-1, -1]]
    assert new.scores[1, 0] == pytest.approx(1 / (1 + math.exp(-STORED["plain"]["bias"])), rel=1e-5)


# Verification. --------------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    inliers: int


class Pairs:
    """In place of keypoints: how many agree, by the row of the hit."""

    def __init__(self, inliers):
        self.inliers, self.asked = inliers, []

    def of(self, query, rows, pause=None):
        self.asked.append((query, [int(row) for row in rows]))
        return [Pair(self.inliers[query][row]) for row in rows]

    def compared(self, query, row):
        raise AssertionError("nobody asked")


def ranking_of(found, distances, **changes):
    positions = np.stack([100.0 * np.arange(10), np.zeros(10)], axis=1)
    return Ranking(Answers(np.array(found), np.array(distances), positions, **changes), None)


def cosines_of(distances):
    return [1 - distance**2 / 2 for distance in distances]


FOUND = [[4, 0, 2, 1, 3], [3, 1, -1, -1, -1], [-1] * 5]
DISTANCES = [[0.4, 0.5, 0.55, 0.6, 0.9], [0.7, 0.71, np.nan, np.nan, np.nan], [np.nan] * 5]


def test_the_head_with_keypoints_orders_as_brute_force_does(maps):
    """After re-ranking, whose scores it takes; the rest of the list stays as re-ranking left it."""
    known, queries = maps
    found, distances = np.array([[5, 3, 0, 1, 2], [0, 2, -1, 4, 1]]), np.random.default_rng(2).uniform(0.2, 1, (2, 5))
    how = Reranking(4, "head", 3)
    looked = rerank_hits(ranking_of(found, distances), maps_of(*queries[:2]), maps_of(*known), how)
    inliers = [[20, 150, 8, 30, 0, 90], [12, 0, 7, 200, 40, 3]]
    again = verify_hits(looked, Pairs(inliers), how)
    for row in range(2):
        hits = [int(hit) for hit in looked.answers.found[row, :3] if hit >= 0]
        place = {int(hit): n for n, hit in enumerate(found[row])}
        parts = {by: [literal_score(queries[row], known[hit], by)[0] for hit in hits] for by in ("soft", "spatial")}
        cosines = cosines_of([distances[row, place[hit]] for hit in hits])
        counts = [inliers[row][hit] for hit in hits]
        odds = odds_by_loop("verified", {"global": cosines, **parts, "inliers": counts})
        order = sorted(range(len(hits)), key=lambda n: -odds[n])
        answers = again.answers
        assert answers.found[row].tolist() == [*(hits[n] for n in order), *looked.answers.found[row, len(hits) :]]
        np.testing.assert_allclose(answers.scores[row], [1 / (1 + math.exp(-odds[n])) for n in order], rtol=1e-3)
        assert answers.inliers[row].tolist() == [counts[n] for n in order]
        for n, hit in enumerate(answers.found[row]):  # what is said of a hit goes with it
            assert hit < 0 or answers.distances[row, n] == distances[row, place[int(hit)]]
            agreeing = dict(zip(looked.answers.found[row], looked.answers.agreeing[row], strict=False))
            assert n >= 4 or answers.agreeing[row, n] == agreeing[hit]
            assert (
                n >= 4
                or hit < 0
                or again.parts["global"][row, n] == pytest.approx(1 - distances[row, place[int(hit)]] ** 2 / 2)
            )
    assert again.steps == (
        "a second look at the first 4 hits (head, 16-D local descriptors in 8 bits)",
        "verification of the first 3 hits (head, XFeat's keypoints)",
    )


@pytest.mark.parametrize("verified", [1, 2, 4, 20])
def test_keypoints_alone_order_by_how_many_agree(verified):
    inliers = [[9, 30, 9, 50, 9], [0, 11, 0, 10, 0], [0] * 5]
    pairs = Pairs(inliers)
    with np.errstate(all="raise"):
        again = verify_hits(ranking_of(FOUND, DISTANCES), pairs, Reranking(4, "xfeat", verified))
    depth = min(4, verified)
    for row, hits in enumerate(FOUND):
        first = sorted([hit for hit in hits[:depth] if hit >= 0], key=lambda hit: -inliers[row][hit])
        found = again.answers.found[row].tolist()
        assert found == [*first, *hits[len(first) :]], "equals by their distances"
        assert again.answers.inliers[row, : len(first)].tolist() == [inliers[row][hit] for hit in first]
        assert (again.answers.scores[row, len(first) :] == -np.inf).all()
        assert (np.diff(again.answers.scores[row, : len(first)]) <= 0).all()
    assert again.answers.scores.shape == again.answers.inliers.shape == (3, depth)
    assert pairs.asked == [(row, [hit for hit in FOUND[row][:depth] if hit >= 0]) for row in range(2)]
    assert again.answers.agreeing is None and again.compare == pairs.compared
    assert again.steps == (f"verification of the first {depth} hits (xfeat, XFeat's keypoints)",)


def test_cosines_outvote_no_keypoint():
    """A hit that points the other way, with one more keypoint that agrees than the nearest."""
    again = verify_hits(ranking_of([[0, 1]], [[0.1, 1.9]]), Pairs([[8, 9]]), Reranking(2, "xfeat", 2))
    assert again.answers.found.tolist() == [[1, 0]]
    # The similarity of a sequence is the sum of its frames': 5 of them differ by 3.
    frames = {"sequence": np.array([[0.9, 0.3]]), "frames": np.array([5])}
    again = verify_hits(ranking_of([[0, 1]], [[0.1, 1.2]], **frames), Pairs([[8, 9]]), Reranking(2, "xfeat", 2))
    assert again.answers.found.tolist() == [[1, 0]]


def test_of_sequences_the_sum_of_the_frames_similarities_counts():
    """Equals come in the order of sequences, not of single images."""
    frames = {"sequence": np.array([[0.9, 0.8, 0.7]]), "frames": np.array([3])}
    ranking = ranking_of([[0, 1, 2]], [[0.9, 0.5, 0.1]], **frames)
    again = verify_hits(ranking, Pairs([[7, 7, 7]]), Reranking(3, "xfeat", 3))
    assert again.answers.found.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(again.parts["global"], [[2.7, 2.4, 2.1]])


def test_an_answer_tells_how_many_keypoints_agree():
    answers = verify_hits(
        ranking_of(FOUND, DISTANCES), Pairs([[9, 30, 9, 50, 9], [0, 11, 0, 10, 0], []]), Reranking(4, "xfeat", 3)
    ).answers
    features = dict(zip(FEATURES, answer_features(answers, 4.0).T, strict=True))
    np.testing.assert_allclose(features["inliers"][:2], np.log([10, 12]))
    assert np.isnan(features["inliers"][2])
    some = answers.only(np.array([1]))
    for name in ("found", "distances", "scores", "inliers"):
        np.testing.assert_array_equal(getattr(some, name), getattr(answers, name)[[1]])
    assert some.agreeing is None and some.positions is answers.positions
    plain = answer_features(ranking_of(FOUND, DISTANCES).answers, 4.0)
    assert np.isnan(plain[:, list(FEATURES).index("inliers")]).all()
