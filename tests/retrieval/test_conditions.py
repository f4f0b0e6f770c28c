"""Condition means: against loops over centred descriptors, causality, and what may not change."""

import numpy as np
import pytest

from vpr.common.errors import UserError
from vpr.retrieval.conditions.centring import (
    ALIKE,
    LEAST,
    LONG,
    PRIOR,
    CentredEngine,
    MapConditions,
    centred,
    nearest_means,
    running_means,
    session_mean,
)
from vpr.retrieval.conditions.means_file import load_means, means_file, save_means
from vpr.retrieval.conditions.session import Session
from vpr.retrieval.split import SplitEngine
from vpr.search.rules import SequenceRule

DIM = 24


def units(seed, count, shift=0.0):
    """Unit vectors, all shifted alike before they are brought to length 1."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, DIM)) + shift * np.random.default_rng(99).normal(size=DIM)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


class Places:
    """As many of the split's places as a search asks for."""

    database_names = query_names = tuple(f"{n}.jpg" for n in range(90))
    database_positions = np.zeros((90, 2))


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr("vpr.retrieval.split.search_places", lambda database, queries, count, *_: brute(
        database, queries, count
    ))  # fmt: skip
    return SplitEngine(units(0, 90, 0.5), Places())


def brute(database, queries, count):
    return np.argsort(-(queries.astype(float) @ database.astype(float).T), axis=1, kind="stable")[:, :count]


def literal_mean(images, start):
    """Of a few images, drawn to `start`, by loops over pairs."""
    images, start, count = [image.astype(float) for image in images], start.astype(float), len(images)
    others = [[one @ other for m, other in enumerate(images) if m != n] for n, one in enumerate(images)]
    alike = sum(map(max, others)) / count - sum(map(sum, others)) / (count * (count - 1))
    mean = sum(images) / count
    share = (1 - start @ start + ALIKE * alike) / (count * ((mean - start) @ (mean - start)))
    share = min(share, 1) * (1 - (count / LONG) ** 2)
    return share * start + (1 - share) * mean


def literal_cosine(query, mean, image, map_mean):
    one, other = query.astype(float) - mean, image.astype(float) - map_mean
    return one @ other / np.sqrt((one @ one) * (other @ other))


def test_a_session_is_compared_without_its_mean_and_the_maps(engine):
    queries, database = units(1, 12, -1.0), engine.database
    searchable, moved, text = MapConditions(engine).of(queries, "session")
    hits = searchable.search(moved, 5)
    assert text == "conditions: the queries' own mean"
    mean = literal_mean(queries, database.mean(axis=0))
    for query, rows, distances in zip(queries, hits.rows, hits.distances, strict=True):
        cosines = [literal_cosine(query, mean, each, database.mean(axis=0)) for each in database]
        order = np.argsort(cosines)[::-1][:5]
        assert rows.tolist() == order.tolist()
        np.testing.assert_allclose(distances, np.sqrt(2 - 2 * np.array(cosines)[order]), atol=1e-3)
    # The plain search finds others: nearest are those that happen to lie in the session's direction.
    assert (hits.rows[:, 0] != brute(database, queries, 1)[:, 0]).any()


def test_what_is_added_to_all_of_many_queries_changes_nothing(engine):
    raw = np.random.default_rng(5).normal(size=(LONG, DIM)).astype(np.float32)
    added = raw + 3 * np.random.default_rng(6).normal(size=DIM).astype(np.float32)
    conditions = MapConditions(engine)
    one, other = (conditions.of(each, "session")[1] for each in (raw, added))
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("how", ["session", "running"])
def test_few_images_and_unknown_means_are_searched_as_they_are(engine, how):
    queries = units(2, LEAST - 1)
    for asked in (how, "off", "stored"):
        searchable, same, text = MapConditions(engine).of(queries, asked)
        assert searchable is engine and same is queries and text == ""


def test_a_running_mean_knows_no_later_frames_and_weighs_the_map_as_five_images():
    queries, start = units(3, 9), units(4, 1)[0]
    means = running_means(queries, start)
    for n in range(9):
        np.testing.assert_allclose(
            means[n], (PRIOR * start + queries[: n + 1].sum(axis=0)) / (PRIOR + n + 1), atol=1e-6
        )
        assert np.array_equal(running_means(queries[: n + 1], start), means[: n + 1])


def test_the_mean_of_many_images_is_their_own():
    queries, start = units(3, LONG + 20, 0.5), units(4, 60, 0.5).mean(axis=0)
    for many in (LONG, LONG + 20):
        wanted = queries[:many].astype(float).mean(axis=0)
        np.testing.assert_allclose(session_mean(queries[:many], start), wanted, atol=1e-6)
    almost = [np.abs(session_mean(queries[:n], start) - queries[:n].mean(axis=0)).max() for n in (50, 80, 99)]
    assert almost[0] > almost[1] > almost[2] > 0


def test_few_images_of_the_maps_condition_have_its_mean_and_few_of_another_mostly_their_own(engine):
    """As far as independent places go, whose mean lies from the map's as chance has it."""
    start = MapConditions(engine).mean
    kept = {shift: [] for shift in (0.5, -2.0)}
    for shift, shares in kept.items():
        for seed in range(100, 140):
            queries = units(seed, 8, shift)
            own = queries.mean(axis=0) - start
            shares.append((session_mean(queries, start) - start) @ own / (own @ own))
    assert np.mean(kept[0.5]) < 0.1 < 0.8 < np.mean(kept[-2.0])
    assert min(kept[0.5]) > -1e-5, "nor does it go beyond the map's"


@pytest.mark.parametrize(("night", "gain"), [(0.0, 0.0), (3.0, 0.2)])
def test_a_short_run_of_frames_loses_nothing_to_single_images(night, gain):
    """Along a walk neighbours are alike, so that the mean of a few has their place in it."""
    random, dim, right = np.random.default_rng(1), 96, {"single": [], "own": [], "session": []}
    steps = random.normal(size=(304, dim))
    walk = sum(steps[n : n + 300] for n in range(5)) / 5**0.5
    seen = walk + 0.9 * random.normal(size=walk.shape) + night * random.normal(size=dim)
    walk, seen = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (walk, seen))
    start = walk.mean(axis=0)
    moved = (walk - start) / np.linalg.norm(walk - start, axis=1, keepdims=True)
    for first in range(0, 300, 5):
        some, rows = seen[first : first + 5], np.arange(first, first + 5)
        right["single"] += list((some @ walk.T).argmax(axis=1) == rows)
        for name, mean in (("own", some.mean(axis=0)), ("session", session_mean(some, start))):
            right[name] += list(((some - mean) @ moved.T).argmax(axis=1) == rows)
    single, own, session = (np.mean(right[name]) for name in ("single", "own", "session"))
    assert own < single - 0.05 and session >= single + gain - 0.005, (single, own, session)


def test_order_of_a_session_does_not_matter_but_of_a_running_mean(engine):
    queries, turned = units(1, 12, -1.0), np.random.default_rng(0).permutation(12)
    conditions = MapConditions(engine)
    for how, same in (("session", True), ("running", False)):
        moved, other = (conditions.of(each, how)[1] for each in (queries, queries[turned]))
        assert np.allclose(moved[turned], other, atol=1e-5) == same


def test_each_query_takes_the_nearest_of_the_stored_means(engine):
    conditions = MapConditions(engine, {"night": units(7, 40, -2.0).mean(axis=0)})
    night, day = units(8, 3, -2.0), units(9, 3, 0.5)
    means, _ = conditions.means_for(np.concatenate([night, day]), "stored")
    assert np.allclose(means[:3], conditions.stored["night"]) and np.allclose(means[3:], conditions.mean)
    said = "nearest to the map's mean: 2, night: 3 of 5 images"
    assert conditions.choices(np.concatenate([night, day[:2]])) == said and MapConditions(engine).choices(day) == ""
    assert nearest_means(np.eye(3), np.array([[0, 5, 0], [2, 1, 0], [0, 0, 1e-9]])).tolist() == [1, 0, 2]


def test_centred_descriptors_have_length_one_also_at_the_mean():
    values = np.array([[3.0, 4.0], [1.0, 1.0]], np.float16)
    found = centred(values, np.array([1.0, 1.0], np.float32))
    np.testing.assert_allclose(found, [[2 / 13**0.5, 3 / 13**0.5], [0, 0]], atol=1e-6)


def test_the_mean_of_a_map_is_that_of_its_images_whatever_their_parts(engine):
    np.testing.assert_allclose(MapConditions(engine).mean, engine.database.mean(axis=0), atol=1e-6)


def test_sequences_find_the_frames_that_centred_products_sum_to(engine, monkeypatch):
    from vpr.data.frames import find_sequences

    asked = {}

    def search(database, queries, count, places, rule, excluded):
        asked["queries"] = queries
        found = brute(database, queries, count)
        return found, np.take_along_axis(queries @ database.T, found, axis=1)

    monkeypatch.setattr("vpr.retrieval.split.search_frames", search)
    queries = units(1, 12, -1.0)
    searchable, moved, _ = MapConditions(engine).of(queries, "session")
    frames = find_sequences([f"{n}.jpg" for n in range(12)])
    found, distances, _ = searchable.search_in_order(moved, 4, (frames, frames), SequenceRule(1))
    assert asked["queries"] is moved
    start = engine.database.mean(axis=0)
    cosine = literal_cosine(queries[3], literal_mean(queries, start), engine.database[found[3, 0]], start)
    assert distances[3, 0] == pytest.approx(np.sqrt(2 - 2 * cosine), abs=1e-3)


def test_distances_of_sequences_are_those_of_the_hits_beside_them(engine, monkeypatch):
    """Hits are in the order of their sums, in which their distances need not be."""
    random = np.random.default_rng(4)
    found = np.array([random.permutation(90)[:7] for _ in range(6)])
    found[2, 5:] = -1
    similarities = np.sort(random.random((6, 7)))[:, ::-1]
    monkeypatch.setattr(
        "vpr.retrieval.split.SplitEngine.search_in_order", lambda *_, **more: (found, None, similarities)
    )
    queries, mean = units(1, 6, -1.0), engine.database.mean(axis=0)
    same, distances, sums = CentredEngine(engine, mean).search_in_order(queries, 7, None, SequenceRule(1))
    assert same.tolist() == found.tolist() and sums is similarities
    for query, rows, row in zip(queries, found, distances, strict=True):
        for hit, distance in zip(rows, row, strict=True):
            cosine = literal_cosine(query, 0, engine.database[hit], mean)
            assert np.isnan(distance) if hit < 0 else distance == pytest.approx(np.sqrt(2 - 2 * cosine), abs=1e-4)


@pytest.mark.parametrize("parts", [(4, 5), (1, 1, 7), (9,)])
def test_a_running_mean_goes_on_where_a_session_stopped(engine, parts):
    """Whatever the frames that come at once: each is compared without the mean of the map and those so far."""
    frames, conditions, session, begun = units(12, 9, -1.0), MapConditions(engine), Session(), 0
    for count in parts:
        some = frames[begun : begun + count]
        means, text = conditions.means_for(some, "stored", session)
        assert text == "conditions: the running mean of the queries so far"
        for n, mean in enumerate(means, begun):
            total = np.array(PRIOR * engine.database.mean(axis=0), float)
            for frame in frames[: n + 1]:
                total += frame
            np.testing.assert_allclose(mean, total / (PRIOR + n + 1), atol=1e-6)
        again = conditions.means_for(some, "running", session)[0]
        assert np.array_equal(again, means), "to ask counts nothing"
        session.count_in(some)
        begun += count
    assert session.count == 9 and conditions.means_for(frames, "off", session) == (None, "")


def test_a_map_without_images_has_no_mean_for_a_session(engine):
    engine.database = engine.database[:0]
    frames = units(1, 1)
    assert MapConditions(engine).of(frames, "stored", Session()) == (engine, frames, "")


@pytest.mark.parametrize(("shift", "warned"), [(-2.0, True), (0.5, False)])
def test_a_session_far_from_the_map_is_told(engine, capsys, shift, warned):
    MapConditions(engine).warn_of_shift(units(11, 60, shift))
    assert ("another time of day" in capsys.readouterr().out) == warned


def test_stored_means_are_of_one_model_and_checked_whole(tmp_path):
    path, recipe = means_file(tmp_path / "database_own.sqlite"), {"weights_hash": "ab", "precision": "fp32"}
    assert path.name == "database_own.conditions.h5" and load_means(path, recipe, DIM) == {}
    save_means(path, {"night": units(0, 1)[0]}, recipe)
    assert np.array_equal(load_means(path, {**recipe, "precision": "bf16"}, DIM)["night"], units(0, 1)[0])
    for other, dim, said in (({**recipe, "weights_hash": "cd"}, DIM, "of another model"), (recipe, 7, "7 numbers")):
        with pytest.raises(UserError, match=said):
            load_means(path, other, dim)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"damaged|cannot be read"):
        load_means(path, recipe, DIM)
