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
from vpr.retrieval.conditions.session import RULE, Session
from vpr.retrieval.ranking import search

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
