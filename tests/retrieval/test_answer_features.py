"""Features of answers: SUE's formula by a literal loop, the ratio by hand, and what is not known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from vpr.retrieval.answer_features import (
    FEATURES,
    Answers,
    answer_features,
    distance_ratio,
    hit_spread,
    hits_elsewhere,
    place_uncertainty,
    score_ratio,
    uncalibrated,
)
from vpr.retrieval.calibration import Calibration

THREE = np.array([[0.0, 0], [10, 0], [500, 0]])  # positions: two of one place, and another one


def sue_by_loop(positions, distances, slope):
    """Weighted variance of east and north, deviations within +-500 m, averaged over the two axes; a length."""
    weights = [math.exp(-slope * d * d) for d in distances]
    total, variances = sum(weights), []
    for axis in range(2):
        mean = sum(w * p[axis] for w, p in zip(weights, positions, strict=True)) / total
        capped = [max(-500.0, min(500.0, p[axis] - mean)) for p in positions]
        variances.append(sum(w * c * c for w, c in zip(weights, capped, strict=True)) / total)
    return math.sqrt(sum(variances) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_the_spread_is_sue_with_both_sides_capped(seed):
    random = np.random.default_rng(seed)
    positions = random.normal(0, 400, (40, 2)) + (585_000, 4_477_000)
    found = np.stack([random.permutation(40)[:15] for _ in range(6)])
    distances = np.sort(random.uniform(0.6, 1.2, (6, 15)), axis=1)
    spread = hit_spread(found, distances, positions, slope=4.0)
    for row in range(6):
        wanted = sue_by_loop(positions[found[row, :10]].tolist(), distances[row, :10], 4.0)
        assert spread[row] == pytest.approx(wanted, rel=1e-6)


def test_the_cap_is_on_both_sides():
    """Mirrored places have the same spread, which a cap on the positive side alone breaks."""
    positions = np.array([[0.0, 0], [10, 0], [3000, 0]])
    found, distances = np.array([[0, 1, 2]]), np.array([[0.5, 0.6, 0.7]])
    spreads = [hit_spread(found, distances, sign * positions, 1.0)[0] for sign in (1, -1)]
    assert spreads[0] == pytest.approx(spreads[1])
    assert spreads[0] <= 500


def test_a_steep_slope_neither_vanishes_nor_divides_by_zero():
    positions = np.array([[0.0, 0], [80, 60]])
    spread = hit_spread(np.array([[0, 1]]), np.array([[1.4, 1.40001]]), positions, 350.0)
    weights = np.exp(-350 * (np.array([1.4, 1.40001]) ** 2 - 1.4**2))
    share = weights[1] / weights.sum()
    variance = share * (1 - share) * np.array([80.0, 60.0]) ** 2
    assert spread[0] == pytest.approx(math.sqrt(variance.mean()), rel=1e-6)
    assert hit_spread(np.array([[0]]), np.array([[1.4]]), positions, 350.0)[0] == 0, "one hit lies at one place"


def test_the_spread_is_unknown_without_places_distances_or_hits():
    positions = np.array([[0.0, 0], [1, 1], [np.nan, np.nan]])
    found = np.array([[0, 1], [0, 2], [0, 1], [-1, -1], [1, -1]])
    distances = np.array([[0.5, 0.6], [0.5, 0.6], [0.5, np.nan], [np.nan, np.nan], [0.5, np.nan]])
    known = ~np.isnan(hit_spread(found, distances, positions, 1.0))
    assert known.tolist() == [True, False, False, False, True]


def ratio_by_loop(hits, distances, positions):
    there = [(hit, d) for hit, d in zip(hits, distances, strict=True) if hit >= 0]
    if len(there) < 2 or any(math.isnan(d) for _, d in there):
        return None
    near = [math.dist(positions[hit], positions[there[0][0]]) <= 25 for hit, _ in there[1:]]
    apart = [d for (_, d), close in zip(there[1:], near, strict=True) if not close]  # NaN is not close
    second = min(apart) if apart else max(d for _, d in there)
    return 1 - there[0][1] / second if second > 0 else 0.0


def test_the_ratio_against_a_literal_loop():
    random = np.random.default_rng(0)
    positions = np.concatenate([random.uniform(0, 90, (30, 2)), [[np.nan, np.nan]]])
    found = np.stack([random.permutation(31)[:8] for _ in range(20)])
    distances = np.sort(random.uniform(0.3, 1.3, (20, 8)), axis=1)
    found[3, 1:], distances[3, 1:] = -1, np.nan  # a single hit
    found[4, 5:], distances[4, 5:] = -1, np.nan
    distances[5, 2] = np.nan
    distances[6] = 0
    ratios = distance_ratio(found, distances, hits_elsewhere(found, positions))
    np.testing.assert_array_equal(uncalibrated(Answers(found, distances, positions))[0], ratios)
    for row in range(20):
        wanted = ratio_by_loop(found[row], distances[row], positions)
        assert np.isnan(ratios[row]) if wanted is None else ratios[row] == pytest.approx(wanted)
    assert np.isnan(ratios[[3, 5]]).all() and ratios[6] == 0 and not np.isnan(ratios[4])


@pytest.mark.parametrize(
    ("hits", "scores", "wanted"),
    [
        ([0, 1, 2, 3], [0.8, 0.7, 0.6, 0.5], 1 - 0.6 / 0.8),  # 0 and 1 are one place
        ([0, 1], [0.8, 0.6], 1 - 0.6 / 0.8),  # none elsewhere: at least so sure
        ([2, 0, -1], [0.5, -0.2, -np.inf], 1.0),  # a score below 0 is none
        ([4, 0], [0.5, 0.4], 1 - 0.4 / 0.5),  # an unknown place is another one
        ([0, 2], [0.0, -0.1], 0.0),
        ([2, -1], [0.5, -np.inf], None),
    ],
)
def test_the_ratio_of_scores_of_re_ranking(hits, scores, wanted):
    positions = np.array([[0, 0], [10, 0], [500, 0], [900, 0], [np.nan, np.nan]])
    found = np.array([[*hits, 3]])  # one more, which was not re-ranked
    ratio = score_ratio(found, np.array([scores]), hits_elsewhere(found, positions))[0]
    assert np.isnan(ratio) if wanted is None else ratio == pytest.approx(wanted)
    answers = Answers(found, np.full(found.shape, 0.5), positions, scores=np.array([scores]))
    assert "second look" in uncalibrated(answers)[1]


def test_re_ranking_of_one_hit_leaves_the_ratio_of_distances():
    """One score has nothing to be compared with, and the order is that of distances."""
    found, distances = np.array([[1, 0, 2]]), np.array([[0.3, 0.5, 0.6]])
    places = np.array([[0.0, 0], [100, 0], [200, 0]])
    before = uncalibrated(Answers(found, distances, places))
    after = uncalibrated(Answers(found, distances, places, np.array([[1.2]]), np.array([[3.0]])))
    assert after[0] == before[0] == pytest.approx(1 - 0.3 / 0.5) and after[1] == before[1]


def test_the_ratio_of_distances_is_to_the_nearest_elsewhere():
    """The first hit by re-ranking is farther by its descriptor than one elsewhere: below 0."""
    positions = np.array([[0.0, 0], [500, 0], [10, 0]])
    found, distances = np.array([[0, 1, 2]]), np.array([[0.9, 0.6, 0.5]])
    assert distance_ratio(found, distances, hits_elsewhere(found, positions))[0] == pytest.approx(1 - 0.9 / 0.6)


def test_each_feature_stands_in_its_column_and_what_is_missing_is_unknown():
    answers = Answers(np.array([[0, 1, 2]]), np.array([[0.5, 0.6, 0.8]]), THREE)
    spread = -math.log10(1 + sue_by_loop(THREE.tolist(), answers.distances[0], 2.0))
    unknown = [np.nan, np.nan]
    np.testing.assert_allclose(answer_features(answers, 2.0)[0], [1 - 0.5 / 0.8, 1 - 0.25 / 2, spread, *unknown])
    assert list(FEATURES) == ["lead", "similarity", "spread", "agreeing", "inliers"]
    scores, agreeing = np.array([[0.4, 0.3, 0.1]]), np.array([[30, 9, 4]])
    ranked = replace(answers, scores=scores, agreeing=agreeing, sequence=2 * scores, inliers=np.array([[12, 40]]))
    wanted = [1 - 0.1 / 0.4, 1 - 0.25 / 2, spread, math.log(31), math.log(13)]
    np.testing.assert_allclose(answer_features(ranked, 2.0)[0], wanted)
    in_order = replace(answers, sequence=np.array([[0.9, 0.8, 0.65]]))
    value, kind = uncalibrated(in_order)
    assert value[0] == answer_features(in_order, 2.0)[0, 0] == pytest.approx(1 - 0.65 / 0.9) and "by sequences" in kind


@pytest.mark.parametrize("known", [0, 3])
@pytest.mark.parametrize("hits", [0, 2, 4])
@pytest.mark.parametrize("order", ["distances", "re-ranking", "sequences"])
def test_without_a_hit_no_feature_is_known(known, hits, order):
    """Neither of a database of no images, nor where none of them is wanted."""
    found, distances = np.full((2, hits), -1), np.full((2, hits), np.nan, np.float32)
    nothing = np.full((2, hits), -np.inf, np.float32)
    by = {"re-ranking": {"scores": nothing, "agreeing": np.zeros((2, hits))}, "sequences": {"sequence": nothing}}
    answers = Answers(found, distances, np.zeros((known, 2)), **by.get(order, {}))
    assert np.isnan(answer_features(answers, 2.0)).all()
    assert np.isnan(uncalibrated(answers)[0]).all() and uncalibrated(answers)[0].shape == (2,)
    for name in FEATURES:
        one = Calibration((name,), np.zeros(1), np.ones(1), np.ones(1), 3.0, 2.0)
        assert np.isnan(one.probability(answers)).all()


def test_a_query_without_a_hit_leaves_the_others_as_they_are():
    hits, distances, agreeing = [[0, 1, 2], [-1] * 3], [[0.5, 0.6, 0.8], [np.nan] * 3], [[7.0, 3, 1], [0.0] * 3]
    both = Answers(np.array(hits), np.array(distances), THREE, agreeing=np.array(agreeing))
    features = answer_features(both, 2.0)
    np.testing.assert_array_equal(features[:1], answer_features(both.only(np.array([0])), 2.0))
    assert np.isnan(features[1]).all()


def test_the_covariance_of_a_place_is_that_of_a_walk_in_closed_form():
    """Hits of equal weight in steps of s = 5 m, 5 each way within 25 m: s^2 (2 (1 + 4 + 9 + 16 + 25) / 11 + 1 / 12)."""
    step, along = 5.0, np.array([3.0, 4.0]) / 5
    positions = np.array([585_000, 4_477_000]) + step * np.arange(-8, 9)[:, None] * along
    found = np.array([[8, *(8 + side * n for n in range(1, 9) for side in (-1, 1))]])
    covariance = place_uncertainty(Answers(found, np.full((1, 17), np.nan), positions), 0).covariance
    within = [n * step for n in range(-5, 6)]  # 25 m at most
    wanted = np.mean(np.square(within)) * np.outer(along, along) + step**2 / 12 * np.eye(2)
    np.testing.assert_allclose(covariance, wanted)
    values, axes = np.linalg.eigh(covariance)
    np.testing.assert_allclose(values, [25 / 12, np.mean(np.square(within)) + 25 / 12])
    assert abs(axes[:, 1] @ along) == pytest.approx(1), "it is long where the walk goes"


def test_hits_count_in_it_by_their_similarity_and_those_elsewhere_not():
    positions = np.array([[0.0, 0], [0, 6], [-12, 0], [0, 30], [np.nan, np.nan]])
    cosines = np.array([[0.9, 0.7, 0.5, 0.8, 0.4]])
    answers = Answers(np.array([[0, 1, 2, 3, 4]]), np.sqrt(2 - 2 * cosines), positions)
    weights = np.array([0.5, 0.3, 0.1])
    wanted = np.diag([0.1 * 144, 0.3 * 36]) / weights.sum() + 36 / 12 * np.eye(2)
    told = place_uncertainty(answers, 0)
    np.testing.assert_allclose(told.covariance, wanted)
    assert told.metres == pytest.approx(math.sqrt(144 / 9 + 3))


@pytest.mark.parametrize("hits", [[0], [-1], [4, 0], [0, 3], [0, 5], [], [0, 4, -1]])
def test_one_place_says_nothing_of_spread(hits):
    positions = np.array([[0.0, 0], [0, 6], [-12, 0], [0, 30], [np.nan, np.nan], [0, 0]])
    answers = Answers(np.array([hits], int), np.full((1, len(hits)), 0.5), positions)
    assert place_uncertainty(answers, 0) is None
