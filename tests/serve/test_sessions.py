"""Frames of cameras that come in order, over HTTP."""

import asyncio
import socket
import threading

import numpy as np
import pytest
from asking import as_bytes, asking_at_once, serving
from PIL import Image

from vpr.retrieval.ask import Ask
from vpr.retrieval.conditions.session import RULE
from vpr.serve.sessions import Sessions


@pytest.fixture(scope="module")
def client(shared_locator):
    with serving(shared_locator) as client:
        yield client


@pytest.fixture(scope="module")
def walks(images, tmp_path_factory):
    """Two walks through each half of the database, seen through noise: image files, in order."""
    folder, chance = tmp_path_factory.mktemp("walks"), np.random.default_rng(3)
    for number, file in enumerate(images[1]):
        pixels = np.array(Image.open(file), np.int64)
        seen = (pixels + chance.integers(0, 256, pixels.shape)) // 2
        Image.fromarray(seen.astype(np.uint8)).save(folder / f"{'ab'[number // 5]}{number}.png")
    return [sorted(folder.glob(f"{walk}*.png")) for walk in "ab"]


def told(answer):
    """What an answer says but for its time."""
    status, found, _ = answer
    assert status == 200, found
    return [(each["name"], round(each["score"], 4)) for each in found["matches"]], round(found["confidence"], 4)


def wanted(locator, walk):
    """The answers to a walk's frames, of a search of the whole walk in which none has those after it."""
    answers = locator.locate(walk, Ask(sequence=RULE))
    return [([(each.name, round(each.score, 4)) for each in one.matches], round(one.confidence, 4)) for one in answers]


def test_answers_are_those_of_a_causal_search_of_the_whole_walk(client, shared_locator, walks):
    """Two sessions at once, which do not touch each other."""
    found = [[], []]
    for frames in zip(*walks, strict=True):
        for walk, frame in enumerate(frames):
            found[walk].append(told(client.locate(as_bytes(frame), f"?session=walk{walk}")))
    assert found == [wanted(shared_locator, walk) for walk in walks]
    alone = [client.locate(as_bytes(frame))[1] for frame in walks[0]]
    assert all(each["matches"][0]["score"] is None for each in alone)
    again = client.locate(as_bytes(walks[0][0]), "?session=another")[1]
    assert again["matches"][0]["name"] == alone[0]["matches"][0]["name"] and "sequences" in again["confidence_kind"]


def test_a_session_says_which_of_its_own_earlier_frames_is_most_like_the_next(client, walks):
    """Rounds of five places each; another session in between changes nothing, nor do single images."""

    def seen(walk, number, session):
        return client.locate(as_bytes(walk[number % 5]), f"?session={session}")[1]["seen_before"]

    alone = [seen(walks[0], number, "alone") for number in range(35)]
    both = [(seen(walks[0], number, "one"), seen(walks[1], number, "two")) for number in range(35)]
    one, two = zip(*both, strict=True)
    assert list(one) == alone and two != one
    assert alone[:21] == [None] * 21, "the last 20 are too new"
    for number, found in enumerate(alone[21:], 21):
        assert 0 <= found["frame"] <= number - 21 and -1 <= found["score"] <= 1
    assert [found["frame"] % 5 for found in alone[30:]] == [0, 1, 2, 3, 4]
    assert client.locate(as_bytes(walks[0][0]))[1]["seen_before"] is None


def test_sessions_with_too_many_frames_are_dropped_the_oldest_first(monkeypatch):
    async def take(sessions, name, count):
        async with sessions.turn(name) as session:
            session.count_in(np.ones((count, 4), np.float32))
        return session

    monkeypatch.setattr("vpr.serve.sessions.BYTES", 16 * 150)
    sessions = Sessions(4)
    sessions._most = 5
    a, b = (asyncio.run(take(sessions, name, 45)) for name in "ab")
    assert asyncio.run(take(sessions, "a", 30)) is a
    assert asyncio.run(take(sessions, "a", 0)) is a, "120 frames, and 20 in each window: b is gone"
    assert asyncio.run(take(sessions, "b", 200)) is not b
    assert asyncio.run(take(sessions, "b", 0)).count == 200, "the only one stays"


def test_an_image_that_is_none_is_no_frame(client, shared_locator, walks):
    frames = [as_bytes(frame) for frame in walks[1]]
    assert told(client.locate(frames[0], "?session=broken")) == wanted(shared_locator, walks[1])[0]
    assert client.locate(frames[0][:90], "?session=broken")[0] == 422
    assert client.locate(frames[1], "?session=broken&rerank=99999")[0] == 400
    assert told(client.locate(frames[1], "?session=broken")) == wanted(shared_locator, walks[1])[1]


def test_frames_are_taken_in_the_order_in_which_they_came(client, shared_locator, walks):
    """The first comes slowly, and the second, which came later, waits for it."""
    first, second = (as_bytes(frame) for frame in walks[0][:2])
    path = "/locate?session=slow"
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(first)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(head.encode() + first[:100])
        assert client("GET", "/health")[0] == 200  # which came after it
        answers = []
        later = threading.Thread(target=lambda: answers.append(client.locate(second, "?session=slow")))
        later.start()
        assert client.locate(second, "?session=other")[0] == 200 and not answers
        connection.sendall(first[100:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        later.join()
    assert told(answers[0]) == wanted(shared_locator, walks[0])[1]


def test_many_at_once_in_one_session_are_all_answered(client, walks):
    with asking_at_once(client, as_bytes(walks[0][0]), "?session=crowd", 12) as found:
        pass
    assert found == [200] * 12


def test_frames_are_searched_without_their_running_mean(make_locator, walks):
    """As a search of the whole walk, in which none has those after it; broken images and refusals count nothing."""
    locator = make_locator(usual=Ask(conditions="stored"))
    ask = Ask(sequence=RULE, conditions="running")
    with serving(locator) as client:
        for name, walk in zip("ab", walks, strict=True):
            wanted = [[round(each.score, 3) for each in one.matches] for one in locator.locate(walk, ask)]
            names = [[each.name for each in one.matches] for one in locator.locate(walk, ask)]
            plain = [[round(each.score, 3) for each in one.matches] for one in locator.locate(walk, Ask(sequence=RULE))]
            for number, frame in enumerate(map(as_bytes, walk)):
                assert client.locate(frame[:90], f"?session={name}")[0] == 422
                assert client.locate(frame, f"?session={name}&near=40.44,-79.99,500")[0] == 422
                found = client.locate(frame, f"?session={name}")[1]["matches"]
                assert [each["name"] for each in found] == names[number]
                np.testing.assert_allclose([each["score"] for each in found], wanted[number], atol=2e-3)
            assert np.abs(np.array(plain) - np.array(wanted)).max() > 0.05, "which is another search than the plain one"


def test_frames_among_a_database_in_no_order_are_searched_by_their_running_mean_alone(make_locator, walks):
    engine = make_locator().engine
    engine.records, engine.kept = engine.records.only([3, 7]), engine.kept[[3, 7]]
    with serving(make_locator(engine=engine, usual=Ask(conditions="stored"))) as client:
        found = [client.locate(as_bytes(frame), "?session=a") for frame in walks[0]]
    assert {status for status, _, _ in found} == {200}
    assert all(each["matches"][0]["score"] is None for _, each, _ in found)


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [("session=a&near=40.44,-79.99,500", 422, "session"), ("session=a&where=night=yes", 422, "session"),
     ("session=" + "a" * 201, 400, "session"), ("session=", 400, "session")],
)  # fmt: skip
def test_what_no_session_can_be_asked_is_refused(client, walks, query, status, word):
    found, said, _ = client.locate(as_bytes(walks[0][0]), f"?{query}")
    assert found == status and word in said["error"] and len(said["error"]) < 200


def test_a_database_in_no_order_or_of_another_engine_has_no_sessions(make_locator, images, walks):
    engine, frame = make_locator().engine, as_bytes(walks[0][0])
    engine.records = engine.records.only([3, 7])
    engine.kept = engine.kept[[3, 7]]
    with serving(make_locator(engine=engine)) as client:
        status, said, _ = client.locate(frame, "?session=a")
        assert status == 422 and "in no order" in said["error"]
        engine.searches_sequences = False
        status, said, _ = client.locate(frame, "?session=a")
        assert status == 422 and "engine" in said["error"] and client.locate(frame)[0] == 200


def test_sessions_are_dropped_when_they_are_old_or_many(monkeypatch):
    async def ask(sessions, *names):
        found = []
        for name in names:
            async with sessions.turn(name) as session:
                found.append(session)
        return found

    now = [1000.0]
    monkeypatch.setattr("vpr.serve.sessions.monotonic", lambda: now[0])
    monkeypatch.setattr("vpr.serve.sessions.MOST", 3)
    sessions = Sessions(4)
    a, b, c, again, none = asyncio.run(ask(sessions, "a", "b", "c", "a", None))
    assert a is again and none is None and len({id(each) for each in (a, b, c)}) == 3
    d, kept, new = asyncio.run(ask(sessions, "d", "a", "b"))
    assert kept is a and new is not b and d not in (a, b, c), "the one whose last frame came first is dropped"
    now[0] += 599
    assert asyncio.run(ask(sessions, "a"))[0] is a
    now[0] += 599
    assert asyncio.run(ask(sessions, "a", "d"))[0] is a and len(sessions._kept) == 2
    now[0] += 601
    assert asyncio.run(ask(sessions, "a"))[0] is not a and len(sessions._kept) == 1
    monkeypatch.setattr("vpr.serve.sessions.BYTES", 2 * 4 * (4 * RULE.length + 8) + 1)
    assert Sessions(4)._most == 2 and Sessions(4000)._most == 1
