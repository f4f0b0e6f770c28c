"""What questions have to do with each other: re-ranking, an engine that is away, an image that is wrong."""

import functools
import socket
import threading

import numpy as np
import pytest
from asking import PNG, as_bytes, asking_at_once, serving
from PIL import Image

from vpr.common.errors import UserError
from vpr.database.engine import Unreachable
from vpr.database.filters import SearchFilter
from vpr.retrieval.ask import Ask, EngineAway, NotServed, TooSmall


class Counting:
    """An engine that answers as another, and counts its searches; can be away."""

    def __init__(self, engine):
        self.engine, self.searches, self.error = engine, 0, None

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def search(self, *rest):
        self.searches += 1
        if self.error:
            raise self.error
        return self.engine.search(*rest)

    def check(self):
        if self.error:
            raise self.error


@pytest.fixture
def counting(shared_locator, make_locator):
    engine = Counting(shared_locator.engine)
    return engine, make_locator(engine=engine)


def pixels_of(file):
    return np.array(Image.open(file)).transpose(2, 0, 1)


def test_an_engine_that_is_away_is_asked_once_for_all_questions_of_a_pass(counting, images):
    engine, locator = counting
    here = SearchFilter(near=(40.44, -79.99, 5e4))
    asked = [Ask(), Ask(filter=here), Ask(3), Ask(filter=SearchFilter(near=(40.44, -79.99, 6e4)))]
    pictures = [pixels_of(images[1][n]) for n in range(4)]
    engine.error = Unreachable("nobody answers")
    found = locator.answer_each(pictures, asked)
    assert engine.searches == 1 and [type(each) for each in found] == [EngineAway] * 4
    engine.error, engine.searches = UserError("the filter cannot be applied"), 0
    assert [type(each) for each in locator.answer_each(pictures, asked)] == [EngineAway] * 4 and engine.searches == 3
    engine.error = None
    assert [each.matches[0].name for each in locator.answer_each(pictures, asked)] == [f"a/{n}.png" for n in range(4)]


def test_what_is_wrong_with_one_image_of_a_pass_is_told_of_it_alone(counting, images):
    engine, locator = counting
    pictures = [pixels_of(images[1][0]), np.zeros((3, 4, 4), np.uint8), pixels_of(images[1][1])]
    found = locator.answer_each(pictures, [Ask()] * 3)
    assert isinstance(found[1], TooSmall) and [found[n].matches[0].name for n in (0, 2)] == ["a/0.png", "a/1.png"]
    assert engine.searches == 1
    engine.measures = False
    found = locator.answer_each(pictures, [Ask(rerank=3), Ask(), Ask()])
    assert [type(found[n]) for n in (0, 1)] == [NotServed, TooSmall] and found[2].matches[0].name == "a/1.png"


def test_reranking_pauses_and_answers_the_same(shared_locator, images):
    pauses, picture = [], pixels_of(images[1][3])
    for asked in (Ask(rerank=9), Ask(agreement=True), Ask(rerank=6, agreement=True)):
        (alone,) = shared_locator.answer_each([picture], [asked])
        (found,) = shared_locator.answer_each([picture], [asked], lambda: pauses.append(1))
        assert found.matches == alone.matches and found.confidence == alone.confidence
    assert len(pauses) > 10 and shared_locator.is_long(Ask(rerank=1)) and not shared_locator.is_long(Ask())


def test_images_may_come_and_go_while_reranking_pauses(locator, images):
    picture = pixels_of(images[1][3])
    (before,) = locator.answer_each([picture], [Ask(rerank=5)])
    gone = []

    def pause():
        if not gone:
            gone.append(before.matches[4].name)
            locator.remove("b/9.png")

    (found,) = locator.answer_each([picture], [Ask(rerank=5)], pause)
    assert [each.name for each in found.matches] == [each.name for each in before.matches] and locator.images == 9


@pytest.fixture
def answered(shared_locator, monkeypatch):
    """Has what is asked answered by a function of how the locator does, images, what is asked, and the pause if any."""
    locate = shared_locator.answer_each
    return lambda answer: monkeypatch.setattr(shared_locator, "answer_each", functools.partial(answer, locate))


def test_plain_questions_are_answered_between_the_steps_of_reranking(client, images, answered):
    """Re-ranking that would take for ever without them: each of its pauses waits for a plain answer."""
    plain, image, looked = threading.Event(), as_bytes(images[1][0]), threading.Event()

    def slow(locate, pictures, asked, *pause):
        if not pause:
            plain.set()
        while pause and not plain.is_set():
            looked.set()
            pause[0]()
        return locate(pictures, asked, *pause)

    answered(slow)
    with asking_at_once(client, image, "?rerank=9", 8) as found:
        assert looked.wait(60) and client.locate(image)[0] == 200
    assert found == [200] * 8


def test_one_client_cannot_fill_the_queue_with_reranking(shared_locator, images, answered):
    may_go, image = threading.Event(), as_bytes(images[1][0])

    def held(locate, pictures, asked, *pause):
        while pause and not may_go.is_set():
            pause[0]()
        return locate(pictures, asked, *pause)

    answered(held)
    with (
        serving(shared_locator, queue=16, batch_requests=4) as client,
        asking_at_once(client, image, "?rerank=3", 4) as found,
    ):
        client.wait_until_underway(4)
        status, said, headers = client.locate(image, "?rerank=3")
        assert status == 503 and int(headers["retry-after"]) >= 1 and "too much" in said["error"]
        assert client.locate(image)[0] == 200
        may_go.set()
    assert found == [200] * 4


def test_an_image_that_is_large_beside_the_database_is_described_by_itself(shared_locator, images, answered):
    passes = []

    def noted(locate, pictures, asked, *pause):
        passes.append(([tuple(each.shape[1:]) for each in pictures], bool(pause)))
        return locate(pictures, asked, *pause)

    answered(noted)
    with serving(shared_locator, large_pixels=80 * 64) as client:
        large = client.locate(as_bytes(Image.open(images[1][3]).resize((160, 128))))
        small = client.locate(as_bytes(images[1][3]))
    assert passes == [([(128, 160)], True), ([(64, 80)], False)]
    assert large[0] == small[0] == 200 and len(large[1]["matches"]) == 5


def test_reranking_ends_when_its_client_goes_away(client, images, answered):
    looked, image = threading.Event(), as_bytes(images[1][0])

    def for_ever(locate, pictures, asked, *pause):
        while pause:
            looked.set()
            pause[0]()
        return locate(pictures, asked)

    answered(for_ever)
    head = f"POST /locate?rerank=3 HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(image)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
        connection.sendall(head.encode() + image)
        assert looked.wait(60)
    client.wait_until_underway(0)
    assert client.locate(image)[0] == 200


def test_ready_asks_the_engine(counting, monkeypatch):
    monkeypatch.setattr("vpr.serve.service.CHECKED_SECONDS", 0.0)
    engine, locator = counting
    with serving(locator) as client:
        assert client("GET", "/ready")[1] == {"status": "ready", "images": 10}
        engine.error = UserError("nobody answers")
        status, said, headers = client("GET", "/ready")
        assert status == 503 and list(said) == ["error", "code"] and int(headers["retry-after"]) >= 1
        assert client("GET", "/health")[0] == 200
        engine.error = None
        assert client("GET", "/ready")[0] == 200


def test_an_engine_that_keeps_ready_waiting_holds_up_nobody_else(counting, images, monkeypatch):
    """A server of others that does not answer for long, as of Milvus behind a network that loses packets."""
    monkeypatch.setattr("vpr.serve.service.READY_SECONDS", 0.3)
    engine, locator = counting
    asked, may_answer = threading.Event(), threading.Event()

    def waits():
        asked.set()
        assert may_answer.wait(60)

    engine.is_shared, engine.check = True, waits
    with serving(locator) as client:
        try:
            statuses = []
            polling = threading.Thread(target=lambda: statuses.append(client("GET", "/ready")[0]))
            polling.start()
            assert asked.wait(60)
            for method, path, body in (("POST", "/locate", as_bytes(images[1][4])), ("GET", "/health", None),
                                       ("GET", "/map", None), ("GET", "/images", None)):  # fmt: skip
                assert client(method, path, body, PNG if body else None, timeout=20)[0] == 200
            polling.join()
            assert statuses == [503] and not may_answer.is_set()
        finally:
            may_answer.set()
