"""Re-ranking: against a literal loop, hand-made pairs, and what must not change the score."""

import contextlib
import math
import threading
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vpr.common.errors import UserError
from vpr.descriptors.local_maps import LARGEST_MAP, SCALE, LocalMaps, joined, quantized, starts_of
from vpr.retrieval.matching import Matches, beyond_chance, matches_of, pairs_of, soft_sums, weighted_matches
from vpr.retrieval.rerank import local_scores, rerank
from vpr.retrieval.rules import Reranking

both = pytest.mark.parametrize("by", ["soft", "spatial"])


def maps_of(*maps):
    """Maps of unit vectors [d, h, w], quantised and joined."""
    return joined([part for each in maps for part in quantized(F.normalize(each[None].float(), dim=1).numpy())])


def random_map(seed, height, width, dim=16):
    return torch.randn(dim, height, width, generator=torch.Generator().manual_seed(seed))


def sides_of(query, hit):
    """The stored 8 bits of two maps [d, h, w], and the points of their positions."""
    sides = []
    for each in (query, hit):
        (rows, (height, width)) = quantized(F.normalize(each[None].float(), dim=1).numpy())[0]
        points = [((n % width + 0.5) / width, (n // width + 0.5) / height) for n in range(height * width)]
        sides.append((rows.astype(int), points))
    return sides


def literal_matches(query, hit):
    """Mutual nearest neighbours, by loops: (position in the query's map, position in the hit's, cosine)."""
    (own, _), (other, _) = sides_of(query, hit)
    matches = []
    for i, row in enumerate(own):
        products = [int(row @ each) for each in other]
        j = max(range(len(other)), key=lambda n: products[n])
        back = [int(other[j] @ each) for each in own]
        if max(range(len(own)), key=lambda n: back[n]) == i and products[j] > 0:
            matches.append((i, j, min(1.0, products[j] / SCALE**2)))
    return matches


def literal_score(query, hit, by):
    """The local score of two maps [d, h, w] by loops over positions, and how many matches there are."""
    (own, own_points), (other, other_points) = sides_of(query, hit)
    places = math.sqrt(len(own) * len(other))
    if by == "soft":
        score = count = 0.0
        cosines = [[int(row @ each) / SCALE**2 for each in other] for row in own]
        for row in cosines:
            for j, cosine in enumerate(row):
                share = math.exp(cosine / 0.1) / sum(math.exp(each / 0.1) for each in row)
                share *= math.exp(cosine / 0.1) / sum(math.exp(each[j] / 0.1) for each in cosines)
                score, count = score + share * max(cosine, 0), count + share
        return score / places, count
    matches = literal_matches(query, hit)
    if not matches:
        return 0.0, 0.0
    moved = [np.subtract(other_points[j], own_points[i]) for i, j, _ in matches]
    weights = [1.0] * len(matches)
    for _ in range(3):
        mean = sum(weight * each for weight, each in zip(weights, moved, strict=True)) / sum(weights)
        agreement = [math.exp(-sum((each - mean) ** 2) / (2 * 0.3**2)) for each in moved]
        weights = [cosine**3 * agrees for (_, _, cosine), agrees in zip(matches, agreement, strict=True)]
    return sum(weights) / places, sum(agreement)


def scores_of(query, hits, by):
    """The local score of a map [d, h, w] with each of some hits, and how many matches there are."""
    return local_scores(0, np.arange(len(hits)), maps_of(query), maps_of(*hits), by)


@both
@pytest.mark.parametrize("sizes", [((4, 5), (4, 5)), ((3, 7), (6, 2)), ((1, 1), (5, 5))])
def test_the_score_is_that_of_a_loop_over_positions(sizes, by):
    query = random_map(1, *sizes[0])
    hits = [random_map(seed, *sizes[1]) for seed in range(2, 6)] + [query + 0.3 * random_map(9, *sizes[0])]
    scores, counts = scores_of(query, hits, by)
    wanted = [literal_score(query, hit, by) for hit in hits]
    np.testing.assert_allclose(scores, [score for score, _ in wanted], atol=1e-5)
    np.testing.assert_allclose(counts, [count for _, count in wanted], rtol=1e-4)


@both
def test_hits_of_several_sizes_and_in_parts_score_as_one_by_one(monkeypatch, by):
    query, hits = random_map(1, 5, 6), [random_map(seed, 3 + seed % 3, 4 + seed % 2) for seed in range(2, 9)]
    together, _ = scores_of(query, hits, by)
    np.testing.assert_allclose(together, [scores_of(query, [hit], by)[0][0] for hit in hits], rtol=1e-5)
    monkeypatch.setattr("vpr.retrieval.rerank.AT_ONCE", 3)
    pauses: list[int] = []
    in_parts = local_scores(0, np.arange(7), maps_of(query), maps_of(*hits), by, lambda: pauses.append(1))
    np.testing.assert_allclose(in_parts[0], together, rtol=1e-5)
    assert len(pauses) == 3


def test_a_pure_translation_agrees_wholly_and_outliers_do_not():
    """24 of the hit's positions are the query's, moved by 2 columns: all displacements are equal."""
    query, hit = random_map(1, 4, 8, dim=64), random_map(2, 4, 8, dim=64)
    hit[:, :, 2:] = query[:, :, :6]
    matches = matches_of(0, 0, maps_of(query), maps_of(hit))
    heavy = matches.weights > 0.5
    assert heavy.sum() == 24
    moved = matches.hit_points - matches.query_points
    np.testing.assert_allclose(moved[heavy], np.tile([2 / 8, 0], (24, 1)), atol=1e-6)
    assert matches.weights[~heavy].max(initial=0) < 0.45  # chance matches: their cosines are low


@both
def test_query_and_hit_may_be_exchanged(by):
    query, hit = random_map(1, 5, 7), random_map(2, 6, 4)
    hit[:, :4, :4] += query[:, :4, :4]
    np.testing.assert_allclose(scores_of(query, [hit], by)[0], scores_of(hit, [query], by)[0], atol=1e-6)


def test_a_region_that_matches_nothing_adds_nothing():
    """Columns on the right that are unlike all of the query's, opposite to them or orthogonal."""
    query = random_map(1, 4, 6)
    query[8:] = 0
    hit = torch.cat([query, torch.zeros(16, 4, 3)], dim=2)
    hit[8:, :, 6:] = random_map(3, 4, 3)[8:]  # orthogonal to all of the query
    pairs, wider = (pairs_of(0, np.array([0]), maps_of(query), maps_of(each)) for each in (query, hit))
    matches, likeness = literal_matches(query, hit), weighted_matches(wider)[0][0]
    assert len(matches) == 24 and all(i // 6 == j // 9 and i % 6 == j % 9 for i, j, _ in matches)
    np.testing.assert_array_equal(likeness, weighted_matches(pairs)[0][0])
    # Of the soft matches the orthogonal ones have cosine 0: they weigh nothing, and take little of the others' share.
    assert soft_sums(wider)[0].item() == pytest.approx(soft_sums(pairs)[0].item(), rel=0.05)


@both
def test_an_image_against_itself_scores_most(by):
    images = [random_map(seed, 4, 6, dim=64) for seed in range(5)]
    images += [images[0] + share * images[1] for share in (0.1, 0.3, 1.0)]
    scores, counts = scores_of(images[0], images, by)
    assert scores.argmax() == 0 and scores[0] == pytest.approx(1, abs=0.02) and scores[0] <= 1 + 0.02
    assert counts[0] == pytest.approx(24, rel=0.01) and counts.argmax() in (0, 5)
    assert scores[0] > scores[5] > scores[6] > scores[7] > scores[1:5].max()


def test_positions_need_to_agree_only_spatially():
    """The hit's columns in another order: all positions have their match, few displacements agree."""
    query = random_map(1, 4, 8, dim=64)
    hit = query[:, :, [5, 0, 7, 2, 4, 1, 6, 3]]
    (soft, counts), (spatial, agreeing) = (scores_of(query, [hit], by) for by in ("soft", "spatial"))
    assert counts[0] == pytest.approx(32, rel=0.02) and soft[0] == pytest.approx(1, abs=0.03)
    assert agreeing[0] < 24 and spatial[0] < 0.75 * soft[0]


@both
def test_maps_without_a_match_score_nothing(by):
    up = torch.zeros(4, 2, 3)
    up[0] = 1
    assert scores_of(up, [torch.roll(up, 1, dims=0), -up], by)[0].tolist() == [0, 0]


@both
def test_equal_positions_are_matched_once(by):
    """A sky, all alike: one of the query's goes with one of the hit's, softly each with each by a ninth of a ninth."""
    sky = torch.zeros(4, 3, 3)
    sky[0] = 1
    scores, counts = scores_of(sky, [sky], by)
    assert counts[0] == pytest.approx(1) and scores[0] == pytest.approx(1 / 9, abs=1e-4)


def test_one_match_agrees_with_itself():
    query, hit = -torch.ones(4, 1, 2), -torch.ones(4, 1, 2)
    query[:, 0, 0], hit[:, 0, 1] = 1, 1  # one position each that is alike, at the ends
    query[:, 0, 1], hit[:, 0, 0] = torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, 1, -1, -1])
    matches = matches_of(0, 0, maps_of(query), maps_of(hit))
    np.testing.assert_allclose(matches.query_points, [[0.25, 0.5]])
    np.testing.assert_allclose(matches.hit_points, [[0.75, 0.5]])
    np.testing.assert_allclose(matches.weights, [1], atol=1e-6)


@pytest.mark.parametrize(("by", "weight"), [("soft", 8), ("spatial", 4)])
def test_the_order_is_that_of_cosine_and_local_score(by, weight):
    query = random_map(1, 4, 5)
    hits = [random_map(2, 4, 5), query + 0.5 * random_map(3, 4, 5), random_map(4, 4, 5), query]
    found = np.array([[0, 2, 1, 3, 5], [2, -1, -1, -1, -1]])
    similarities = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, np.nan, np.nan, np.nan]], np.float32)
    again = rerank(found, similarities, maps_of(query, hits[0]), maps_of(*hits), Reranking(4, by))
    local = [literal_score(query, hits[n], by)[0] for n in (0, 2, 1, 3)]
    final = [cosine + weight * own for cosine, own in zip((0.9, 0.8, 0.7, 0.6), local, strict=True)]
    assert again.found[0].tolist() == [*np.array([0, 2, 1, 3])[np.argsort(final)[::-1]], 5]
    np.testing.assert_allclose(again.scores[0], sorted(final, reverse=True), atol=1e-4)
    np.testing.assert_allclose(again.local[by][0], np.array(local)[np.argsort(final)[::-1]], atol=1e-5)
    assert again.found[1].tolist() == [2, -1, -1, -1, -1] and np.isneginf(again.scores[1, 1:]).all()
    some, images = np.where(found >= 0, 10 * found, -1), np.array([0, 10, 20, 30])
    few = rerank(some, similarities, maps_of(query, hits[0]), maps_of(*hits), Reranking(4, by), images=images)
    np.testing.assert_array_equal(few.found, np.where(again.found >= 0, 10 * again.found, -1))
    np.testing.assert_array_equal(few.scores, again.scores)


@pytest.fixture
def threads():
    """The number of threads, which a test may change."""
    yield (before := torch.get_num_threads())
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_spatial_scores_do_not_depend_on_the_number_of_threads():
    query, hits = random_map(1, 20, 30, dim=64), [random_map(seed, 20, 30, dim=64) for seed in range(4)]
    scores = set()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        scores.add(scores_of(query, hits, "spatial")[0].tobytes())
    assert len(scores) == 1


class CountedLibraries:
    """Stands for those that multiply matrices: who limits their threads sets them back to what they were."""

    threads = 2

    @contextlib.contextmanager
    def limit(self, limits, user_api):
        before, self.threads = self.threads, limits
        yield
        self.threads = before


def test_rerankings_at_once_leave_the_threads_of_products_as_they_were(monkeypatch):
    """The second asks while the first is at work, and ends after it."""
    libraries = CountedLibraries()
    monkeypatch.setattr("vpr.retrieval.matching._libraries", lambda: libraries)
    monkeypatch.setattr("vpr.retrieval.matching.compute_threads", lambda: 2)
    pairs = pairs_of(0, np.array([0]), *[maps_of(random_map(1, 2, 2))] * 2)
    first_works, second_works, first_is_done = (threading.Event() for _ in range(3))

    def first() -> None:
        pairs.of_each(lambda hit: first_works.set() or second_works.wait(0.3))
        first_is_done.set()

    thread = threading.Thread(target=first)
    thread.start()
    first_works.wait()
    pairs.of_each(lambda hit: second_works.set() or first_is_done.wait(1))
    thread.join()
    assert libraries.threads == 2


@pytest.mark.parametrize(("sizes", "dim"), [(((20, 20), (20, 20)), 64), (((15, 20), (9, 31)), 128)])
def test_soft_scores_are_those_of_float64(sizes, dim):
    query, hit = random_map(1, *sizes[0], dim), random_map(2, *sizes[1], dim)
    (own, _), (other, _) = sides_of(query, hit)
    cosines = other @ own.T / SCALE**2
    likely = np.exp(20 * cosines)  # squared, of a temperature of 0.1
    likely /= np.exp(10 * cosines).sum(axis=0) * np.exp(10 * cosines).sum(axis=1, keepdims=True)
    score, count = scores_of(query, [hit], "soft")
    assert count[0] == pytest.approx(likely.sum(), rel=1e-6)
    assert score[0] == pytest.approx((likely * cosines.clip(0)).sum() / math.sqrt(cosines.size), rel=1e-6)


@pytest.mark.parametrize("dim", [1, 64, 128])
def test_products_stay_exact(dim):
    """The largest product in 8 bits, times 2^10 with the number of a place, is a whole number float32 can hold."""
    worst = F.normalize(torch.ones(1, dim, 1, 1), dim=1) + 0.5 / SCALE  # rounded up everywhere
    rows = np.floor(worst.flatten().numpy() * SCALE + 1e-3).astype(int)
    assert (rows @ rows + 1) * LARGEST_MAP < 2**24


def test_large_maps_are_averaged():
    (rows, grid), _ = quantized(F.normalize(torch.randn(2, 8, 30, 40), dim=1).numpy())
    assert grid == (15, 20) and rows.shape == (300, 8) and rows.dtype == np.int8
    flat = F.normalize(torch.ones(1, 4, 33, 41), dim=1).numpy()
    (rows, grid) = quantized(flat)[0]
    assert grid == (17, 21) and (rows == SCALE // 2).all()  # an average of equals, also at the edges


def test_a_changed_byte_is_noticed_when_the_image_is_read():
    values = np.arange(24, dtype=np.int8).reshape(6, 4)
    checksums = np.array([zlib.crc32(values[:2].data), zlib.crc32(values[2:].data)], np.uint32)
    changed = values.copy()
    changed[3, 1] += 1
    maps = LocalMaps(changed, np.array([[1, 2], [2, 2]]), starts_of([2, 4]), checksums, "db.local")
    np.testing.assert_array_equal(maps.rows(0), values[:2])
    with pytest.raises(UserError, match=r"db\.local is damaged \(local descriptors of image 1\)"):
        maps.rows(1)
    assert maps.part(1, 2).bytes_per_image == 16


def test_matches_that_every_image_has_are_none_of_this_place():
    """A point of the query counts where it matches more heavily here than anywhere else, wherever the matches lie."""

    def matches(*triples):
        query, hit, weights = zip(*triples, strict=True) if triples else ((), (), ())
        shaped = (np.array(each, np.float32).reshape(-1, 2) for each in (query, hit))
        return Matches(*shaped, np.array(weights, np.float32))

    frame, sky, door, tree = (0.1, 0.1), (0.5, 0.1), (0.5, 0.9), (0.9, 0.9)
    here = matches((door, (0.4, 0.8), 0.9), (frame, frame, 0.8), (tree, tree, 0.5), (sky, sky, 0.3))
    others = [
        matches((frame, frame, 0.8), (sky, (0.2, 0.2), 0.1)),
        matches((tree, sky, 0.4), (sky, door, 0.6)),
        matches(),
    ]
    kept = beyond_chance(here, others)
    assert kept.query_points.tolist() == np.array([door, tree], np.float32).tolist()
    assert kept.hit_points[0].tolist() == pytest.approx([0.4, 0.8]) and kept.weights.tolist() == pytest.approx(
        [0.9, 0.5]
    )
    assert beyond_chance(here, []).weights.tolist() == here.weights.tolist()
    assert len(beyond_chance(matches(), others).weights) == 0
