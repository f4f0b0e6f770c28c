"""A session's frames, one after the other, are ranked as a causal search of them all ranks them."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
from engine_data import descriptors, images

from vpr.data.frames import Frames, find_sequences
from vpr.database.engine import Source, WantedIndex
from vpr.database.faiss_engine import open_engine
from vpr.database.filters import SearchFilter
from vpr.retrieval.ask import Ask, NotServed
from vpr.retrieval.conditions.centring import PRIOR, MapConditions
from vpr.retrieval.conditions.session import BLOCK, BLOCKS, RULE, Earlier, Session
from vpr.retrieval.ranking import search, search_for
from vpr.search.rules import SequenceRule
from vpr.search.sequences import search_sequences

DIM, COUNT = 24, 40


def frames_of(values, rows, seed, noise=0.8):
    """Noisy views of database images, float16 of length 1."""
    seen = values[rows] + noise * descriptors(len(rows), DIM, seed)
    return (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float16)


def opened(folder, index=None):
    return open_engine(Source("", folder / "index.h5", "", DIM, {"model": "this"}, {}), WantedIndex(index))


@pytest.fixture
def engine(tmp_path):
    with contextlib.closing(opened(tmp_path)) as engine:
        engine.add(images(COUNT, names=[f"walk/{10 * n:04d}.jpg" for n in range(COUNT)]), descriptors(COUNT, DIM, 0))
        yield engine


def next_of(engine, session, frame):
    return search(engine, frame[None], Ask(session=session), 12).answers


def whole(engine, seen, rule=RULE):
    order = Frames(np.zeros(len(seen), np.int64), 10.0 * np.arange(len(seen)))
    return engine.search_in_order(seen, 12, (find_sequences(list(engine.records.names)), order), rule)


def test_each_frame_is_ranked_by_itself_and_those_before_it(engine):
    seen = frames_of(descriptors(COUNT, DIM, 0), np.arange(5, 30), 1)
    session, (found, distances, similarities) = Session(), whole(engine, seen)
    for number, frame in enumerate(seen):
        answers = next_of(engine, session, frame)
        assert answers.found.tolist() == found[number : number + 1].tolist()
        np.testing.assert_allclose(answers.sequence[0], similarities[number], atol=1e-6)
        np.testing.assert_allclose(answers.distances[0], distances[number], atol=1e-6)
        assert answers.frames.tolist() == [min(number, RULE.length) + 1]
        assert np.array_equal(session.frames, seen[max(0, number - RULE.length + 1) : number + 1])
    several = Session()
    search(engine, seen[:4], Ask(session=several), 12)
    again = search(engine, seen[4:], Ask(session=several), 12)
    assert again.answers.found.tolist() == found[4:].tolist() and again.order == RULE.text()


def test_the_first_of_them_is_a_single_image_and_the_next_find_more(engine):
    """Right by the frames before it where a frame by itself is wrong."""
    rows = np.arange(3, 38)
    seen, session = frames_of(descriptors(COUNT, DIM, 0), rows, 1, noise=2.0), Session()
    alone = [search(engine, frame[None], Ask(), 12).answers.found[0, 0] for frame in seen]
    together = [next_of(engine, session, frame).found[0, 0] for frame in seen]
    assert alone[0] == together[0]
    assert np.mean(alone[10:] == rows[10:]) < 0.7 < 0.9 < np.mean(together[10:] == rows[10:])


def test_a_camera_that_stands_still_stays_where_it_is(engine):
    session, values = Session(), descriptors(COUNT, DIM, 0)
    for seed in range(14):
        assert next_of(engine, session, frames_of(values, [20], seed, noise=0.3)[0]).found[0, 0] == 20


def test_sessions_do_not_touch_each_other(engine):
    values = descriptors(COUNT, DIM, 0)
    seen = [frames_of(values, np.arange(start, start + 12), start) for start in (2, 25)]
    wanted = [whole(engine, each)[0].tolist() for each in seen]
    sessions = Session(), Session()
    for number in range(12):
        for one, session, found in zip(seen, sessions, wanted, strict=True):
            assert next_of(engine, session, one[number]).found[0].tolist() == found[number]


def test_images_that_come_and_go_are_those_of_the_next_frame(engine, tmp_path):
    values, session = descriptors(COUNT, DIM, 0), Session()
    next_of(engine, session, values[20].astype(np.float16))
    with contextlib.closing(opened(tmp_path)) as other:
        engine.store.files.release()  # another process is the one that writes
        other.remove(["walk/0210.jpg"])
        other.add(images(1, names=["walk/0405.jpg"]), -values[:1])
    found = next_of(engine, session, -values[0].astype(np.float16))
    names = [engine.records.names[row] for row in found.found[0]]
    assert "walk/0405.jpg" in names and "" not in names and engine.count() == COUNT


@pytest.mark.parametrize("wanted", [Ask(filter=SearchFilter(near=(40.0, -80.0, 9.0))), Ask()])
def test_what_a_session_cannot_be_searched_by_is_said(engine, tmp_path, wanted):
    session = Session()
    if not wanted.filter:
        (tmp_path / "flat").mkdir()
        engine = opened(tmp_path / "flat", "Flat")
        engine.add(images(COUNT), descriptors(COUNT, DIM, 0))
        engine.finish()
    with pytest.raises(NotServed) as raised:
        search(engine, descriptors(1, DIM, 0), replace(wanted, session=session), 12)
    assert "whole and exactly" in raised.value.told
    assert not len(session.frames), "a frame that is not answered is none of the session"
    engine.close()


def test_a_database_in_no_order_has_no_sessions(tmp_path):
    with contextlib.closing(opened(tmp_path)) as engine:
        engine.add(images(3, names=["one/1.jpg", "two/1.jpg", "three/1.jpg"]), descriptors(3, DIM, 0))
        with pytest.raises(NotServed, match="in no order"):
            search(engine, descriptors(1, DIM, 0), Ask(session=Session()), 3)


# Sessions without their running mean.


def evening_of(values, rows, seed):
    """As `frames_of`, of another condition: all moved alike."""
    moved = frames_of(values, rows, seed).astype(float) + 1.5 * descriptors(1, DIM, 77)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float16)


def by_loops(values, seen):
    """Each frame minus the mean of it, those before it, and the map's as PRIOR images; of length 1 again."""
    start, moved = values.astype(np.float16).astype(float).mean(axis=0), []
    for n in range(len(seen)):
        total = PRIOR * start
        for frame in seen[: n + 1].astype(float):
            total = total + frame
        difference = seen[n].astype(float) - total / (PRIOR + n + 1)
        moved.append(difference / np.sqrt(difference @ difference))
    return np.array(moved, np.float32)


def told(ranking):
    answers = ranking.answers
    return answers.found[0].tolist(), answers.sequence[0].round(5).tolist(), answers.distances[0].round(4).tolist()


def one_by_one(conditions, seen, session, how="stored"):
    return [search_for(conditions, frame[None], Ask(session=session, conditions=how), 12) for frame in seen]


@pytest.fixture
def evening():
    return evening_of(descriptors(COUNT, DIM, 0), np.arange(5, 25), 1)


def test_frames_of_a_session_are_searched_without_their_running_mean(engine, evening):
    values, conditions, session = descriptors(COUNT, DIM, 0), MapConditions(engine), Session()
    found = one_by_one(conditions, evening, session)
    wanted, _, similarities = whole(engine, by_loops(values, evening))
    for number, ranking in enumerate(found):
        assert ranking.answers.found[0].tolist() == wanted[number].tolist()
        np.testing.assert_allclose(ranking.answers.sequence[0], similarities[number], atol=1e-5)
    assert found[0].order == f"conditions: the running mean of the queries so far, then {RULE.text()}"
    assert session.count == len(evening) and len(session.frames) == RULE.length
    np.testing.assert_allclose(session.total, evening.astype(float).sum(axis=0), atol=1e-9)
    plain = one_by_one(conditions, evening, Session(), "off")
    right = [
        np.mean([each.answers.found[0, 0] == row for each, row in zip(rankings, range(5, 25), strict=True)])
        for rankings in (plain, found)
    ]
    assert right[0] < right[1] > 0.9, "which is what it is for"


def test_no_answer_changes_by_later_frames(engine, evening):
    conditions = MapConditions(engine)
    all_of_them = [told(each) for each in one_by_one(conditions, evening, Session())]
    for count in (1, 7, 19):
        assert [told(each) for each in one_by_one(conditions, evening[:count], Session())] == all_of_them[:count]


def test_two_sessions_in_turn_are_each_as_alone(engine, evening):
    conditions, other = MapConditions(engine), evening_of(descriptors(COUNT, DIM, 0), np.arange(30, 10, -1), 2)
    alone = [[told(each) for each in one_by_one(conditions, seen, Session())] for seen in (evening, other)]
    sessions, found = (Session(), Session()), ([], [])
    for frames in zip(evening, other, strict=True):
        for frame, session, own in zip(frames, sessions, found, strict=True):
            own += [told(each) for each in one_by_one(conditions, frame[None], session)]
    assert list(found) == alone


def test_off_is_the_plain_session(engine, evening):
    session = Session()
    found = one_by_one(MapConditions(engine), evening, session, "off")
    plain, again = Session(), []
    for frame in evening:
        again.append(search(engine, frame[None], Ask(session=plain), 12))
    assert [told(each) for each in found] == [told(each) for each in again]
    assert {each.order for each in found} == {RULE.text()} and np.array_equal(session.frames, plain.frames)


def test_a_database_in_no_order_is_searched_by_the_mean_alone(tmp_path, evening):
    values = descriptors(COUNT, DIM, 0)
    with contextlib.closing(opened(tmp_path)) as engine:
        engine.add(images(COUNT, names=[f"{n}/photo.jpg" for n in range(COUNT)]), values)
        session = Session()
        found = one_by_one(MapConditions(engine), evening, session)
        assert {each.order for each in found} == {"conditions: the running mean of the queries so far"}
        names = [engine.records.names[each.answers.found[0, 0]] for each in found]
        mean = values.astype(np.float16).astype(float).mean(axis=0)
        centred = (values - mean) / np.linalg.norm(values - mean, axis=1, keepdims=True)
        assert names == [f"{n}/photo.jpg" for n in (by_loops(values, evening) @ centred.T).argmax(axis=1)]
        assert all(each.answers.sequence is None for each in found)
        assert session.count == len(evening) and not len(session.frames)
        with pytest.raises(NotServed, match="in no order"):
            search_for(MapConditions(engine), evening[:1], Ask(session=session, conditions="off"), 12)
        assert session.count == len(evening)


def test_a_search_that_fails_counts_nothing(engine, evening, monkeypatch):
    conditions, session = MapConditions(engine), Session()
    one_by_one(conditions, evening[:3], session)
    before = session.count, session.total.tolist(), session.frames.tolist()

    def fails(*_):
        raise OSError("gone")

    for asked in (Ask(session=session, conditions="stored", filter=SearchFilter(near=(40.0, -80.0, 9.0))), None):
        with monkeypatch.context() as patch, pytest.raises((NotServed, OSError)):
            if asked is None:
                patch.setattr(type(engine), "search_in_order", fails)
            search_for(conditions, evening[3:4], asked or Ask(session=session, conditions="stored"), 12)
        assert (session.count, session.total.tolist(), session.frames.tolist()) == before
    rest = one_by_one(conditions, evening[3:], session)
    alone = one_by_one(conditions, evening, Session())[3:]
    assert [told(each) for each in rest] == [told(each) for each in alone]


def test_a_database_without_images_has_no_sessions_and_gets_a_mean_with_its_first(tmp_path, evening):
    values = descriptors(COUNT, DIM, 0)
    with contextlib.closing(opened(tmp_path)) as engine:
        conditions, session = MapConditions(engine), Session()
        with pytest.raises(NotServed, match="in no order"):
            one_by_one(conditions, evening[:1], session)
        engine.add(images(COUNT, names=[f"walk/{10 * n:04d}.jpg" for n in range(COUNT)]), values)
        (found,) = one_by_one(conditions, evening[:1], session)
        assert session.count == 1
        assert found.answers.found.tolist() == whole(engine, by_loops(values, evening[:1]))[0].tolist()


# Which earlier frame of the same session shows the same place.


def walk_of(count, dim=24, seed=0):
    """Noisy descriptors of a walk that begins anew after 30 frames, all moved alike, of length 1."""
    random = np.random.default_rng(seed)
    places = random.normal(size=(30, dim))
    values = places[np.arange(count) % 30] + 0.7 * random.normal(size=(count, dim)) + random.normal(size=dim)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


WAYS = [(0, 0), (20, 0), (20, 10), (0, 20), (7, 20)]


@pytest.mark.parametrize(("window", "length"), WAYS)
def test_each_frame_is_compared_with_those_of_long_before_it(window, length):
    """Against a search of its own for each frame; each frame of all is centred by loops."""
    frames, earlier, values = walk_of(120), Earlier(window, length), []
    rule = SequenceRule(length, causal=True)
    for now, frame in enumerate(frames):
        scores, old = earlier.add(frame), now - 20
        value = frame.astype(float)
        if window:
            before = [frames[n].astype(float) for n in range(max(0, now - window + 1), now + 1)]
            value = value - sum(before) / len(before)
        values.append(value / max(np.linalg.norm(value), 1e-12))
        assert len(scores) == max(0, old), "the last 20 are not compared"
        if old < 1:
            continue
        last, known = np.arange(max(0, now - length), now + 1), np.array(values, np.float32)
        orders = (Frames(np.zeros(len(each), np.int64), each.astype(float)) for each in (np.arange(old), last))
        hits, wanted = search_sequences(known[:old], known[last], old, tuple(orders), rule)
        np.testing.assert_allclose(scores[hits[-1]], wanted[-1], atol=1e-5)


def test_the_mean_of_the_last_frames_finds_places_in_another_light():
    """Two rounds, each moved by its own light: then a frame is most like those of its own round."""
    random = np.random.default_rng(4)
    light = np.repeat(3 * random.normal(size=(2, 64)), 60, axis=0)
    places = np.tile(random.normal(size=(60, 64)), (2, 1))
    frames = (light + places + 0.8 * random.normal(size=(120, 64))).astype(np.float32)

    def right(earlier):
        found = [scores.argmax() if len(scores) else -1 for scores in map(earlier.add, frames)]
        return np.mean(np.array(found[85:]) == np.arange(25, 60))

    assert right(Earlier(0, 0)) < 0.3 < 0.6 < right(Earlier(20, 0)) <= right(Earlier(20, 20)) > 0.9


def seen_by(session, frames):
    found = []
    for frame in frames:
        session.count_in(frame[None])
        found.append(session.seen)
    return found


def test_sessions_see_their_own_frames_alone_and_none_changes_by_later_ones():
    one, other = walk_of(70, seed=1), walk_of(70, seed=2)
    alone = [seen_by(Session(), frames) for frames in (one, other)]
    sessions, found = (Session(), Session()), ([], [])
    for frames in zip(one, other, strict=True):
        for frame, session, own in zip(frames, sessions, found, strict=True):
            own += seen_by(session, frame[None])
    assert list(found) == alone
    assert seen_by(Session(), [*one[:50], *one[:49:-1]])[:50] == alone[0][:50]
    assert alone[0][:21] == [None] * 21
    assert all(hit <= now - 21 for now, (hit, _) in enumerate(alone[0][21:], 21))
    assert np.mean([hit == now - 30 for now, (hit, _) in enumerate(alone[0][45:], 45)]) > 0.9


def test_of_a_long_session_the_newest_frames_are_kept_under_their_own_numbers():
    """Places that come every 100 frames are found over what was dropped."""
    most, random = BLOCK * BLOCKS, np.random.default_rng(0)
    places, earlier = random.normal(size=(100, 16)), Earlier()
    for now in range(most + 200):
        scores = earlier.add((places[now % 100] + 0.1 * random.normal(size=16)).astype(np.float32))
        assert sum(map(len, earlier.blocks)) <= most
        if now > 120:
            assert (earlier.first + scores.argmax()) % 100 == now % 100
        assert earlier.first + len(scores) == max(now - 20, 0)
    assert earlier.first == 256 and len(scores) >= most - BLOCK - 20, "4 blocks make room for 200 frames"


def test_frames_that_are_all_alike_have_finite_scores():
    earlier = Earlier()
    found = [earlier.add(np.full(16, 0.25, np.float32)) for _ in range(60)]
    assert all(np.isfinite(scores).all() and (np.abs(scores) <= 1.001).all() for scores in found)
