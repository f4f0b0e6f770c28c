"""The client of one file, against a server: what it asks, what it is told, and what it does while that is busy."""

import http.server
import json
import threading

import pytest
from asking import TOKEN, as_bytes, serving

from vpr.client import Client, ServerError


def address(client):
    return f"http://127.0.0.1:{client.port}"


def test_it_locates_an_image_by_its_file_and_by_its_bytes(client, images):
    with Client(address(client)) as asking:
        assert asking.is_ready()
        by_file = asking.locate(images[1][4], top=2)
        by_bytes = asking.locate(as_bytes(images[1][4]), top=2, agreement=True)
    assert [match["name"] for match in by_file["matches"]] == [match["name"] for match in by_bytes["matches"]]
    assert by_file["matches"][0]["name"] == "a/4.png" and len(by_file["matches"]) == 2
    assert by_file["agreement"] is None and by_bytes["agreement"] is not None


def test_parameters_of_several_values_are_sent_as_several(client, images):
    best = client.locate(as_bytes(images[1][4]), "?top=10")[1]["matches"]
    with Client(address(client)) as asking:
        near = asking.locate(images[1][4], near=f"{best[0]['latitude']},{best[0]['longitude']},45")["matches"]
        both = asking.locate(images[1][4], top=10, where=["night=no", "night!=yes"])["matches"]
        none = asking.locate(images[1][4], top=10, where=["night=no", "night=yes"])["matches"]
    assert len(near) == 3 and len(both) == 7 and none == []


def test_an_error_has_its_status_and_its_code(client, images):
    with Client(address(client)) as asking:
        with pytest.raises(ServerError) as raised:
            asking.locate(b"no image")
        assert (raised.value.status, raised.value.code) == (415, "no_image")
        with pytest.raises(ServerError) as raised:
            asking.remove("7")
        assert raised.value.code in ("not_there", "not_allowed")
        with pytest.raises(OSError):
            asking.locate(images[1][4].parent / "none.png")
        assert asking.locate(images[1][4])["matches"], "the connection goes on"


def test_its_token_comes_from_the_environment(token_client, monkeypatch):
    for token, code in (("", "token_wanted"), (TOKEN, None)):
        monkeypatch.setenv("VPR_TOKEN", token)
        with Client(address(token_client)) as asking:
            if code is None:
                assert asking.places()["images"] == 10
            else:
                with pytest.raises(ServerError) as raised:
                    asking.places()
                assert raised.value.code == code
    with Client(address(token_client), TOKEN) as asking:
        assert asking.places()["images"] == 10


def test_it_lists_images_page_by_page(client):
    everything = sorted(client("GET", "/map")[1]["names"])
    asked = []

    class Small(Client):
        """Asks for pages of three."""

        def ask(self, method, path, *rest):
            asked.append(path.replace("limit=1000", "limit=3"))
            return super().ask(method, asked[-1], *rest)

    with Small(address(client)) as asking:
        assert [image["name"] for image in asking.images()] == everything and len(asked) == 4
        some = [name for name in everything if name.startswith("a/")]
        found = list(asking.images("a/"))
        assert [image["name"] for image in found] == some and 0 < len(some) < len(everything)
        best = asking.locate(as_bytes_of(client, found[0]), top=1)["matches"][0]
        assert best["name"] == found[0]["name"] and best["id"] == found[0]["id"]
        assert best["latitude"] == pytest.approx(found[0]["latitude"])
        assert list(asking.images("zzz")) == []
    for parameters in ("limit=0", "limit=1001", "limit=x"):
        assert client("GET", f"/images?{parameters}")[0] == 400


def as_bytes_of(client, image):
    """The bytes of a database image as the server shows it."""
    return client("GET", f"/images/{image['id']}")[1]


def test_it_adds_and_removes_images(make_locator, images, tmp_path):
    with (
        serving(make_locator(), writable=True, uploads=tmp_path / "added") as client,
        Client(address(client)) as asking,
    ):
        added = asking.add(images[1][4], "street/new.png", latitude=40.4393, longitude=-79.9967)
        assert added["new"] and added["images"] == 11
        assert "street/new.png" in asking.places()["names"]
        changed = asking.change(added["id"], column=["night=yes", "floor=2"], easting=585400, northing=4477100)
        assert changed["columns"] == {"night": "yes", "floor": 2.0} and changed["easting"] == 585400
        assert asking.remove(added["id"])["images"] == 10


def test_it_adds_many_images_a_request_of_some_after_the_other(make_locator, images, tmp_path):
    place = {"easting": 585400, "northing": 4477100}
    sent = [(images[1][n % 10], {"name": f"new/{n}.png", **place, "column": [f"floor={n}"]}) for n in range(18)]
    sent[17] = (b"no image", {"name": "new/17.png", **place})
    with (
        serving(make_locator(), writable=True, uploads=tmp_path / "added") as client,
        Client(address(client)) as asking,
    ):
        answers = asking.add_many(sent)
        assert [each.get("new", each.get("code")) for each in answers] == [True] * 17 + ["no_image"]
        assert answers[0]["images"] == 26 and answers[16]["images"] == 27 and asking.add_many([]) == []
        assert asking.locate(images[1][3], where="floor=13")["matches"][0]["name"] == "new/13.png"


@pytest.mark.parametrize(
    ("told", "tries"), [((503, {"error": "busy", "code": "busy"}), 2), ((200, {"matches": []}), 1)]
)
def test_it_asks_again_while_the_server_is_busy(told, tries):
    """A server that is busy once, and answers then."""
    asked = []

    class Once(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.path)
            status, answer = told if len(asked) == 1 else (200, {"matches": []})
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("retry-after", "0")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            """Not into the tests' output."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Once)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}/behind/") as asking:
            assert asking.ask("GET", "/map") == {"matches": []}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert asked == ["/behind/v1/map"] * tries


def test_an_address_that_is_none_and_a_server_that_is_away():
    with pytest.raises(ValueError, match="wanted an address such as http"):
        Client("127.0.0.1:8000")
    with Client("http://127.0.0.1:9", timeout=2) as asking:
        assert not asking.is_ready()
        with pytest.raises(OSError):
            asking.locate(b"image")
