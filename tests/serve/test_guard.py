"""Who may ask, and from where."""

import pytest
from asking import as_bytes, serving

from vpr.common.errors import UserError
from vpr.serve.settings import Settings

TOKEN = "a long enough token"


@pytest.fixture(scope="module")
def client(shared_locator):
    with serving(shared_locator) as client:
        yield client


def test_a_token_is_wanted_where_there_is_one(shared_locator, images):
    with serving(shared_locator, token=TOKEN) as client:
        image = as_bytes(images[1][0])
        for headers in ({}, {"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN}x"},
                        {"authorization": "Basic " + TOKEN}, {"authorization": "Bearer ä"}):  # fmt: skip
            client.headers = headers
            for status, said, told in (client.locate(image), client("GET", "/map"), client("GET", "/metrics"),
                                       client("GET", "/images/1"), client("DELETE", "/images/1")):  # fmt: skip
                assert status == 401 and list(said) == ["error"] and told["www-authenticate"] == "Bearer"
            assert client("GET", "/health")[0] == 200
        client.headers = {"authorization": f"Bearer {TOKEN}"}
        assert client.locate(image)[0] == 200
        client.headers["host"] = "places.example.org"  # as behind a proxy
        assert client.locate(image)[0] == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "LOCALHOST:1", "[::1]:8000"])
def test_the_names_of_this_machine_are_answered_to(client, host):
    assert client("GET", "/health", headers={"host": host})[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:8000", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_made_to_mean_this_machine_is_refused(client, host):
    assert client("GET", "/map", headers={"host": host})[0] == 403


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


def test_other_machines_are_only_served_with_a_token(tmp_path):
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(UserError, match="--token"):
            Settings(host=host).require_safe()
        Settings(host=host, token=TOKEN).require_safe()
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        Settings(host=host).require_safe()
    for token in ("", "short", "x" * 20 + "\n", "ä" * 20):
        with pytest.raises(UserError, match="--token"):
            Settings(token=token).require_safe()
    with pytest.raises(UserError, match="folder"):
        Settings(writable=True).require_safe()
    Settings(writable=True, uploads=tmp_path).require_safe()
