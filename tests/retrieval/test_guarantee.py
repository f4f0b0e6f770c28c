"""A bound of false answers: the threshold by brute force, that it holds in simulations, and searches without places."""

import dataclasses
import functools
import math

import h5py
import numpy as np
import pytest

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.common.provenance import write_hdf5
from vpr.retrieval.ask import Ask
from vpr.retrieval.calibration import SURE, Calibration, Guarantee
from vpr.retrieval.calibration_file import LearntOn, StoredCalibration, load_calibration, save_calibration
from vpr.retrieval.conditions.centring import CentredEngine, centred
from vpr.retrieval.ranking import with_threshold
from vpr.retrieval.split import SplitEngine, WithoutPlaces

NONE = math.inf


@functools.cache
def tail(most, count, share):
    """The probability that of `count` draws at most `most` are hits, each with probability `share`; term by term."""
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(most + 1))


def is_rare(false, count, rate):
    """Whether no share above the rate leaves so few false answers with more than half of what is left to chance.

    The tail falls as the share rises: the share that is the rate itself decides.
    """
    return false < count and tail(false, count, rate) <= (1 - SURE) / 2


def passes(threshold, confidences, right, unknown, rate):
    """By loops, whether both kinds of false answers from a threshold on are so few that they are rare."""
    wrong = sum(c >= threshold and not ok for c, ok in zip(confidences, right, strict=True))
    return all(is_rare(false, len(right), rate) for false in (wrong, sum(c >= threshold for c in unknown)))


def brute_force(confidences, right, unknown, rate):
    """Of all thresholds that tell answers apart the least that passes, and from which on all pass."""
    values = [c for c in (*confidences, *unknown) if not math.isnan(c)]
    least = NONE
    for threshold in sorted({0.0, *values, *(math.nextafter(c, NONE) for c in values), NONE}, reverse=True):
        if not passes(threshold, confidences, right, unknown, rate):
            break
        least = threshold
    return least


def drawn(seed, count, digits=None, shift=0.0, nan=0.0):
    """Confidences that are about the probability of being right, and those without their places."""
    random = np.random.default_rng(seed)
    confidences = random.beta(2 + shift, 1, count)
    right = random.random(count) < confidences
    unknown = random.beta(1, 3, count)
    if digits is not None:
        confidences, unknown = confidences.round(digits), unknown.round(digits)
    if nan:
        for each in (confidences, unknown):
            each[random.random(count) < nan] = np.nan
    right[np.isnan(confidences)] &= random.random(np.isnan(confidences).sum()) < 0.5
    return confidences, right, unknown


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2, 0.5])
@pytest.mark.parametrize(
    ("seed", "count", "digits", "nan"),
    [(0, 260, None, 0), (1, 260, 1, 0), (2, 130, 2, 0.1), (3, 61, None, 0), (4, 7, 1, 0.3)],
)
def test_the_threshold_is_the_least_that_a_binomial_tail_by_loops_lets_pass(seed, count, digits, nan, rate):
    confidences, right, unknown = drawn(seed, count, digits, nan=nan)
    found = Guarantee(confidences, right, unknown).threshold(rate)
    wanted = brute_force(confidences, right, unknown, rate)
    # The same answers are given: between two confidences all thresholds are the same.
    for values in (confidences, unknown):
        np.testing.assert_array_equal(values >= found, values >= wanted)
    assert (found == NONE) == (wanted == NONE)


def test_all_right_or_all_wrong():
    ones, nothing = np.full(260, 0.9), np.full(260, np.nan)
    assert Guarantee(ones, np.ones(260, bool), nothing).threshold(0.05) == 0.0
    wrong = Guarantee(ones, np.zeros(260, bool), nothing).threshold(0.05)
    assert 0.9 < wrong < NONE and not (ones >= wrong).any(), "where one passes all do"
    both = Guarantee(ones, np.ones(260, bool), ones).threshold(0.05)
    assert both == wrong, "those without their places bind as much"


def test_fewer_queries_than_59_promise_nothing_at_a_twentieth():
    """0.95**58 > 0.05 > 0.95**59: so many questions without a false answer are had by luck, or not."""
    assert 0.95**58 > (1 - SURE) / 2 > 0.95**59
    for count, wanted in ((58, NONE), (59, 0.0)):
        good = Guarantee(np.full(count, 0.9), np.ones(count, bool), np.full(count, np.nan))
        assert good.threshold(0.05) == wanted
    assert good.threshold(0.0) == NONE and Guarantee(*drawn(0, 0)).threshold(0.5) == NONE


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_as_many_false_answers_as_are_rare_are_all_given_and_of_one_more_the_least_sure_is_not(rate):
    most = max(k for k in range(260) if is_rare(k, 260, rate))
    assert most > 2
    for false, wanted in ((most, 0.0), (most + 1, math.nextafter(0.1, 1))):
        confidences, right = np.full(260, 0.1), np.arange(260) >= false
        confidences[1:false] = 0.2
        assert Guarantee(confidences, right, np.full(260, np.nan)).threshold(rate) == wanted
        left = np.where(right, np.nan, confidences)
        assert Guarantee(confidences, np.ones(260, bool), left).threshold(rate) == wanted


def test_the_threshold_falls_as_the_rate_rises_and_queries_may_come_in_any_order():
    values = drawn(5, 260)
    rates = np.linspace(0, 1, 41)
    thresholds = [Guarantee(*values).threshold(rate) for rate in rates]
    assert (np.diff(thresholds) <= 0).all() if np.isfinite(thresholds).all() else sorted(thresholds)[::-1] == thresholds
    assert thresholds[0] == NONE and len({*thresholds}) > 20
    order = np.random.default_rng(0).permutation(260)
    turned = Guarantee(*(each[order] for each in values))
    assert [turned.threshold(rate) for rate in rates] == thresholds


def test_wrong_answers_and_those_without_their_places_each_bind():
    confidences, right, unknown = drawn(6, 260)
    nothing = np.full(260, np.nan)
    alone = [
        Guarantee(confidences, right, nothing).threshold(0.1),
        Guarantee(confidences, np.ones(260, bool), unknown).threshold(0.1),
    ]
    assert alone[0] > alone[1] > 0 and Guarantee(confidences, right, unknown).threshold(0.1) == alone[0]
    surer = np.minimum(1, unknown + 0.9)
    assert Guarantee(confidences, right, surer).threshold(0.1) > alone[0]


def test_what_is_unknown_is_never_answered_and_what_was_not_learnt_always():
    confidences, right, unknown = drawn(7, 260)
    wrong = np.flatnonzero(~right)
    blank = confidences.copy()
    blank[wrong] = np.nan
    assert Guarantee(blank, right, np.full(260, np.nan)).threshold(0.05) == 0.0
    blank[wrong] = np.inf
    assert Guarantee(blank, right, np.full(260, np.nan)).threshold(0.05) == NONE
    assert Guarantee(blank, right, unknown).answered(2.0)[1] == len(wrong) / 260


def test_shares_of_answers_are_counted():
    guarantee = Guarantee(
        np.array([0.9, 0.8, 0.3, np.nan]), np.array([True, False, True, False]), np.array([0.8, 0.1, np.nan, 0.79])
    )
    assert guarantee.answered(0.8) == (0.5, 0.25, 0.25) and guarantee.answered(NONE) == (0, 0, 0)


@pytest.mark.parametrize("rate", [0.05, 0.1])
@pytest.mark.parametrize("hard", ["wrong", "unknown"])
def test_it_holds_as_often_as_it_says(rate, hard):
    """Laws that are known: P(wrong and as sure as t), P(unknown as sure as t) follow from them exactly."""
    random, broken = np.random.default_rng(8), 0
    for _ in range(400):
        sure = random.random(260)
        # P(wrong | sure = s) = (1 - s) / 2, so that P(wrong, sure >= t) = (1 - t)^2 / 4.
        right = random.random(260) >= (1 - sure) / 2 if hard == "wrong" else np.ones(260, bool)
        unknown = random.random(260) ** 3 if hard == "unknown" else np.full(260, np.nan)  # P(>= t) = 1 - t^(1/3)
        threshold = min(1, Guarantee(sure, right, unknown).threshold(rate))
        true = (1 - threshold) ** 2 / 4 if hard == "wrong" else 1 - threshold ** (1 / 3)
        broken += true > rate
    left = (1 - SURE) / 2  # to chance, of each kind
    assert broken / 400 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 400)
    assert left / 4 < broken / 400 <= left + 3 * math.sqrt(left * (1 - left) / 400), "and no more careful than that"


def test_it_holds_of_both_kinds_at_once():
    random, broken = np.random.default_rng(9), 0
    for _ in range(400):
        sure = random.random(260)
        right, unknown = random.random(260) >= (1 - sure) / 2, random.random(260) ** 3
        threshold = min(1, Guarantee(sure, right, unknown).threshold(0.1))
        broken += (1 - threshold) ** 2 / 4 > 0.1 or 1 - threshold ** (1 / 3) > 0.1
    assert broken / 400 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 400)


# Searches in which no query finds its place.

DIM, IMAGES, QUERIES = 16, 40, 12


def units(seed, count):
    values = np.random.default_rng(seed).normal(size=(count, DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def town():
    """Images 10 m apart: those up to 25 m off are right, two to five of each query; one query has none."""
    images = np.stack([10.0 * np.arange(IMAGES), np.zeros(IMAGES)], axis=1)
    queries = np.stack([33.0 * np.arange(QUERIES), np.zeros(QUERIES)], axis=1)
    queries[-1] = 1e5
    names = [[f"{folder}/{n}.jpg" for n in range(count)] for folder, count in (("d", IMAGES), ("q", QUERIES))]
    places = Places("town", *names, images, queries, 25.0, 10.0)
    positives = [[n for n in range(IMAGES) if math.dist(images[n], query) <= 25] for query in queries]
    assert [each.tolist() for each in places.positives()] == positives and not positives[-1]
    return SplitEngine(units(0, IMAGES), places), positives


def ranked(database, query, taken):
    """All images but some, nearest first, with distances; by loops."""
    distances = {n: math.dist(query.tolist(), row.tolist()) for n, row in enumerate(database) if n not in taken}
    return sorted(distances, key=distances.get), distances


@pytest.mark.parametrize("count", [1, 5, 30, IMAGES + 3])
def test_a_search_without_places_is_the_full_ranking_without_what_is_right(town, count):
    engine, positives = town
    queries = units(1, QUERIES)
    queries[:6] = engine.database[[each[0] for each in positives[:6]]]  # whose places are found at once otherwise
    without = WithoutPlaces(engine, engine.places.positives())
    assert without.measures and without.name == engine.name and without.places is engine.places
    hits = without.search(queries, count)
    assert hits.rows.shape == hits.distances.shape == (QUERIES, count)
    for query, rows, distances, right in zip(queries, hits.rows, hits.distances, positives, strict=True):
        order, wanted = ranked(engine.database, query, right)
        there = min(count, len(order))
        assert rows[:there].tolist() == order[:there] and (rows[there:] == -1).all()
        np.testing.assert_allclose(distances[:there], [wanted[n] for n in order[:there]], atol=1e-5)
        assert np.isnan(distances[there:]).all(), "what was taken away leaves no distance behind"
    assert {*positives[0]} & {*engine.search(queries, 5).rows[0].tolist()}, "it is there with all its places"


def test_nothing_is_left_where_all_is_right(town):
    engine, _ = town
    hits = WithoutPlaces(engine, [np.arange(IMAGES)] * QUERIES).search(units(1, QUERIES), 4)
    assert (hits.rows == -1).all() and np.isnan(hits.distances).all()


def test_a_centred_search_without_places_has_none_of_them(town):
    engine, positives = town
    mean, queries = units(3, 1)[0] / 4, units(1, QUERIES)
    hits = CentredEngine(WithoutPlaces(engine, engine.places.positives()), mean).search(queries, IMAGES)
    database = centred(engine.database, mean)
    for query, rows, right in zip(queries, hits.rows, positives, strict=True):
        order, _ = ranked(database, query, right)
        assert rows[: len(order)].tolist() == order and (rows[len(order) :] == -1).all()


# Files.

OF = LearntOn("folder town", "val", "town_val", "abc", "def", 260, "within 25 m")
RECIPE = {"weights_hash": "0123456789ab", "order": "none"}


def stored(guarantee):
    learnt = Calibration(("lead",), np.array([0.1]), np.array([0.05]), np.array([1.5]), -0.3, 26.5)
    return StoredCalibration(learnt, RECIPE, OF, guarantee)


def test_a_guarantee_is_written_and_read_with_its_calibration(tmp_path):
    values = drawn(10, 260, nan=0.1)
    found = load_calibration(save_calibration(tmp_path, stored(Guarantee(*values))), list(RECIPE)).guarantee
    for one, other in zip(values, (found.confidences, found.right, found.unknown), strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.right.dtype == bool and found.threshold(0.1) == Guarantee(*values).threshold(0.1)


def test_a_file_of_an_earlier_version_promises_nothing_and_says_so(tmp_path):
    path = save_calibration(tmp_path, stored(None))
    with h5py.File(path) as file:
        assert {*file} == {"mean", "scale", "weights"}, "as it was"
    found = load_calibration(path, list(RECIPE))
    said = found.promise(0.05)
    assert found.guarantee is None and "\n" not in said and "no bound of false answers" in said
    assert "--maxFalseRate" in said
    for calibration in (None, found):
        assert with_threshold(Ask(false_rate=0.05), calibration).least == NONE


@pytest.mark.parametrize(
    "changes",
    [
        {"confidences": np.zeros(259)}, {"right": np.zeros(261, bool)}, {"unknown": np.zeros((260, 1))},
        {"right": np.zeros(260)}, {"unknown": np.array([b"0.5"] * 260)}, {"confidences": np.zeros(260, bool)},
        {"confidences": None}, {"right": None}, {"unknown": None},
        {name: np.zeros(9, kind) for name, kind in (("confidences", float), ("right", bool), ("unknown", float))},
    ],
)  # fmt: skip
def test_damaged_arrays_are_refused_in_one_line(tmp_path, changes):
    path = save_calibration(tmp_path, stored(Guarantee(*drawn(10, 260))))
    with h5py.File(path) as file:
        arrays, texts = {name: file[name][:] for name in file}, dict(file.attrs)
    arrays = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    write_hdf5(path, arrays, texts)
    with pytest.raises(UserError) as error:
        load_calibration(path, list(RECIPE))
    said = str(error.value)
    assert said.startswith(f"{path} cannot be read as a calibration") and "\n" not in said and "--calibrate" in said


def test_the_promise_says_from_where_on_and_what_it_costs():
    confidences, right, unknown = drawn(11, 260)
    said = stored(Guarantee(confidences, right, unknown)).promise(0.1)
    threshold = brute_force(confidences, right, unknown, 0.1)
    shares = [
        sum(c >= threshold for c in confidences),
        sum(c >= threshold and not ok for c, ok in zip(confidences, right, strict=True)),
        sum(c >= threshold for c in unknown),
    ]
    given, false, without = (f"{100 * share / 260:.1f}%" for share in shares)
    assert said == (
        f"at most 10% false answers, 90% sure: from confidence {threshold:.3f} on; of the queries of town_val {given} "
        f"are answered then, {false} falsely; without their places in the database {without}"
    )
    few = dataclasses.replace(stored(Guarantee(confidences[:9], right[:9], unknown[:9])).learnt_on, queries=9)
    none = dataclasses.replace(stored(Guarantee(confidences[:9], right[:9], unknown[:9])), learnt_on=few).promise(0.1)
    assert none == "at most 10% false answers, 90% sure: for that 9 queries are too few; none is answered"


def test_a_question_takes_the_higher_of_two_thresholds():
    guarantee = Guarantee(*drawn(11, 260))
    threshold = guarantee.threshold(0.1)
    assert 0 < threshold < 1
    for least, wanted in ((None, threshold), (threshold / 2, threshold), (1.0, 1.0)):
        assert with_threshold(Ask(least=least, false_rate=0.1), stored(guarantee)).least == wanted
    assert with_threshold(Ask(least=0.3), stored(guarantee)).least == 0.3
