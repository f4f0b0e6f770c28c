"""Places to train on against loops over all pairs, and walks of which the places are known."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.data.layouts.msls import CityPlaces
from vpr.data.places import PlaceImages
from vpr.training.places.cliques import hard_batches
from vpr.training.places.clustering import places_of
from vpr.training.places.headings import headings_of, sectors_of
from vpr.training.places.place_set import PlaceSet, grouped
from vpr.training.places.walk import grow, places_of_walk
from vpr.training.rules import TrainingRules
from vpr.training.training_set import load_training_set


def split_of(positions, queries=0, cities=None):
    """A split of images at these positions, of which the last are queries."""
    count = len(positions) - queries
    names = [f"{number}.jpg" for number in range(len(positions))]
    kept = (names[:count], names[count:], positions[:count], positions[count:], 25.0, 10.0)
    if cities is None:
        places = Places("set", *kept)
    else:
        places = CityPlaces("set", *kept, database_cities=cities[:count], query_cities=cities[count:])
    return PlaceImages(places, "train", [Path(name) for name in names[:count]], [Path(name) for name in names[count:]])


def crowded(seed, count=400):
    """Images on a route, several of them on one spot; metres in the hundreds of thousands as UTM's are."""
    generator = np.random.default_rng(seed)
    where = generator.uniform(0, [400, 200], (count, 2)) + [585_000, 4_477_000]
    where[count // 2 :] = where[generator.integers(0, count // 2, count - count // 2)]
    return where


def centres_by_loops(positions, distance, radius):
    """Greedy by the words: most images within the radius first, of equals the western, then the southern."""
    spots = sorted({tuple(each) for each in positions.tolist()})
    apart = {one: [np.hypot(one[0] - other[0], one[1] - other[1]) for other in positions] for one in spots}
    crowd = {one: sum(each <= radius for each in apart[one]) for one in spots}
    centres = []
    for one in sorted(spots, key=lambda spot: (-crowd[spot], spot)):
        if all(np.hypot(one[0] - other[0], one[1] - other[1]) >= distance for other in centres):
            centres.append(one)
    return centres


@pytest.mark.parametrize(("distance", "radius"), [(25.0, 10.0), (45.0, 10.0), (20.0, 10.0), (12.0, 3.0)])
@pytest.mark.parametrize("seed", range(3))
def test_places_are_the_images_around_spots_as_loops_choose_them(seed, distance, radius):
    positions = crowded(seed)
    found = places_of(split_of(positions, queries=90), distance, radius)
    expected = []
    for centre in centres_by_loops(positions, distance, radius):
        inside = [n for n, each in enumerate(positions) if np.hypot(*(each - centre)) <= radius]
        if len(inside) > 1:
            expected.append(inside)
    assert len(expected) > 5
    if distance > 2 * radius:
        assert [each.tolist() for each in found.images] == expected
    else:  # an image may lie on the border of two
        assert [set(each) for each in found.images] == [set(each) for each in expected]
    for images, centre in zip(found.images, found.positions, strict=True):
        assert np.hypot(*(positions[images] - centre).T).max() <= radius + 1e-6


def test_no_image_of_a_hard_batch_is_a_hit_for_another_place():
    positions = crowded(0)
    places = places_of(split_of(positions))
    batches = hard_batches(places, np.zeros((len(places), 1)), 8, np.random.default_rng(0), apart=25.0 + 2 * 10.0)
    pairs = [pair for batch in batches for pair in itertools.combinations([places.images[at] for at in batch], 2)]
    assert len(pairs) > 20
    for one, other in pairs:
        assert np.hypot(*(positions[one][:, None] - positions[other]).transpose(2, 0, 1)).min() > 25


def test_borders_belong_to_a_place_and_centres_may_lie_at_the_very_distance():
    # On a grid of whole metres: the spots of three images are centres, 25 m apart; 10 m away is inside, 11 m is not.
    positions = np.array(
        [[0, 0]] * 3 + [[10, 0], [0, -10]] + [[25, 0]] * 3 + [[36, 0], [49, 0], [49, 0], [99, 0]], float
    )
    found = places_of(split_of(positions), 25.0, 10.0)
    assert [each.tolist() for each in found.images] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert [each.tolist() for each in places_of(split_of(positions), 24.0, 10.0).images][2:] == [[9, 10]]


def test_the_order_of_files_changes_numbers_alone():
    positions = crowded(5)
    order = np.random.default_rng(1).permutation(len(positions))
    one, other = places_of(split_of(positions), 25, 10), places_of(split_of(positions[order], queries=33), 25, 10)
    assert [sorted(order[each]) for each in other.images] == [each.tolist() for each in one.images]


def test_views_of_a_spot_are_places_of_their_own():
    positions = np.repeat([[0.0, 0.0], [3.0, 0.0], [60.0, 0.0]], 3, axis=0)
    for views, first in (([7, 2, 7, 7, 2, 5, 5, 5, 7], [[1, 4]]), ([7, -1, 7, 7, -1, 5, 5, 5, 7], [])):  # -1: unknown
        found = places_of(split_of(positions), views=np.array(views))
        assert [each.tolist() for each in found.images] == [*first, [0, 2, 3], [6, 7]]


def test_names_tell_headings():
    names = [
        "000/000123_pitch1_yaw1.jpg", "000/000123_pitch2_yaw12.jpg", "a/@1@2@17@T@40.4@-80@pano@3@271.5@0@.jpg",
        "b.jpg", "@1@2@17@T@@@@@@@.jpg", "_yaw.jpg", "@5@6@x.jpg",
    ]  # fmt: skip
    np.testing.assert_array_equal(headings_of(names), [0, 330, 271.5, *[np.nan] * 4])


def test_sectors_are_alike_and_the_first_lies_around_north():
    headings = np.array([0, 44.9, 45.1, 134.9, 135.1, 224.9, 225.1, 314.9, 315.1, 360, -10, 725, np.nan])
    assert sectors_of(headings, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 0, 0, -1]
    every = sectors_of(np.arange(0, 360, 0.5), 12)
    assert np.bincount(every).tolist() == [60] * 12
    assert (sectors_of(30.0 * np.arange(12), 12) == np.arange(12)).all()


def test_each_sector_of_headings_is_a_place_at_a_spot(monkeypatch):
    names = [f"000/{spot}_{shot}_pitch1_yaw{yaw}.jpg" for spot in range(3) for shot in range(2) for yaw in (1, 2, 7)]
    positions = np.repeat([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]], 6, axis=0)
    places = Places("yaws", names, [], positions, np.empty((0, 2)), 25.0, 10.0)
    images = PlaceImages(places, "train", [Path(name) for name in names], [])
    monkeypatch.setattr("vpr.training.training_set.load_places", lambda *_: images)

    def of_each(sectors):
        rules = TrainingRules(loss="multi-similarity", batch_size=3, place_headings=sectors)
        found = load_training_set(None, rules).places.images
        return sorted(sorted({names[image].partition("_yaw")[2] for image in each}) for each in found)

    assert of_each(0) == [["1.jpg", "2.jpg", "7.jpg"]] * 3
    assert of_each(2) == [["1.jpg", "2.jpg"]] * 3 + [["7.jpg"]] * 3
    assert of_each(12) == [["1.jpg"]] * 3 + [["2.jpg"]] * 3 + [["7.jpg"]] * 3
    names[:] = [f"{number}.jpg" for number in range(len(names))]
    with pytest.raises(UserError, match="no image's name tells where it looks"):
        of_each(12)


def test_images_of_different_cities_are_of_different_places_whatever_their_metres():
    positions = np.array([[5.0, 5.0]] * 4 + [[6.0, 5.0]] * 2)
    found = places_of(split_of(positions, 3, np.array([0, 1, 0, 1, 1, 2])))
    assert [each.tolist() for each in found.images] == [[1, 3, 4], [0, 2]]


@pytest.mark.parametrize(
    ("positions", "distance", "radius", "said"),
    [
        ([[0, 0], [np.nan, np.nan]], 25, 10, ("1 of 2 images have no position", "one of each")),
        ([[0, 0], [11, 0], [30, 0]], 25, 10, ("no two of its 3 images", "10 m", "larger radius")),
        ([], 25, 10, ("no two of its 0 images", "add images")),
        ([[0, 0], [0, 0]], 19, 10, ("10 m radius, 19 m apart", "two of it apart")),
        ([[0, 0], [0, 0]], 19, 0, ("places of 0 m radius", "radius over 0")),
    ],
)  # fmt: skip
def test_what_makes_no_places_is_refused_in_a_line(positions, distance, radius, said):
    with pytest.raises(UserError) as caught:
        places_of(split_of(np.array(positions, float).reshape(-1, 2)), distance, radius)
    assert all(words in str(caught.value) for words in said), str(caught.value)


# Batches


def looks(groups=12, each=8, dim=32):
    """Places of which eight at a time look alike, mixed: descriptors of length 1, and which group each is of."""
    generator = np.random.default_rng(0)
    group = generator.permutation(np.repeat(np.arange(groups), each))
    found = generator.normal(size=(groups, dim))[group] + 0.3 * generator.normal(size=(len(group), dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), group


def set_of(count, positions=None):
    return PlaceSet("set", [np.array([2 * n, 2 * n + 1]) for n in range(count)], positions)


def alike(descriptors, batch):
    """Mean cosine of all pairs."""
    pairs = [(one, other) for n, one in enumerate(batch) for other in batch[:n]]
    return np.mean([descriptors[one] @ descriptors[other] for one, other in pairs])


def test_a_batch_is_of_places_that_look_alike():
    descriptors, group = looks()
    hard = hard_batches(set_of(len(group)), descriptors, 8, np.random.default_rng(3))
    drawn = np.random.default_rng(3).permutation(len(group)).reshape(-1, 8)
    at_random = np.mean([alike(descriptors, batch) for batch in drawn])
    first = np.mean([alike(descriptors, batch) for batch in hard[: len(hard) // 2]])
    assert first > at_random + 0.3
    assert np.mean([alike(descriptors, batch) for batch in hard]) > at_random + 0.15


def test_each_place_comes_once_and_equal_seeds_give_equal_batches():
    descriptors, group = looks(each=9)
    runs = [
        hard_batches(set_of(len(group)), given, 7, np.random.default_rng(seed))
        for given, seed in ((descriptors, 3), (torch.from_numpy(descriptors), 3), (descriptors, 4))
    ]
    taken = np.concatenate(runs[0])
    assert len(set(taken.tolist())) == len(taken) == 108
    assert [len(batch) for batch in runs[0]] == [7] * 15 + [3]
    assert [batch.tolist() for batch in runs[0]] == [batch.tolist() for batch in runs[1]]
    assert [batch.tolist() for batch in runs[0]] != [batch.tolist() for batch in runs[2]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_batches_are_the_same_however_many_places_and_rows_are_compared_at_once(monkeypatch, dtype):
    descriptors, group = looks(each=9)
    found = []
    for seeds, rows in ((32, 1024), (1, 5), (3, 200)):
        monkeypatch.setattr("vpr.training.places.cliques.SEEDS", seeds)
        monkeypatch.setattr("vpr.training.places.cliques.ROWS", rows)
        batches = hard_batches(set_of(len(group)), descriptors.astype(dtype), 7, np.random.default_rng(3))
        found.append([batch.tolist() for batch in batches])
    assert found[0] == found[1] == found[2] and len(found[0]) == 16


def test_places_of_a_batch_lie_apart_and_those_near_come_later():
    descriptors, group = looks()
    positions = np.column_stack([30.0 * np.arange(len(group)), np.zeros(len(group))])
    found = hard_batches(set_of(len(group), positions), descriptors, 8, np.random.default_rng(0), apart=60.0)
    for batch in found:
        assert all(abs(one - other) >= 2 for n, one in enumerate(batch.tolist()) for other in batch[:n].tolist())
    taken = np.concatenate(found)
    assert len(set(taken.tolist())) == len(taken) > 90


def test_places_that_all_lie_together_make_no_batch():
    together = set_of(6, np.zeros((6, 2)))
    assert hard_batches(together, looks()[0][:6], 4, np.random.default_rng(0)) == []
    assert hard_batches(set_of(1), looks()[0][:1], 4, np.random.default_rng(0)) == []
    assert hard_batches(set_of(0), np.empty((0, 4)), 4, np.random.default_rng(0)) == []


def test_the_nearer_a_place_looks_the_more_often_it_is_drawn():
    # A batch of two: the seed, 0, and one of three others at angles that grow; with 4 left out the seed is any of them.
    angles = np.array([0.0, 0.2, 0.5, 1.0])
    descriptors = np.column_stack([np.cos(angles), np.sin(angles)])
    counts = np.zeros(4)
    for seed in range(900):
        first = hard_batches(set_of(4), descriptors, 2, np.random.default_rng(seed))[0]
        if first[0] == 0:
            counts[first[1]] += 1
    # Distances 2 sin(a/2), of which the farthest has no chance.
    rates = 2 * (np.sin(0.5) - np.sin(angles[1:] / 2))
    np.testing.assert_allclose(counts[1:] / counts.sum(), rates / rates.sum(), atol=0.1)


# Walks


def test_frames_in_a_row_are_a_place_and_the_gap_is_of_none():
    found = places_of_walk("walk", [17, 4, 1], reach=1, gap=2)
    expected = [[0, 1, 2], [5, 6, 7], [10, 11, 12], [15, 16], [17, 18, 19]]
    assert [each.tolist() for each in found.images] == expected and found.positions is None
    alone = places_of_walk("folder", [3], reach=0, gap=0)
    assert [each.tolist() for each in alone.images] == [[0], [1], [2]]


@pytest.mark.parametrize("lengths", [[], [0], [1, 1]])
def test_a_walk_without_places_is_refused(lengths):
    with pytest.raises(UserError, match="no walk has 2 frames, wanted 5 for a place: add frames"):
        places_of_walk("walk", lengths)


def on_a_ring(metres, round_metres):
    """Descriptors of frames on a ring: the nearer on it, the more alike."""
    angles = 2 * np.pi * np.asarray(metres) / round_metres
    return np.column_stack([np.cos(angles), np.sin(angles)])


def test_a_second_round_becomes_the_places_of_the_first():
    # Two rounds of 40 frames; the second starts one frame later. Places of 3 frames, 5 of none between.
    metres = np.concatenate([np.arange(40.0), np.arange(40.0) + 1]) % 40
    places = places_of_walk("ring", [40, 40], reach=1, gap=5)
    asked = []

    def score(one, other):
        asked.append((one, other))
        return -abs((metres[one] - metres[other] + 20) % 40 - 20)

    found = grow(places, on_a_ring(metres, 40), score, least=0, visit=10)
    first = [np.arange(8 * n, 8 * n + 3) for n in range(5)]
    expected = [[*frames, *(frames + 40)] for frames in first]
    assert [each.tolist() for each in found.images] == expected
    assert len(set(asked)) == len(asked) and all(one < other for one, other in asked)
    assert len(grow(places, on_a_ring(metres, 40), score, least=0.1, visit=10)) == len(places) == 10


@pytest.fixture
def visits():
    """Places of 63 frames, and descriptors and scores by which frames of a group look alike: nothing else does."""
    places = PlaceSet("set", [np.array(each) for each in ([0, 1, 2], [5, 6], [30, 31, 32], [60, 61, 62])])
    groups = [(0, 30), (31, 61), (32, 62), (1, 40), (15, 41), (5, 20), (2, 45, 50)]
    descriptors = np.eye(63)
    for first, *others in groups:
        descriptors[others] = descriptors[first]

    def score(one, other):
        return next((1.0 if (one, other) != (2, 50) else 0.9 for each in groups if {one, other} <= set(each)), 0.0)

    return places, descriptors, score


def test_places_join_those_that_they_have_most_pairs_with(visits):
    # 30 speaks for places 0 and 2, 31 and 32 for 2 and 3; 41 and 15 are both of no place; 2 prefers 45 to 50, which
    # has nobody else: 45 is of its visit.
    found = grow(*visits, least=0.5)
    assert [each.tolist() for each in found.images] == [[0, 1, 2], [5, 6], [30, 31, 32, 60, 61, 62]]


@pytest.mark.parametrize(
    ("alike", "left"),
    [
        ([(3, 31), (4, 30)], [[0, 1, 2], [5, 6], [60, 61, 62]]),
        ([(3, 31), (1, 30), (2, 32)], [[0, 1, 2, 30, 31, 32], [5, 6], [60, 61, 62]]),  # more with a place
        ([(31, 55), (32, 56)], [[0, 1, 2], [5, 6], [30, 31, 32], [60, 61, 62]]),  # later frames: of no visit before
    ],
)
def test_a_place_that_lies_between_earlier_ones_is_left_out(visits, alike, left):
    """Frames 30 to 32 are a place; 3, 4, 55 and 56 are of none."""
    descriptors = np.eye(63)
    for one, other in alike:
        descriptors[other] = descriptors[one]
    found = grow(visits[0], descriptors, lambda one, other: float((one, other) in alike), least=0.5)
    assert [each.tolist() for each in found.images] == left


@pytest.mark.parametrize("ahead", range(10))
def test_places_of_two_visits_stay_apart_wherever_the_second_begins(ahead):
    """100 frames twice, of which the second begins some frames further on: no place is nearer than 4 to another."""
    where = np.concatenate([np.arange(100), np.arange(100) + ahead])
    places = places_of_walk("walk", [100, 100])
    found = grow(places, np.eye(110)[where], lambda one, other: float(where[one] == where[other]), least=0.5)
    spots = [where[images] for images in found.images]
    assert len(found) == 10 and all(np.ptp(each) <= 4 + 2 for each in spots)
    for number, each in enumerate(spots):
        others = np.concatenate([other for at, other in enumerate(spots) if at != number])
        assert np.abs(each[:, None] - others).min() >= 4


def test_frames_of_one_visit_do_not_confirm_each_other(visits):
    """With a visit of 10 frames 20 shows what 5 shows, so that a place of it would lie between."""
    places, descriptors, score = visits
    places = replace(places, images=[np.array([0, 1, 2]), np.array([20, 21])])
    assert [len(grow(places, descriptors, score, least=0.5, visit=visit)) for visit in (10, 20)] == [1, 2]


def test_scores_below_the_least_confirm_nothing(visits):
    assert [each.tolist() for each in grow(*visits, least=1.1).images] == [each.tolist() for each in visits[0].images]


def test_images_of_a_label_are_a_place():
    found = grouped("set", np.array([3, -1, 0, 3, 0, 5, 0]), np.arange(14.0).reshape(7, 2))
    assert [each.tolist() for each in found.images] == [[2, 4, 6], [0, 3]]
    assert found.positions.tolist() == [[8.0, 9.0], [3.0, 4.0]]
    assert len(grouped("set", np.array([-1, 2]))) == 0
