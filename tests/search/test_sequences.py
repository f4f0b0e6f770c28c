"""Search by sequences against a literal loop, and on cases whose answer is known."""

import numpy as np
import pytest

import vpr.search.sequences
from vpr.data.frames import Frames, find_sequences, usual_step
from vpr.search.exact import nearest
from vpr.search.sequences import SequenceRule, frames_used, search_sequences, sequence_scores


def frames(name, numbers):
    return [f"{name}/{number:03d}.jpg" for number in numbers]


DATABASE = [
    *frames("a", range(0, 24, 2)),
    *frames("b", [0, 2, 4, 8, 10, 12]),
    *frames("c", [50]),
    *frames("d", [0, 2, 4]),
]
QUERIES = [*frames("x", [0, 2, 6, 7, 9, 12]), *frames("y", [3]), *frames("z", range(3, 12, 3))]
RULES = [
    SequenceRule(1), SequenceRule(2), SequenceRule(5), SequenceRule(3, causal=True),
    SequenceRule(2, speeds=(-1.0, 0.0, 2.0)),
]  # fmt: skip


def ordered(names):
    sequences = find_sequences(names)
    return sequences.of(sequences.order())


def literal(similarities, queries, database, rule, step):
    """The formula, term by term; NaN where a database image may not be found for a query."""
    scores = np.full(similarities.shape, np.nan)
    for q, m in np.argwhere(~np.isnan(similarities)):
        best = -np.inf
        for speed in rule.speeds:
            terms = []
            for i in range(-rule.length, 1 if rule.causal else rule.length + 1):
                n = q + i
                if not 0 <= n < len(similarities) or queries.sequences[n] != queries.sequences[q]:
                    continue
                own = np.flatnonzero(database.sequences == database.sequences[m])
                frames = np.rint(database.numbers[own] / step)
                move = np.rint(speed * (queries.numbers[n] - queries.numbers[q]) / step) if i else 0
                wanted = np.rint(database.numbers[m] / step) + move
                value = np.nan
                if not i:
                    value = similarities[q, m]
                elif frames.min() <= wanted <= frames.max():
                    value = similarities[n, own[np.abs(frames - wanted).argmin()]]
                terms.append(np.nanmean(similarities[n]) if np.isnan(value) else value)
            best = max(best, np.mean(terms))
        scores[q, m] = best
    return scores


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("masked", [False, True])
def test_scores_are_those_of_the_formula_term_by_term(rule, masked):
    queries, database = ordered(QUERIES), ordered(DATABASE)
    random = np.random.default_rng(1)
    similarities = random.normal(size=(len(queries), len(database)))
    if masked:
        similarities[random.random(similarities.shape) < 0.2] = np.nan
    scores = sequence_scores(similarities, queries, database, rule)
    np.testing.assert_allclose(scores, literal(similarities, queries, database, rule, step=2), rtol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_of_frames_that_round_to_one_number_the_first_is_taken(seed):
    """A film with uneven numbers, some of which are one step on."""
    random = np.random.default_rng(seed)
    names = [name for film in "ab" for name in frames(film, np.sort(random.choice(40, 15, replace=False)))]
    database, queries = ordered(names), ordered(frames("x", range(0, 18, 3)))
    step = usual_step(database)
    assert len(np.unique(np.rint(database.numbers / step) + 1000 * database.sequences)) < len(database)
    similarities = random.normal(size=(len(queries), len(database)))
    for rule in RULES:
        scores = sequence_scores(similarities, queries, database, rule)
        np.testing.assert_allclose(scores, literal(similarities, queries, database, rule, step), rtol=1e-12)


def descriptors(count, seed, dim=32):
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def search(database, queries, count, rule, names=(DATABASE, QUERIES), excluded=None):
    return search_sequences(
        database, queries, count, (find_sequences(names[0]), find_sequences(names[1])), rule, excluded
    )


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_tiles_and_the_order_of_images_change_nothing(rows, monkeypatch):
    """Images in any order, a few queries at a time, are searched as the formula has it for all at once."""
    monkeypatch.setattr(vpr.search.sequences, "TILE_BYTES", rows * 4 * len(DATABASE))
    random = np.random.default_rng(2)
    mixed = [list(random.permutation(names)) for names in (DATABASE, QUERIES)]
    database, queries = descriptors(len(DATABASE), 3), descriptors(len(QUERIES), 4)
    found, scores = search(database, queries, 100, SequenceRule(2), mixed)
    orders = [find_sequences(names).order() for names in mixed]
    similarities = (queries @ database.T).astype(np.float64)[np.ix_(orders[1], orders[0])]
    wanted = np.empty_like(similarities)
    wanted[np.ix_(orders[1], orders[0])] = literal(
        similarities, ordered(mixed[1]), ordered(mixed[0]), SequenceRule(2), step=2
    )
    assert found.shape == (len(QUERIES), len(DATABASE))
    np.testing.assert_allclose(scores, np.take_along_axis(wanted, found, axis=1), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (np.sort(found, axis=1) == np.arange(len(DATABASE))).all()


@pytest.mark.parametrize("rule", [SequenceRule(0), SequenceRule(0, causal=True)])
def test_without_frames_it_is_the_plain_search(rule):
    database, queries = descriptors(len(DATABASE), 5), descriptors(len(QUERIES), 6)
    half = database.astype(np.float16), queries.astype(np.float16)
    found, scores = search(*half, 7, rule)
    np.testing.assert_array_equal(found, nearest(*half, 7))
    distances = np.linalg.norm(half[1].astype(np.float32)[:, None] - half[0].astype(np.float32)[found], axis=2)
    np.testing.assert_allclose(scores, 1 - distances**2 / 2, atol=1e-3)


def rows_of(pattern):
    """Descriptors, one letter each: equal letters look alike, different ones not at all."""
    return np.eye(26, dtype=np.float32)[[ord(letter) - ord("a") for letter in pattern]]


def test_frames_around_tell_which_of_two_alike_places_it_is():
    """Doors that look alike: the frames before or behind a query tell which it is."""
    database, queries = "abxcdexfg", "dexf"
    names = frames("m", range(9)), frames("q", range(4))
    _, scores = search(rows_of(database), rows_of(queries), 9, SequenceRule(0), names)
    assert scores[2, 0] == scores[2, 1] == 1  # two doors
    for rule in (SequenceRule(1), SequenceRule(2), SequenceRule(3), SequenceRule(1, causal=True)):
        found, scores = search(rows_of(database), rows_of(queries), 9, rule, names)
        assert found[2, 0] == 6
        assert scores[2, 0] > scores[2, 1]
    # The door at 2, whose neighbours are others, has its own similarity alone, and the mean of the frames elsewhere.
    found, scores = search(rows_of(database), rows_of(queries), 9, SequenceRule(1), names)
    np.testing.assert_allclose(scores[2, list(found[2]).index(2)], 1 / 3, rtol=1e-6)


def test_a_break_between_sequences_is_never_crossed():
    """The door's neighbours lie on the other side of a break, of the database or of the queries: they do not help."""
    whole, parted = frames("m", range(5)), [*frames("m", range(2)), *frames("n", range(2, 5))]
    together, apart = frames("q", range(3)), [*frames("q", range(1)), *frames("r", range(1, 3))]
    gap = [*frames("m", range(2)), *frames("m", range(100, 103))]  # one folder, but a step of 99

    def score(database_names, query_names):
        found, scores = search(rows_of("abcde"), rows_of("bcd"), 5, SequenceRule(1), (database_names, query_names))
        return dict(zip(found[1].tolist(), scores[1].tolist(), strict=True))[2]

    assert score(whole, together) == pytest.approx(1)
    for names in (parted, gap):
        assert score(names, together) == pytest.approx((1 + 1 + 1 / 5) / 3)  # b is missing: a fifth on average
    changed = rows_of("zcd")  # the first query is another: it has no say beyond a break
    for first in (rows_of("bcd"), changed):
        found, scores = search(rows_of("abcde"), first, 5, SequenceRule(1), (whole, apart))
        assert found[1, 0] == 2
        assert scores[1, 0] == pytest.approx(1)


def test_causal_uses_no_later_frame():
    names = frames("m", range(20)), frames("q", range(9))
    database, queries = descriptors(20, 7), descriptors(9, 8)
    changed = queries.copy()
    changed[5:] = descriptors(4, 9)
    before, after = (
        [search(database, asked, 20, SequenceRule(3, causal), names) for asked in (queries, changed)]
        for causal in (True, False)
    )
    for one, other in zip(*before, strict=True):
        np.testing.assert_array_equal(one[:5], other[:5])
    assert not np.array_equal(after[0][1][4], after[1][1][4])


def test_a_candidate_at_a_sequences_end_does_not_win_by_averaging_few():
    """Alone at the end of a sequence the candidate is a little better; the other has its neighbours as well."""
    similarities = np.array([[0.0, 0.0, 0.5, 0.0, 0.0], [0.7, 0.0, 0.0, 0.6, 0.0], [0.0, 0.0, 0.0, 0.0, 0.5]])
    database = Frames(np.array([0, 1, 1, 1, 1]), np.array([0.0, 0.0, 1.0, 2.0, 3.0]))
    scores = sequence_scores(similarities, Frames(np.zeros(3, int), np.arange(3.0)), database, SequenceRule(1))
    assert scores[1, 0] == pytest.approx((0.1 + 0.7 + 0.1) / 3)  # nothing is known of its neighbours
    assert scores[1, 3] == pytest.approx((0.5 + 0.6 + 0.5) / 3)
    assert scores[0, 2] == pytest.approx((0.5 + 0.6) / 2)  # the queries' sequence begins: two terms for every candidate


@pytest.mark.parametrize(
    ("speed", "order", "step"), [(2.0, "acegi", 1), (0.5, "cdefg", 2), (-1.0, "hgfed", 1), (0.0, "ddddd", 1)]
)
def test_a_sequence_of_another_speed_is_found_by_its_speed(speed, order, step):
    names = frames("m", range(10)), frames("q", range(0, 5 * step, step))
    for own in (speed, 3.0):
        found, scores = search(rows_of("abcdefghij"), rows_of(order), 1, SequenceRule(2, speeds=(1.0, own)), names)
        assert (scores[2, 0] == pytest.approx(1)) == (own == speed)
        assert own != speed or found[2, 0] == "abcdefghij".index(order[2])


def test_excluded_images_are_neither_found_nor_used():
    names = frames("m", range(20)), frames("q", range(9))
    database, queries = descriptors(20, 10), descriptors(9, 11)

    def excluded(asking):
        return np.abs(np.arange(20) - asking[:, None]) < 4

    found, scores = search(database, queries, 20, SequenceRule(2), names, excluded)
    for query, hits in enumerate(found):
        there = hits >= 0
        assert set(hits[there]) == set(np.flatnonzero(~excluded(np.array([query]))[0]))
        assert not there[there.sum() :].any()
        assert np.isneginf(scores[query, ~there]).all()
    # For no query may images 0 to 20 that are excluded for all matter: change one that is so for all.
    alone = np.zeros((9, 20), bool)
    alone[:, 3] = True
    other = database.copy()
    other[3] = descriptors(1, 12)
    for one, two in zip(
        search(database, queries, 20, SequenceRule(2), names, lambda asking: alone[asking]),
        search(other, queries, 20, SequenceRule(2), names, lambda asking: alone[asking]),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("rule", "wanted"), [
    (SequenceRule(0), [1, 1, 1, 1, 1, 1]), (SequenceRule(1), [2, 3, 1, 2, 3, 2]),
    (SequenceRule(2, causal=True), [1, 3, 1, 3, 2, 2]), (SequenceRule(9), [4, 4, 1, 4, 4, 2]),
])  # fmt: skip
def test_frames_that_a_score_is_the_mean_of(rule, wanted):
    names = ["x/0.jpg", "x/2.jpg", "y/5.jpg", "x/3.jpg", "x/1.jpg", "z/2.jpg", "z/1.jpg"]
    assert frames_used(find_sequences(names), rule).tolist()[:6] == wanted


def test_numbers_of_other_units_reach_no_frame():
    """Queries numbered by nanoseconds: every line leaves the sequence, and the order is that of single frames."""
    names = frames("m", range(6)), [f"q/{n * 10**9}.jpg" for n in range(4)]
    database, queries = descriptors(6, 13), descriptors(4, 14)
    found, _ = search(database, queries, 6, SequenceRule(1), names)
    np.testing.assert_array_equal(found, nearest(database, queries, 6))
