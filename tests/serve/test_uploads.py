"""What clients send that they should not: each gets one sentence, and the next good request its answer."""

import asyncio
import http.client
import random
import socket
import struct
import threading
import zlib

import pytest
from asking import as_bytes, asking_at_once, form, serving
from PIL import Image
from starlette.requests import Request

from vpr.serve.problems import Problem
from vpr.serve.uploads import Bodies


@pytest.fixture(scope="module")
def client(shared_locator):
    with serving(shared_locator, max_megabytes=0.2, max_pixels=1_000_000, body_seconds=0.4, queue=4) as client:
        yield client


def png_of(width, height):
    """A sound PNG of one bit a pixel: many pixels in few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(1 + width // 8) * 64, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def still_answers(client, images):
    status, found, _ = client.locate(as_bytes(images[1][6]))
    return status == 200 and found["matches"][0]["name"] == "b/6.png"


def test_each_error_has_its_status_and_a_sentence(client, images, monkeypatch):
    monkeypatch.setattr("vpr.serve.uploads.DRAINED_SECONDS", 60.0)  # of a body that has come nothing is waited for
    sound = as_bytes(images[1][6])
    multipart = {"content-type": "multipart/form-data"}
    broken = {"content-type": "multipart/form-data; boundary=limit"}
    asked = [
        (client.locate(b""), 400), (client.locate(b"GIF89a" + bytes(50)), 415), (client.locate(sound[:100]), 422),
        (client.locate(png_of(30_000, 30_000)), 413), (client.locate(bytes(300_000)), 413),
        (client("POST", "/locate", sound, {"content-type": "text/plain"}), 415),
        (client("POST", "/locate", sound, broken), 400), (client("POST", "/locate", sound, multipart), 400),
        (client("POST", "/locate", *form(("other", None, b"1"))), 400),
        (client("POST", "/locate", *form(("image", "a", sound), ("image", "b", sound))), 413),
        (client.locate(as_bytes(Image.new("RGB", (5, 5)))), 422), (client("GET", "/locate"), 405),
        (client("POST", "/nowhere", sound), 404), (client("GET", "/images/../../etc/passwd"), 404),
    ]  # fmt: skip
    for number, ((status, said, headers), wanted) in enumerate(asked):
        assert (number, status) == (number, wanted)
        assert list(said) == ["error", "code"] and 10 < len(said["error"]) < 200 and "\n" not in said["error"]
        assert "/" not in said["error"].replace("image/jpeg", "").replace("multipart/form-data", "")
        assert headers["x-content-type-options"] == "nosniff"
    assert still_answers(client, images)


def test_mutated_images_are_answered_or_refused(client, images):
    chance = random.Random(4)
    kinds = [as_bytes(Image.open(images[1][n]), kind) for n, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    seen = set()
    for number in range(45):
        content = bytearray(kinds[number % 3])
        for _ in range(chance.choice((1, 4, 30))):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        cut = chance.choice((len(content), chance.randrange(1, len(content))))
        seen.add(client.locate(bytes(content[:cut]))[0])
    assert seen <= {200, 413, 415, 422} and {200, 422} <= seen
    assert still_answers(client, images)


def raw(client, *pieces, wait=5):
    """What a server says to bytes; the connection stays open after them."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=wait) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read()


HEAD = b"POST /locate HTTP/1.1\r\nhost: localhost\r\n"
CHUNK = b"10000\r\n" + bytes(0x10000) + b"\r\n"


@pytest.mark.parametrize(
    ("pieces", "wanted", "word"),
    [
        ([HEAD, b"content-type: image/png\r\ncontent-length: 5000\r\n\r\n", b"\x89PNG"], 408, b"error"),
        ([HEAD, b"transfer-encoding: chunked\r\n\r\n", CHUNK * 5, b"0\r\n\r\n"], 413, b"0.2 MB"),
        ([HEAD, b"content-length: 99000000\r\nexpect: 100-continue\r\n\r\n"], 413, b"error"),
    ],
    ids=["a body that does not come", "a body of unknown length", "a client that asks first"],
)
def test_no_more_is_waited_for_than_may_come(client, images, pieces, wanted, word):
    status, said = raw(client, *pieces)
    assert status == wanted and word in said and still_answers(client, images)


def test_what_is_no_http_or_has_huge_headers_is_refused(client, images):
    head = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
    for wrong in (b"hello there\r\n\r\n", head + b"x: " + b"y" * 40_000, head + b"a: b\r\n" * 9000):
        status, said = raw(client, wrong)
        assert status == 400 and b'"error"' in said
    for headers in ({"x": "y" * 20_000}, {f"x{n}": "y" for n in range(101)}):
        assert client("GET", "/health", headers=headers)[0] == 400
    assert client("GET", "/health?" + "q" * 20_000)[0] == 400
    assert still_answers(client, images)


def test_a_head_that_does_not_come_is_not_waited_for(client, monkeypatch):
    monkeypatch.setattr("vpr.serve.server.HEAD_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
        connection.sendall(b"GET /health HT")
        assert connection.recv(100) == b""


def test_a_full_queue_says_when_to_come_again(client, shared_locator, images, monkeypatch):
    may_go, image, locate = threading.Event(), as_bytes(images[1][6]), shared_locator.answer_each

    def held(*rest):
        assert may_go.wait(60)
        return locate(*rest)

    monkeypatch.setattr(shared_locator, "answer_each", held)
    with asking_at_once(client, image, "", 4) as found:
        client.wait_until_underway(4)
        status, said, headers = client.locate(image)
        assert status == 503 and headers["retry-after"] == "1" and "too much" in said["error"]
        may_go.set()
    assert found == [200] * 4 and still_answers(client, images)


def test_an_error_that_nobody_foresaw_is_told_without_a_word_of_it(client, shared_locator, images, monkeypatch):
    def fails(*_):
        raise RuntimeError("/home/somebody/secret")

    monkeypatch.setattr(shared_locator, "answer_each", fails)
    status, said, headers = client.locate(as_bytes(images[1][6]))
    assert status == 500 and "secret" not in str(said) and headers["x-content-type-options"] == "nosniff"


def test_no_image_is_decoded_twice(client, images):
    before = client.metric("vpr_decoded_images_total")
    for _ in range(3):
        client.locate(as_bytes(images[1][6]))
    assert client.metric("vpr_decoded_images_total") == before + 3


def read(body, headers, at_once=100):
    """What a form brings that comes in pieces of `at_once` bytes."""
    pieces = [body[n : n + at_once] for n in range(0, len(body), at_once)] or [b""]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive():
        return messages.pop(0)

    async def ask():
        headers_sent = [(name.encode(), value.encode()) for name, value in headers.items()]
        async with Bodies(10**6, 10).form(Request({"type": "http", "headers": headers_sent}, receive), 8) as found:
            return found

    return asyncio.run(ask())


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_forms_are_taken_apart(at_once):
    body, headers = form(("name", None, "Straße".encode()), ("image", "x/../y", b"\r\n--limi\r\n"), ("photo", "", b"2"),
                         ("image", None, bytes(3000)))  # fmt: skip
    found = read(body, headers, at_once)
    assert found.images == [b"\r\n--limi\r\n", b"2", bytes(3000)] and found.fields == {"name": ["Straße"]}


@pytest.mark.parametrize(
    "parts",
    [[("a", None, b"1")] * 65, [("a", "x", b"1")] * 65, [("a" * 5000, None, b"1")], [("a", None, b"1" * 70_000)]],
)
def test_forms_with_too_much_are_refused(parts):
    with pytest.raises(Problem, match="form is broken") as found:
        read(*form(*parts))
    assert found.value.status == 400


def test_a_form_that_is_cut_anywhere_is_refused():
    body, headers = form(("name", None, b"here"), ("image", "x", b"some bytes"))
    for cut in range(len(body) - 3):  # the last line's end may lack
        with pytest.raises(Problem) as found:
            read(body[:cut], headers)
        assert found.value.status == 400
