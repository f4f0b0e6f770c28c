"""The description at /openapi.json is that of the server that runs."""

import json

import pytest
from asking import PNG, as_bytes, form
from pydantic import TypeAdapter

from vpr.serve.schemas import (
    Added,
    AddedBatch,
    Error,
    Health,
    ImageList,
    ListedImage,
    Located,
    LocatedBatch,
    Places,
    Ready,
    Removed,
)


@pytest.fixture(scope="module")
def api(token_client):
    return token_client("GET", "/openapi.json")[1]


def operations(api):
    return {(method, path): said for path, methods in api["paths"].items() for method, said in methods.items()}


def test_every_operation_has_a_name_an_answer_and_its_errors(api):
    names = [said["operationId"] for said in operations(api).values()]
    assert sorted(names) == sorted(
        [
            "locate",
            "locate_batch",
            "get_image",
            "get_map",
            "list_images",
            "add_image",
            "add_images",
            "change_image",
            "remove_image",
            "health",
            "ready",
            "metrics",
        ]
    )
    for said in operations(api).values():
        answers = {status: each.get("content", {}) for status, each in said["responses"].items()}
        for status, content in answers.items():
            schemas = [each["schema"] for each in content.values()]
            if status == "304":
                assert not content
            elif status[0] == "2":
                assert len(schemas) == 1 and schemas[0], "an answer of any kind"
            else:
                assert schemas == [{"$ref": "#/components/schemas/Error"}]
        assert "default" in answers and "403" in answers
    assert "ValidationError" not in json.dumps(api)


def test_a_token_is_part_of_what_is_described_where_one_is_wanted(api, client):
    open_ones = {"/health", "/ready"}
    for (_, path), said in operations(api).items():
        assert ("security" in said) == ("401" in said["responses"]) == (path not in open_ones)
    (scheme,) = api["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert "securitySchemes" not in client("GET", "/openapi.json")[1].get("components", {})


def test_forms_are_described_field_by_field(api):
    def schema(path):
        return api["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]

    wanted = {"image", "name", "latitude", "longitude", "easting", "northing", "column"}
    assert set(schema("/images")["properties"]) == wanted and schema("/images")["required"] == ["image"]
    parameters = {each["name"] for each in api["paths"]["/images"]["post"]["parameters"]}
    assert parameters == wanted - {"image"}
    changing = {each["name"] for each in api["paths"]["/images/{image}"]["patch"]["parameters"]}
    assert changing == wanted - {"name"}  # `image` is part of the address
    several = schema("/images/batch")["properties"]
    assert several["image"]["type"] == schema("/locate/batch")["properties"]["image"]["type"] == "array"
    assert set(several["images"]["items"]["properties"]) == wanted - {"image"}


def fits(kind, answer, status):
    """Whether an answer has a status, and the fields that are described, and no others; raises where it has not."""
    found, said, _ = answer
    TypeAdapter(kind).validate_json(json.dumps(said), strict=True)
    return found == status


def test_answers_are_what_is_described(client, images):
    image = as_bytes(images[1][3])
    assert fits(Located, client.locate(image, "?agreement=true&rerank=3"), 200)
    assert fits(Located, client.locate(image, "?where=night=yes"), 200)
    body, headers = form(("image", "a", image), ("image", "b", b"nonsense"))
    assert fits(LocatedBatch, client("POST", "/locate/batch", body, headers), 200)
    for path, kind in (("/health", Health), ("/ready", Ready), ("/map", Places), ("/images?limit=3", ImageList)):
        assert fits(kind, client("GET", path), 200)
    assert fits(Error, client.locate(b"nonsense"), 415)
    assert client("GET", "/images/1")[0] == 404


def test_changes_are_what_is_described(serve, images, tmp_path):
    client = serve(writable=True, uploads=tmp_path / "uploads")
    image = as_bytes(images[1][3])
    told = client("POST", "/images?name=x.png&easting=585500&northing=4477200", image, PNG)
    assert fits(Added, told, 201)
    address = f"/images/{told[1]['id']}"
    assert fits(ListedImage, client("PATCH", f"{address}?column=night=no&easting=585400&northing=4477100"), 200)
    for refused, status in (("", 400), ("?column=night", 400), ("?easting=1&northing=1", 422)):
        assert fits(Error, client("PATCH", f"{address}{refused}"), status)
    said = [{"name": "y.png", "latitude": 40.44, "longitude": -79.99}, {}]
    body, headers = form(("image", "a", image), ("image", "b", image), ("images", None, json.dumps(said).encode()))
    assert fits(AddedBatch, client("POST", "/images/batch", body, headers), 200)
    assert fits(Removed, client("DELETE", f"/images/{told[1]['id']}"), 200)
    assert fits(Error, client("DELETE", f"/images/{told[1]['id']}"), 404)
