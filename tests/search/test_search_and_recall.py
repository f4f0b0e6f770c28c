"""Search and recall against brute force, and the two Tokyo protocols on cases worked out by hand."""

import numpy as np
import pytest

import vpr.search.exact
from pittsburgh import Places, read_places
from vpr.evaluation.outcomes import recall_at, recall_line
from vpr.search.approximate import IndexSearch, build_index
from vpr.search.exact import in_front
from vpr.search.protocols import first_of_panoramas, panoramas_of

NOTHING = np.array([], dtype=np.int64)


def make_places(protocol, database, queries, database_times=None, query_times=None):
    """Places in one row, 100 m apart; only names, times and the protocol matter to the search."""
    names = database if isinstance(database, list) else [f"{index}.jpg" for index in range(database)]
    positions = np.stack([100.0 * np.arange(len(names)), np.zeros(len(names))], axis=1)
    times = [None if each is None else np.array(each) for each in (database_times, query_times)]
    asked = [f"q{index}.jpg" for index in range(queries)]
    return Places("made", names, asked, positions, np.zeros((queries, 2)), 25.0, 10.0, *times, protocol)


def nearest(database, queries, *arguments):
    return vpr.search.exact.nearest(database, queries, *arguments)


def search_places(database, queries, *arguments):
    return vpr.search.protocols.search_places(database, queries, *arguments)


def flat_search(database):
    """An index that finds what an exact search finds."""
    return IndexSearch(build_index("Flat", database, 0))


def column(values):
    """Descriptors of one number each."""
    return np.array(values, dtype=np.float32)[:, None]


def random_descriptors(seed, *counts, dim=6, dtype=np.float32):
    random = np.random.default_rng(seed)
    return [random.normal(size=(count, dim)).astype(dtype) for count in counts or (40, 30)]


def sorted_by_distance(database, queries):
    squared = ((queries[:, None, :].astype(np.float64) - database.astype(np.float64)) ** 2).sum(axis=2)
    return np.argsort(squared, axis=1, kind="stable")


@pytest.mark.parametrize(
    ("found", "positives", "wanted"),
    [
        ([[4, 2, 0], [1, 3, 2], [0, 1, 2], [3, 4, 0]], [[4, 0], [2], [], [0, 4]], {1: 0.25, 2: 0.5, 3: 0.75}),
        ([[0, 1], [0, 1]], [[], [0]], {1: 0.5, 2: 0.5}),  # without positives a query counts as missed
        # -1 is never a hit, though to numpy it means the last of a database of 3.
        ([[-1, -1], [-1, 0], [2, -1]], [[2], [2], [2]], {1: 1 / 3, 2: 1 / 3}),
    ],
    ids=["by hand", "no positives", "no hits"],
)
def test_recall(found, positives, wanted):
    positives = [np.array(each, dtype=np.int64) for each in positives]
    assert recall_at(np.array(found), positives, list(wanted)) == wanted


@pytest.mark.parametrize("seed", range(5))
def test_recall_is_that_of_a_brute_force(seed):
    random = np.random.default_rng(seed)
    found = np.array([random.permutation(30)[:20] for _ in range(50)])
    for row in range(0, 50, 3):
        found[row, random.integers(0, 20) :] = -1
    positives = [np.sort(random.permutation(30)[: random.integers(0, 4)]) for _ in range(50)]
    assert any(len(wanted) == 0 for wanted in positives)
    recalls = recall_at(found, positives, [1, 2, 5, 10, 20])
    assert list(recalls) == [1, 2, 5, 10, 20] and 0 < recalls[1] < recalls[20] < 1
    for n, recall in recalls.items():
        pairs = zip(found.tolist(), positives, strict=True)
        right = sum(any(hit in set(wanted.tolist()) for hit in hits[:n] if hit != -1) for hits, wanted in pairs)
        assert recall == pytest.approx(right / 50, abs=1e-12)


@pytest.mark.parametrize("protocol", ["plain", "panorama"])
def test_more_hits_than_images_are_no_hits(protocol):
    names = ["a_000.jpg", "b_000.jpg", "c_000.jpg"]
    found = search_places(column([0, 1, 2]), column([0.1, 1.9]), 5, make_places(protocol, names, 2))
    assert found.tolist() == [[0, 1, 2, -1, -1], [2, 1, 0, -1, -1]]
    assert recall_at(found, [NOTHING, np.array([1])], [1, 2, 5]) == {1: 0.0, 2: 0.5, 5: 0.5}


@pytest.mark.parametrize(
    ("recalls", "line"),
    [({1: 0.85234, 5: 0.948}, "R@1: 85.2, R@5: 94.8"), ({1: 0.0, 10: 1.0}, "R@1: 0.0, R@10: 100.0")],
)
def test_recall_line(recalls, line):
    assert recall_line(recalls) == line


@pytest.mark.parametrize("count", [1, 5, 40, 100])
def test_nearest_is_that_of_a_sort(count):
    database, queries = random_descriptors(count)
    found, expected = nearest(database, queries, count), sorted_by_distance(database, queries)
    assert found.shape == (30, min(count, 40))
    np.testing.assert_array_equal(found, expected[:, :count])
    if count < 40:
        np.testing.assert_array_equal(search_places(database, queries, count, make_places("plain", 40, 30)), found)


def test_nearest_goes_by_distance_not_by_inner_product():
    assert nearest(column([10, 1, 0]), column([0.9]), 3).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("tile_rows", [1, 7, 1000])
def test_search_by_tiles_of_any_size_is_that_of_a_sort(monkeypatch, tile_rows):
    database, queries = random_descriptors(tile_rows)
    monkeypatch.setattr(vpr.search.exact, "TILE_BYTES", 4 * 6 * tile_rows)
    allowed = np.sort(np.random.default_rng(tile_rows).permutation(40)[:25])
    expected = allowed[sorted_by_distance(database[allowed], queries)[:, :9]]
    np.testing.assert_array_equal(nearest(database, queries, 9, allowed), expected)


def test_float16_descriptors_are_searched_as_what_they_are():
    database, queries = random_descriptors(2, 60, 20, dim=8, dtype=np.float16)
    np.testing.assert_array_equal(nearest(database, queries, 5), sorted_by_distance(database, queries)[:, :5])


def test_only_the_first_hit_of_each_panorama_counts_in_tokyo_247():
    """On a line, seen from 0: a at 1.00, 1.01, ... 1.11; b at 1.005 and from 2.01 on; c from 3.00 on.

    The query at 0 finds a, b, a, a, ...; that at 10 finds c twelve times (3.11 first), then b (2.11 first).
    """
    spot = {
        f"{panorama}_012_{30 * step:03d}.jpg": number + 0.01 * step
        for number, panorama in enumerate(("a/x", "a/y", "b/x"), start=1)
        for step in range(12)
    }
    spot["a/y_012_000.jpg"] = 1.005
    names = np.random.default_rng(9).permutation(sorted(spot)).tolist()
    assert len(names) == 36
    database, queries = column([spot[name] for name in names]), column([0, 10])
    found = search_places(database, queries, 3, make_places("panorama", names, 2))
    assert [[names[hit] for hit in hits] for hits in found] == [
        ["a/x_012_000.jpg", "a/y_012_000.jpg", "b/x_012_000.jpg"],
        ["b/x_012_330.jpg", "a/y_012_330.jpg", "a/x_012_330.jpg"],
    ]
    # Both queries were taken where the last panorama but one of each list stands.
    positives = [
        np.array([index for index, name in enumerate(names) if name.startswith(prefix)]) for prefix in ("b/x", "a/y")
    ]
    assert recall_at(found, positives, [1, 2, 3]) == {1: 0.0, 2: 0.5, 3: 1.0}
    plain = search_places(database, queries, 3, make_places("plain", names, 2))
    assert recall_at(plain, positives, [1, 2, 3]) == {1: 0.0, 2: 0.0, 3: 0.0}


def test_three_panoramas_fill_only_three_of_five_hits():
    names = [f"p{panorama}_{30 * step:03d}.jpg" for panorama in range(3) for step in range(12)]
    found = search_places(column(range(36)), column([35]), 5, make_places("panorama", names, 1))
    assert found.tolist() == [[35, 23, 11, -1, -1]]


def test_panoramas_are_told_apart_by_all_but_the_heading():
    names = ["a/x_012_000.jpg", "b/x_012_000.jpg", "a/x_012_330.jpg", "a/x_013_000.jpg", "b/x_012_030.jpg"]
    groups, expected = panoramas_of(names), np.eye(5, dtype=bool)
    expected[0, 2] = expected[2, 0] = expected[1, 4] = expected[4, 1] = True
    np.testing.assert_array_equal(groups[:, None] == groups[None, :], expected)


def test_the_first_of_each_panorama_keep_their_order():
    found = np.array([[5, 4, 1, 0, 3, 2], [0, 1, 2, 3, 4, 5]])
    kept = in_front(found, first_of_panoramas(found, np.array([0, 0, 1, 1, 2, 2])))
    assert kept.tolist() == [[5, 1, 3, -1, -1, -1], [0, 2, 4, -1, -1, -1]]


def test_each_real_tokyo_panorama_has_twelve_cutouts_at_one_place(shared):
    places = read_places(shared / "netvlad_specs" / "tokyo247.mat")
    panoramas = panoramas_of(places.database_names)
    assert set(np.bincount(panoramas).tolist()) == {12}
    positions = places.database_positions[np.argsort(panoramas, kind="stable")].reshape(-1, 12, 2)
    assert (positions == positions[:, :1]).all()


def test_hits_with_the_querys_own_time_stamp_do_not_count_in_tokyo_time_machine():
    """Descriptors 0 to 5; the queries ask at 0.1, 0.1 and 4.9, the first and the last in the same month."""
    times = [201306, 200912, 201306, 201306, 200912, 201306]
    places = make_places("other_time", 6, 3, times, [201306, 200912, 201306])
    database, queries = column(range(6)), column([0.1, 0.1, 4.9])
    found = search_places(database, queries, 3, places)
    assert found.tolist() == [[1, 4, -1], [0, 2, 3], [4, 1, -1]]
    positives = [np.array([1]), np.array([2]), np.array([4])]
    assert recall_at(found, positives, [1, 2]) == {1: 2 / 3, 2: 1.0}
    plain = search_places(database, queries, 3, make_places("plain", 6, 3))
    assert recall_at(plain, positives, [1, 2]) == {1: 0.0, 2: 2 / 3}


def test_nothing_is_found_where_all_images_are_of_the_querys_time():
    places = make_places("other_time", 3, 2, [201306] * 3, [201306, 200912])
    found = search_places(column([0, 1, 2]), column([0, 2]), 2, places)
    assert found.tolist() == [[-1, -1], [2, 1]]


@pytest.mark.parametrize("factory", [None, "Flat"])
def test_search_in_tokyo_time_machine_is_that_of_a_brute_force(factory):
    random = np.random.default_rng(10)
    database, queries = random_descriptors(10)
    database_times, query_times = random.integers(0, 4, 40), random.integers(0, 4, 30)
    places = make_places("other_time", 40, 30, database_times, query_times)
    found = search_places(database, queries, 5, places, flat_search(database) if factory else None)
    for query, hits in enumerate(sorted_by_distance(database, queries).tolist()):
        assert found[query].tolist() == [hit for hit in hits if database_times[hit] != query_times[query]][:5]


def test_approximate_search_in_tokyo_time_machine_asks_for_no_more_than_it_takes():
    """Queries at 0 of months 1 and 2; image n lies at n, the first five in month 1. Twice as many at each step."""
    asked = []

    def search(queries, count):
        asked.append((len(queries), count))
        return np.argsort(np.abs(queries - np.arange(100)), axis=1)[:, :count]

    places = make_places("other_time", 100, 2, [1] * 5 + [3] * 55 + [1] * 40, [1, 2])
    found = search_places(column(range(100)), column([0, 0]), 2, places, search)
    assert found.tolist() == [[5, 6], [0, 1]]
    # Of the 4 nearest none is of another month than 1, of the 8 nearest three are.
    assert asked == [(1, 4), (1, 8), (1, 2)]


def test_approximate_search_finds_what_is_allowed_though_little_is():
    places = make_places("other_time", 100, 1, [1] * 97 + [2] * 3, [1])
    found = search_places(column(range(100)), column([0]), 5, places, flat_search(column(range(100))))
    assert found.tolist() == [[97, 98, 99, -1, -1]]
