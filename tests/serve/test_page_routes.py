"""The page as the server gives it."""

import re

import pytest
from asking import Client, as_bytes

from vpr.common.errors import UserError
from vpr.serve.page import asset
from vpr.serve.settings import Settings


def test_page_and_its_files_need_no_token(token_client):
    client = Client(token_client.port)
    status, text, headers = client("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html") and b"Where was this image taken?" in text
    policy = headers["content-security-policy"]
    assert "script-src 'self';" in policy and "img-src 'self' data: blob: https://tiles.example;" in policy
    files = re.findall(r'(?:src|href)="assets/([^"]+)"', text.decode())
    assert len(files) == 7
    for name in files:
        status, content, headers = client("GET", f"/assets/{name}")
        assert status == 200 and (headers["content-type"], content) == asset(name)
        assert headers["x-content-type-options"] == "nosniff"


def test_files_are_sent_once(client):
    status, content, headers = client("GET", "/assets/page.js")
    assert status == 200 and headers["cache-control"] == "no-cache"
    status, content, again = client("GET", "/assets/page.js", headers={"if-none-match": headers["etag"]})
    assert (status, content, again["etag"]) == (304, b"", headers["etag"])


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpage.py", "%2e%2e/settings.py", "page.html", ""])
def test_nothing_else_is_given(client, name):
    status, said, _ = client("GET", f"/assets/{name}")
    assert status == 404 and said == {"error": "there is nothing at this address", "code": "not_there"}


def test_answers_have_what_the_page_reads(client, images):
    status, answer, _ = client.locate(as_bytes(images[1][4]), "?agreement=true&top=5")
    assert status == 200
    match = {"id", "name", "image", "easting", "northing", "zone", "latitude", "longitude", "distance", "score"}
    assert set(answer["matches"][0]) == match and len(answer["matches"]) == 5
    assert {"confidence", "confidence_kind", "refused", "model", "images", "timing", "agreement"} <= set(answer)
    assert all(set(line) == {"query", "hit", "weight"} for line in answer["agreement"])
    points = [value for line in answer["agreement"] for value in (*line["query"], *line["hit"])]
    assert points and min(points) >= 0 and max(points) <= 1
    status, places, _ = client("GET", "/map")
    columns = {name: len(values) for name, values in places.items() if isinstance(values, list)}
    assert columns == dict.fromkeys(("ids", "names", "easting", "northing", "latitude", "longitude"), 10)
    assert client("GET", answer["matches"][0]["image"])[0] == 200
    best = answer["matches"][0]
    status, near, _ = client.locate(as_bytes(images[1][4]), f"?near={best['latitude']},{best['longitude']},35")
    assert status == 200 and {each["name"] for each in near["matches"]} == {"a/3.png", "a/4.png", "b/5.png"}


def test_tiles_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"^--tiles=moon names no street tiles"):
        Settings(tiles="moon").require_safe()
