"""Hard negative mining against a brute force, and how tuples become batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vpr.training.mining import NO_IMAGE, QUERIES_AT_ONCE, candidate_distances, draw_negatives, join_cached, mine
from vpr.training.rules import TrainingRules
from vpr.training.tuples import TrainingTuple, TupleBatch

ALL = 10**6  # a sample that no database of these tests exceeds


def unit_rows(random, count, dim):
    rows = random.normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_problem(database=60, queries=25, dim=6, seed=0):
    """Random descriptors; each query has 1 to 4 positives, which with some others may not be negatives."""
    random = np.random.default_rng(seed)
    positives, not_negatives = [], []
    for _ in range(queries):
        near = random.permutation(database)[: random.integers(5, 10)]
        positives.append(np.sort(near[: random.integers(1, 5)]))
        not_negatives.append(np.sort(near))
    return unit_rows(random, database, dim), unit_rows(random, queries, dim), positives, not_negatives


def mining_rules(negatives, margin, sample=ALL):
    return TrainingRules(negatives=negatives, negative_sample=sample, margin=margin, seed=7)


def no_memory(queries, negatives):
    return np.full((queries, negatives), NO_IMAGE, dtype=np.int64)


def mine_all(problem, remembered, rules, epoch=1, order=None):
    database, queries, positives, not_negatives = problem
    order = np.arange(len(queries)) if order is None else order
    rows = [torch.from_numpy(values) for values in (database, queries[order])]
    return mine(order, *rows, positives, not_negatives, remembered, rules, epoch)


def squared_distance(a, b):
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def ranked_negatives(problem, query):
    """(distance, index) of all images that may be negatives, nearest first, and the positive's (distance, index)."""
    database, queries, positives, not_negatives = problem
    distance = [squared_distance(queries[query], row) for row in database]
    allowed = sorted((distance[i], i) for i in range(len(database)) if i not in set(not_negatives[query].tolist()))
    return allowed, min((distance[i], int(i)) for i in positives[query])


def brute_force(problem, order, negatives, margin):
    expected = []
    for query in order:
        allowed, (positive_distance, positive) = ranked_negatives(problem, query)
        hard = [index for distance, index in allowed if distance < positive_distance + margin][:negatives]
        if hard:
            expected.append((int(query), positive, hard))
    return expected


def plain(tuples):
    return [(item.query, item.positive, item.negatives.tolist()) for item in tuples]


@pytest.mark.parametrize(("database", "queries", "margin"), [(60, 25, 0.1), (150, 20, 0.0), (30, 300, 0.3)])
def test_mining_agrees_with_brute_force_when_everything_is_sampled(database, queries, margin):
    problem = make_problem(database, queries, seed=database)
    order = np.random.default_rng(1).permutation(queries)
    tuples = mine_all(problem, no_memory(queries, 10), mining_rules(10, margin), order=order)
    expected = brute_force(problem, order, 10, margin)
    assert plain(tuples) == expected
    lengths = {len(hard) for *_, hard in expected}
    assert max(lengths) == 10 and min(lengths) < 10, "the problem must have full and short tuples"
    assert len(expected) < queries, "the problem must have a query without hard negatives"


def test_mined_negatives_are_allowed_distinct_nearest_first_and_few_enough():
    problem = make_problem(database=80, queries=40)
    tuples = mine_all(problem, no_memory(40, 5), mining_rules(5, 0.2, 30))
    assert len(tuples) > 10
    for item in tuples:
        assert not set(item.negatives.tolist()) & set(problem[3][item.query].tolist())
        assert len(set(item.negatives.tolist())) == len(item.negatives) <= 5
        distances = [squared_distance(problem[1][item.query], problem[0][index]) for index in item.negatives]
        assert distances == sorted(distances)


def test_nearest_negatives_are_remembered_even_where_none_violates():
    problem = make_problem(queries=30)
    remembered = no_memory(31, 8)
    problem[2].append(np.array([0]))  # a query that is not in the block: its row stays as it is
    problem[3].append(np.array([0]))
    remembered[30] = np.arange(8)
    tuples = mine_all(problem, remembered, mining_rules(8, 0.0), order=np.arange(30))
    assert len(tuples) < 30
    for query in range(30):
        allowed, _ = ranked_negatives(problem, query)
        assert remembered[query].tolist() == [index for _, index in allowed[:8]]
    assert remembered[30].tolist() == list(range(8))


def test_memory_is_filled_up_with_no_image_and_forgets_what_stood_there():
    database = unit_rows(np.random.default_rng(0), 5, 4)
    problem = (database, database[:1], [np.array([0])], [np.array([0, 1])])
    remembered = np.array([[2, 3, 4, 2, 3, 4]])
    mine_all(problem, remembered, mining_rules(6, 0.1))
    assert sorted(remembered[0, :3].tolist()) == [2, 3, 4]
    assert remembered[0, 3:].tolist() == [NO_IMAGE] * 3


def test_remembered_negative_is_considered_though_the_sample_lacks_it():
    # Image 1 is nearer to the query than its positive, image 0; all others are opposite.
    database = np.array([[0.8, 0.6], [1.0, 0.0]] + [[-1.0, 0.0]] * 48, dtype=np.float32)
    problem = (database, np.array([[1.0, 0.0]], dtype=np.float32), [np.array([0])], [np.array([0])])
    rules = TrainingRules(negatives=1, negative_sample=1, margin=0.1, seed=7)
    epochs = range(1, 11)
    without = [plain(mine_all(problem, no_memory(1, 1), rules, epoch)) for epoch in epochs]
    assert [] in without, "the random sample alone must miss image 1 in some epoch"
    for epoch in epochs:
        remembered = np.array([[1]])
        assert plain(mine_all(problem, remembered, rules, epoch)) == [(0, 0, [1])]
        assert remembered.tolist() == [[1]]


def test_negative_on_the_margin_is_not_hard_and_one_just_inside_is():
    # All numbers are exact in float32: d^2 = 2 - 2 cos, positive 0.5, margin 0.25.
    inside = 0.625 + 2.0**-12
    database = np.array([[cos, np.sqrt(1 - cos**2)] for cos in (0.75, 0.625, inside)], dtype=np.float32)
    query = np.array([[1.0, 0.0]], dtype=np.float32)
    rules = mining_rules(5, 0.25)
    both = (database, query, [np.array([0])], [np.array([0])])
    assert plain(mine_all(both, no_memory(1, 5), rules)) == [(0, 0, [2])]
    border_only = (database[:2], *both[1:])
    assert mine_all(border_only, no_memory(1, 5), rules) == []


def test_draw_depends_on_the_epoch_and_is_shared_by_a_group_of_queries():
    """With a margin that all violate and no own limits, a tuple's negatives are the nearest of the query's draw."""
    problem = make_problem(database=400, queries=3 * QUERIES_AT_ONCE)
    rules = TrainingRules(negatives=50, negative_sample=50, margin=4.0, seed=7)

    def drawn(epoch, seed=7):
        tuples = mine_all(problem, no_memory(len(problem[1]), 50), replace(rules, seed=seed), epoch)
        return [set(item.negatives.tolist()) for item in tuples]

    first = drawn(1)
    assert first == drawn(1) and first != drawn(2) and first != drawn(1, seed=8)
    groups = [first[start : start + QUERIES_AT_ONCE] for start in range(0, len(first), QUERIES_AT_ONCE)]
    unions = [set().union(*group) for group in groups]
    assert all(len(union) <= 50 + 10 for union in unions)  # a query has at most 9 that it may not have
    assert len(unions[0] & unions[1]) < 25, "another group has another draw"


def test_draw_holds_exactly_as_many_distinct_allowed_images_as_wanted():
    forbidden = [np.array([0, 3, 4, 11, 19]), np.array([7])]
    for seed in range(50):
        for drawn, not_allowed in zip(
            draw_negatives(20, forbidden, 6, np.random.default_rng(seed)), forbidden, strict=True
        ):
            assert len(drawn) == len(set(drawn.tolist())) == 6
            assert set(drawn.tolist()) <= set(range(20)) - set(not_allowed.tolist())


def test_draw_larger_than_what_is_allowed_takes_all_of_it():
    drawn = draw_negatives(10, [np.array([2, 5]), np.array([], dtype=int)], 50, np.random.default_rng(1))
    assert [sorted(rows.tolist()) for rows in drawn] == [[0, 1, 3, 4, 6, 7, 8, 9], list(range(10))]


def test_draw_is_joined_by_the_remembered_ones_without_doubles():
    nothing = np.array([], dtype=np.int64)
    assert join_cached(np.array([8, 2, 7]), np.array([7, 9, NO_IMAGE]), nothing).tolist() == [2, 7, 8, 9]
    assert join_cached(np.array([8, 2]), np.array([7, 9, NO_IMAGE]), np.array([6, 7])).tolist() == [2, 8, 9]


def test_remembered_images_that_may_not_be_negatives_are_none():
    """Of a memory that names the positive and its neighbours nothing is left, though they are nearest of all."""
    random = np.random.default_rng(4)
    database = unit_rows(random, 20, 4)
    query = database[7:8]
    database[[6, 8]] = database[7]
    problem = (database, query, [np.array([7])], [np.array([6, 7, 8])])
    remembered = np.array([[7, 6, 8]])
    (found,) = mine_all(problem, remembered, mining_rules(3, 4.0))
    allowed, _ = ranked_negatives(problem, 0)
    assert found.positive == 7 and found.negatives.tolist() == [index for _, index in allowed[:3]]
    assert remembered.tolist() == [found.negatives.tolist()]


@pytest.mark.parametrize("which", [0, 1])
def test_draw_is_uniform_over_the_allowed_of_each_query(which):
    forbidden = [np.array([0, 3, 4, 11, 19]), np.array([7, 8])]
    rounds, wanted, allowed = 2000, 6, sorted(set(range(20)) - set(forbidden[which].tolist()))
    counts = np.zeros(20)
    for seed in range(rounds):
        counts[draw_negatives(20, forbidden, wanted, np.random.default_rng(seed))[which]] += 1
    share = wanted / len(allowed)
    deviation = np.sqrt(rounds * share * (1 - share))
    assert np.abs(counts[allowed] - rounds * share).max() < 4.5 * deviation
    assert counts.sum() == counts[allowed].sum()


@pytest.mark.parametrize("tile_rows", [1, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_distances_to_candidates_are_those_of_float64_whatever_the_tile(tile_rows, dtype):
    random = np.random.default_rng(5)
    database, queries = (torch.from_numpy(unit_rows(random, count, 6)).to(dtype) for count in (50, 8))
    candidates = [random.permutation(50)[: random.integers(1, 30)] for _ in range(8)]
    found = candidate_distances(queries, database, candidates, tile_bytes=4 * 6 * tile_rows)
    for query, indices, distances in zip(queries.double(), candidates, found, strict=True):
        wanted = ((query - database.double()[indices]) ** 2).sum(dim=1)
        assert np.abs(distances - wanted.numpy()).max() < (3e-3 if dtype == torch.float16 else 1e-6)


def test_a_batch_of_tuples_leads_back_to_the_images_of_each_tuple():
    tuples = [
        TrainingTuple(query=2, positive=5, negatives=np.array([9, 1, 7])),
        TrainingTuple(query=0, positive=7, negatives=np.array([5])),  # 7 and 5 are shared, in other roles
        TrainingTuple(query=4, positive=5, negatives=np.array([1, 3])),
    ]
    database_size = 10
    files = [f"database {index}" for index in range(database_size)] + [f"query {index}" for index in range(5)]
    batch = TupleBatch.of(tuples, database_size)
    assert sorted(batch.images) == [1, 3, 5, 7, 9, 10, 12, 14]  # each once
    loaded = [files[image] for image in batch.images]
    assert [loaded[place] for place in batch.query] == ["query 2", "query 0", "query 4"]
    assert [loaded[place] for place in batch.positive] == ["database 5", "database 7", "database 5"]
    for index, item in enumerate(tuples):
        own = [loaded[place] for place in batch.negative[batch.tuple_of_negative == index]]
        assert own == [f"database {image}" for image in item.negatives]
