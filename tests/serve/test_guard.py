"""Who may ask, and from where."""

import asyncio
import contextlib
import json
import socket
import time

import pytest
from asking import TOKEN, as_bytes, serving

from vpr.common.errors import UserError
from vpr.modes.serve import token_of
from vpr.serve.app import make_app
from vpr.serve.guard import client_of
from vpr.serve.settings import Settings

RIGHT = {"authorization": f"Bearer {TOKEN}"}


def test_a_token_is_wanted_where_there_is_one(shared_locator, images):
    with serving(shared_locator, token=TOKEN) as client:
        image = as_bytes(images[1][0])
        for headers in ({}, {"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN}x"},
                        {"authorization": "Basic " + TOKEN}, {"authorization": "Bearer ä"}):  # fmt: skip
            client.headers = headers
            for status, said, told in (client.locate(image), client("GET", "/map"), client("GET", "/metrics"),
                                       client("GET", "/images/1"), client("DELETE", "/images/1")):  # fmt: skip
                assert (
                    status == 401
                    and list(said) == ["error", "code"]
                    and said["code"] == "token_wanted"
                    and told["www-authenticate"] == "Bearer"
                )
            assert client("GET", "/health")[0] == 200
        for client.headers in (RIGHT, {**RIGHT, "host": "places.example.org"}):  # the second as behind a proxy
            assert client.locate(image)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("localhost", "127.0.0.1:8000", "LOCALHOST:1", "[::1]:8000")),
        *((host, 403) for host in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", "")),
    ],
)
def test_a_name_that_was_made_to_mean_this_machine_is_refused(client, host, status):
    for path in ("/health", "/map"):
        assert client("GET", path, headers={"host": host})[0] == status


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost:1"},
    ],
)  # fmt: skip
def test_pages_of_other_sites_may_send_nothing(client, images, headers):
    image = as_bytes(images[1][0])
    for method, path in (("POST", "/locate"), ("POST", "/images?name=x.png"), ("DELETE", "/images/1")):
        assert client(method, path, image, headers)[0] == 403


def test_the_servers_own_page_may(client, images):
    host = f"127.0.0.1:{client.port}"
    own = {"origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert client("POST", "/locate", as_bytes(images[1][0]), own)[0] == 200


def test_all_answers_say_how_browsers_shall_treat_them(client):
    for path in ("/health", "/nothing", "/map", "/docs"):
        headers = client("GET", path)[2]
        assert "default-src 'self'" in headers["content-security-policy"] and headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in headers
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_documentation_loads_nothing_from_elsewhere(client):
    status, page, _ = client("GET", "/docs")
    assert status == 200 and b"/locate/batch" in page and b"near" in page
    assert b"<script" not in page and b"http://" not in page and b"https://" not in page
    assert {"/locate", "/locate/batch", "/images", "/map"} <= set(client("GET", "/openapi.json")[1]["paths"])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_are_only_served_with_a_token(host):
    with pytest.raises(UserError, match="--token"):
        Settings(host=host).require_safe()
    Settings(host=host, token=TOKEN).require_safe()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_is_served_without(host):
    settings = Settings(host=host)
    settings.require_safe()  # raises where it is not
    assert settings.is_local and settings.token is None


@pytest.mark.parametrize(
    "token",
    ["", "short", "x" * 20 + "\n", "ä" * 20]
    + ["password1", "changeme", "12345678", "aaaaaaaaaaaa", "abababab", "letmein!"],
)
def test_tokens_that_no_header_carries_or_everybody_guesses_are_refused(token):
    with pytest.raises(UserError, match="--token"):
        Settings(token=token).require_safe()


def test_added_images_need_a_folder(tmp_path):
    with pytest.raises(UserError, match="folder"):
        Settings(writable=True).require_safe()
    Settings(writable=True, uploads=tmp_path).require_safe()


@pytest.mark.parametrize("path", ["/health", "/ready", "/", "/map", "/docs", "/assets/page.js", "/metrics"])
def test_head_answers_as_get_without_the_body(client, path):
    got, head = client("GET", path), client("HEAD", path)
    assert got[0] == head[0] == 200 and not head[1] and head[2]["content-type"] == got[2]["content-type"]
    if path != "/metrics":
        assert head[2]["content-length"] == got[2]["content-length"]
    assert client("HEAD", "/nothing")[0] == 404 and client("HEAD", "/locate")[0] == 405


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/locate", "POST"), ("POST", "/health", "GET, HEAD"), ("POST", "/images/1", "DELETE, GET, HEAD, PATCH"),
     ("PUT", "/images", "GET, HEAD, POST"), ("OPTIONS", "/map", "GET, HEAD"), ("DELETE", "/", "GET, HEAD")],
)  # fmt: skip
def test_a_method_that_an_address_does_not_take_is_told_which_it_takes(client, method, path, allowed):
    status, said, headers = client(method, path)
    assert (status, list(said), headers["allow"]) == (405, ["error", "code"], allowed)


@pytest.mark.parametrize("name", ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip"])
def test_a_proxy_needs_a_token(client, token_client, name):
    status, said, _ = client("GET", "/map", headers={name: "192.0.2.7", "host": "127.0.0.1:8000"})
    assert status == 403 and "token" in said["error"]
    assert token_client("GET", "/map", headers={name: "192.0.2.7"})[0] == 200


def test_who_guesses_tokens_is_sent_away_for_a_while(shared_locator, monkeypatch):
    monkeypatch.setattr("vpr.serve.guard.MOST_TRIES", 3)
    with serving(shared_locator, token=TOKEN) as client:
        for _ in range(5):  # none brought is none guessed
            assert client("GET", "/map")[0] == 401
        for number in range(3):
            assert client("GET", "/map", headers={"authorization": f"Bearer {number}"})[0] == 401
        status, said, headers = client("GET", "/map", headers=RIGHT)
        assert (
            status == 429
            and list(said) == ["error", "code"]
            and said["code"] == "too_many_requests"
            and 1 <= int(headers["retry-after"]) <= 60
        )
        assert client("GET", "/health")[0] == 200 and client("GET", "/map")[0] == 401
        others = {**RIGHT, "x-forwarded-for": "203.0.113.9, 192.0.2.7"}  # as its proxy on this machine says
        assert client("GET", "/map", headers=others)[0] == 200
        monkeypatch.setattr("vpr.serve.guard.TRIES_SECONDS", 0.0)
        assert client("GET", "/map", headers=RIGHT)[0] == 200


def test_the_addresses_that_guessed_last_are_remembered(shared_locator, monkeypatch):
    monkeypatch.setattr("vpr.serve.guard.MOST_TRIES", 1)
    monkeypatch.setattr("vpr.serve.guard.MOST_GUESSERS", 2)
    with serving(shared_locator, token=TOKEN) as client:
        for word, statuses in (("wrong", [401, 401, 401]), (TOKEN, [200, 429, 429])):
            asked = [{"authorization": f"Bearer {word}", "x-forwarded-for": f"192.0.2.{n}"} for n in range(3)]
            assert [client("GET", "/map", headers=headers)[0] for headers in asked] == statuses


def test_who_may_guess_is_told_by_the_proxy_of_this_machine_alone():
    def scope(address, *forwarded):
        return {"type": "http", "client": (address, 1), "headers": [(b"x-forwarded-for", each) for each in forwarded]}

    assert client_of(scope("127.0.0.1")) == "127.0.0.1" and client_of(scope("::1", b"a, b")) == "b"
    assert client_of(scope("192.0.2.7", b"a")) == "192.0.2.7", "others may say what they like"
    assert client_of({**scope(""), "client": None}) == ""


def test_who_starts_a_server_is_told_what_is_doubtful(tmp_path, capsys):
    assert "no proxy" in Settings().notes()[0]
    assert "9 characters" in Settings(token="qzkv!7Pxw").notes()[0] and not Settings(token=TOKEN).notes()
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    assert token_of(str(file)) == TOKEN and f"chmod 600 {file}" in capsys.readouterr().out
    file.chmod(0o600)
    assert token_of(str(file)) == TOKEN and not capsys.readouterr().out


def test_a_head_of_very_many_lines_is_refused_in_one_pass(shared_locator):
    """While it is looked at nobody else is heard."""
    app, sent = make_app(shared_locator, Settings()), []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/health", "raw_path": b"/health", "query_string": b"",
             "headers": [(b"host", b"localhost"), *[(b"a", b"b")] * 300_000]}  # fmt: skip
    asyncio.run(app(scope, None, send))
    assert sent[0]["status"] == 400


def test_idle_connections_keep_nobody_out(shared_locator, monkeypatch):
    monkeypatch.setattr("vpr.serve.server.CONNECTIONS", 1)
    with serving(shared_locator, queue=3) as client, contextlib.ExitStack() as stack:  # 4 connections

        def connect(words=b""):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=10))
            one.sendall(words)
            return one

        idle = [connect(b"GET /hea" * (n % 2)) for n in range(12)]
        assert client("GET", "/map")[0] == 200
        assert idle[0].recv(10) == b"", "the longest idle ones were closed"
        before = client("GET", "/metrics")[1].decode()
        for pause in (0.1, 1, 5):  # seconds until the server has read the heads of all, if it is not in a hurry
            half_sent = b"POST /locate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n1"
            busy = [connect(half_sent) for _ in range(4)]
            time.sleep(pause)
            status, said, headers = client("GET", "/map")
            if status == 503:
                break
            for one in busy:
                one.close()
        assert status == 503 and "connections" in said["error"] and int(headers["retry-after"]) >= 1
        assert client("GET", "/health")[0] == 200
        for one in busy:
            one.close()
        while client("GET", "/metrics")[0] == 503:
            pass
        assert 'status="503"' not in before and 'status="503"' in client("GET", "/metrics")[1].decode()


def test_addresses_begin_with_the_version_or_not(client, images):
    image = as_bytes(images[1][4])
    answers = [client("POST", path, image, {"content-type": "image/png"})[1] for path in ("/locate", "/v1/locate")]
    assert [each["matches"] for each in answers[:1]] == [each["matches"] for each in answers[1:]]
    assert client("GET", "/v1/health")[0] == 200 and client("GET", "/v1/v1/health")[0] == 404
    assert client("GET", "/v2/health")[0] == 404 and client("GET", "/v1")[0] == 404
    assert client("GET", "/openapi.json")[1]["servers"] == [{"url": "/v1"}]
    number = answers[0]["matches"][0]["id"]
    assert client("GET", f"/v1/images/{number}")[1] == client("GET", f"/images/{number}")[1]


def test_the_version_opens_no_door(shared_locator):
    with serving(shared_locator, token=TOKEN) as client:
        assert client("GET", "/v1/map")[0] == 401 and client("GET", "/v1/health")[0] == 200


def test_each_answer_has_the_id_of_its_request(client):
    named = client("GET", "/health", headers={"x-request-id": "robot-7.frame_12"})[2]["x-request-id"]
    made = [client("GET", path)[2]["x-request-id"] for path in ("/health", "/health", "/nowhere")]
    odd = client("GET", "/health", headers={"x-request-id": "a b"})[2]["x-request-id"]
    assert named == "robot-7.frame_12" and odd != "a b" and len({*made, odd}) == 4


def test_the_access_log_has_a_line_for_each_request(shared_locator, monkeypatch):
    lines = []
    monkeypatch.setattr("vpr.serve.guard.say", lines.append)
    with serving(shared_locator, access_log=True) as client:
        client("GET", "/v1/health", headers={"x-request-id": "one"})
        client("GET", "/nowhere?token=secret")
    first, second = map(json.loads, lines)
    assert (first["id"], first["method"], first["path"], first["status"]) == ("one", "GET", "/v1/health", 200)
    assert (second["path"], second["status"], second["client"]) == ("/nowhere", 404, "127.0.0.1")
    assert first["ms"] >= 0 and "secret" not in lines[1]


def test_a_token_to_read_asks_and_changes_nothing(make_locator, images, tmp_path):
    reading = {"authorization": "Bearer another long token"}
    settings = {"token": TOKEN, "read_token": "another long token", "writable": True, "uploads": tmp_path / "added"}
    with serving(make_locator(), **settings) as client:
        image, place = as_bytes(images[1][4]), "?name=new.png&latitude=40.4393&longitude=-79.9967"
        client.headers = reading
        assert client.locate(image)[0] == 200 and client("GET", "/v1/map")[0] == 200
        for version in ("", "/v1"):
            for method, path in (("POST", f"/images{place}"), ("DELETE", "/images/1")):
                status, said, _ = client(method, f"{version}{path}", image)
                assert (status, said["code"]) == (403, "read_only")
        client.headers = RIGHT
        assert client("POST", f"/images{place}", image, {"content-type": "image/png"})[0] == 201


@pytest.mark.parametrize("settings", [{"read_token": "another long token"}, {"token": TOKEN, "read_token": "short"}])
def test_a_token_to_read_alone_or_a_weak_one_is_refused(settings):
    with pytest.raises(UserError, match="oken"):
        Settings(**settings).require_safe()


def test_a_client_that_asks_too_often_is_told_when_to_come_again(shared_locator, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("vpr.serve.guard.monotonic", lambda: clock[0])
    with serving(shared_locator, rate=2.0) as client:
        assert [client("GET", "/map")[0] for _ in range(6)] == [200] * 4 + [429] * 2
        _, said, headers = client("GET", "/map")
        assert said["code"] == "too_often" and headers["retry-after"] == "1" and client("GET", "/health")[0] == 200
        clock[0] += 0.5  # one more may come
        assert [client("GET", "/map")[0] for _ in range(2)] == [200, 429]
        clock[0] += 60
        assert [client("GET", "/map")[0] for _ in range(5)] == [200] * 4 + [429]
