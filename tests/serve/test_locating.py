"""What the server answers, whatever came with it; tests/retrieval/test_one_way.py compares it with other modes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import utm
from asking import as_bytes, form, serving
from drawing import draw_image
from PIL import Image

from vpr.retrieval.ask import Ask
from vpr.retrieval.calibration import Calibration
from vpr.retrieval.calibration_file import LearntOn, StoredCalibration


@pytest.fixture(scope="module")
def client(shared_locator):
    with serving(shared_locator, batch_wait=200.0) as client:
        yield client


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    return [draw_image(folder / f"{n}.png", (80, 64), [7, n]) for n in range(16)]


def test_places_and_confidence_are_those_of_brute_force(client, shared_locator, queries, model):
    own = model.describe(np.array(Image.open(queries[0])).transpose(2, 0, 1)[None])[0].astype(np.float64)
    distances = np.linalg.norm(shared_locator.engine.kept - own, axis=1)
    order = np.argsort(distances)
    _, found, _ = client.locate(as_bytes(queries[0]), "?top=10")
    assert [match["easting"] for match in found["matches"]] == [585000 + 30 * n for n in order]
    np.testing.assert_allclose([match["distance"] for match in found["matches"]], distances[order], atol=1e-4)
    assert found["confidence"] == pytest.approx(1 - distances[order[0]] / distances[order[1]], abs=1e-3)
    assert found["images"] == 10 and found["model"] == model.name and found["agreement"] is None
    assert set(found["timing"]) == {"decode_ms", "wait_ms", "model_ms", "search_ms", "total_ms"}
    assert found["timing"]["total_ms"] >= found["timing"]["model_ms"] + found["timing"]["search_ms"]


def test_how_far_off_the_place_may_be_is_told_where_positions_tell(client, make_locator, images):
    image, engine = as_bytes(images[1][4]), make_locator().engine
    assert client.locate(image)[1]["uncertainty"] is None, "the next images are over 25 m away"
    metres = np.array([[585000.0 + 8 * n, 4477000.0 + 6 * (n % 2)] for n in range(10)])
    with serving(make_locator(engine=type(engine)(replace(engine.records, positions=metres), engine.kept))) as near:
        found, told = (near.locate(image, f"?top={top}")[1] for top in (10, 1))
    assert found["uncertainty"] == told["uncertainty"]
    matches, products, total = found["matches"], np.zeros((2, 2)), 0.0
    cosines = [1 - match["distance"] ** 2 / 2 for match in matches]
    for match, cosine in zip(matches, cosines, strict=True):
        away = np.array([match[axis] - matches[0][axis] for axis in ("easting", "northing")])
        if np.hypot(*away) <= 25:
            products, total = products + (cosine - min(cosines)) * np.outer(away, away), total + cosine - min(cosines)
    wanted = products / total + 10**2 / 12 * np.eye(2)
    np.testing.assert_allclose(found["uncertainty"]["covariance"], wanted, rtol=1e-6)
    assert found["uncertainty"]["metres"] == pytest.approx(np.sqrt(np.linalg.eigvalsh(wanted)[1]))


def test_ids_are_text_and_lead_to_the_image(client, images):
    _, found, _ = client.locate(as_bytes(images[1][4]))
    best = found["matches"][0]
    assert best["name"] == "a/4.png" and best["distance"] == pytest.approx(0, abs=1e-3)
    assert isinstance(best["id"], str) and int(best["id"]) < 1 << 63 and best["image"] == f"/images/{best['id']}"
    status, content, headers = client("GET", best["image"])
    assert status == 200 and headers["content-type"] == "image/jpeg" and content[:2] == b"\xff\xd8"
    tag = headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", W/{tag}', f'{tag},"b"', "*"):
        status, content, again = client("GET", best["image"], headers={"if-none-match": known})
        assert (status, content, again["etag"]) == (304, b"", tag)
    for other in ('"other"', tag.strip('"'), 'W/"other", "b"', ""):
        assert client("GET", best["image"], headers={"if-none-match": other})[0] == 200
    assert "no-cache" in headers["cache-control"] and "max-age" not in headers["cache-control"]
    for unknown in ("1", "x", "9" * 30, "../a/4.png", "%2e%2e%2fa", "-1", str(1 << 63)):
        assert client("GET", f"/images/{unknown}")[0] == 404


def test_an_image_comes_as_a_body_or_a_form(client, images):
    image = as_bytes(images[1][2])
    body, headers = form(("image", "../../etc/passwd", image))
    plain, named = client.locate(image)[1], client("POST", "/locate", body, headers)[1]
    assert plain["matches"] == named["matches"] and plain["matches"][0]["name"] == "a/2.png"


def test_searches_can_be_limited(client, images):
    image = as_bytes(images[1][0])
    here = client.locate(image)[1]["matches"][0]
    names = lambda query: {m["name"] for m in client.locate(image, f"?top=10{query}")[1]["matches"]}  # noqa: E731
    north, east = here["latitude"], here["longitude"]
    assert names(f"&near={north},{east},65") == {"a/0.png", "a/1.png", "a/2.png"}
    assert names(f"&box={north - 1e-3},{east - 1e-5},{north + 1e-3},{east + 4e-4}") == {"a/0.png", "a/1.png"}
    assert names("&where=night=yes") == {"b/7.png", "b/8.png", "b/9.png"}
    assert names(f"&where=night=yes&near={north},{east},65") == set()


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("top=0", 400), ("top=x", 400), ("top=100000", 400), ("near=1,2", 400), ("near=91,0,5", 400),
        ("near=1,2,nan", 400), ("near=1,2,-5", 400), ("near=" + "1" * 300, 400), ("box=1,2,3", 400),
        ("box=5,0,1,2", 400), ("where=night", 400),
        ("where=" + "+" * 9000, 400), ("where=" + "+" * 90, 400), ("where=" + "a" * 201, 400), ("where=a<b", 400),
        ("where=night=yes&where=", 400), ("where=moon=1", 422), ("rerank=-1", 400), ("rerank=100000", 400),
        ("agreement=perhaps", 400),
    ],
)  # fmt: skip
def test_parameters_that_mean_nothing_are_refused(client, images, query, status):
    found, said, _ = client.locate(as_bytes(images[1][0]), f"?{query}")
    assert found == status and list(said) == ["error", "code"] and len(said["error"]) < 200


def test_agreement_is_told_for_the_first_match(client, images):
    _, found, _ = client.locate(as_bytes(images[1][3]), "?agreement=true&rerank=3")
    lines = found["agreement"]
    assert found["matches"][0]["name"] == "a/3.png" and len(lines) > 0
    weights = [line["weight"] for line in lines]
    assert weights == sorted(weights, reverse=True) and all(0 < weight <= 1 for weight in weights)
    for line in lines:  # of an image with itself every place agrees with itself
        assert line["query"] == line["hit"] and all(0 < value < 1 for value in line["query"])


def test_many_at_once_become_few_passes(client, queries):
    contents = [as_bytes(query) for query in queries]
    alone = [client.locate(content)[1]["matches"] for content in contents]
    before = passes(client)
    with ThreadPoolExecutor(16) as pool:
        found = [answer[1]["matches"] for answer in pool.map(client.locate, contents)]
    count, images = np.subtract(passes(client), before)
    assert images == 16 and count <= 8
    for one, other in zip(alone, found, strict=True):
        assert [match["name"] for match in one] == [match["name"] for match in other]


def passes(client):
    """How many batches and how many images in them."""
    return [client.metric(f"vpr_batch_images_{name}") for name in ("count", "sum")]


def test_a_batch_has_an_answer_or_an_error_for_each_image(client, images):
    small = as_bytes(Image.new("RGB", (4, 4)))
    contents = [as_bytes(images[1][1]), b"nonsense", as_bytes(images[1][2])[:80], small, as_bytes(images[1][5])]
    body, headers = form(*((f"image{n}", f"{n}.png", content) for n, content in enumerate(contents)))
    status, found, _ = client("POST", "/locate/batch?top=1", body, headers)
    assert status == 200 and [each.get("status", 200) for each in found["answers"]] == [200, 415, 422, 422, 200]
    assert [found["answers"][n]["matches"][0]["name"] for n in (0, 4)] == ["a/1.png", "b/5.png"]
    body, headers = form(*(("image", "x", b"x") for _ in range(17)))
    assert client("POST", "/locate/batch", body, headers)[0] == 413


def test_the_map_has_all_places(client, images):
    _, found, headers = client("GET", "/map")
    assert found["images"] == 10 and found["zone"] == "17N" and headers["content-type"] == "application/json"
    assert sorted(found["names"]) == sorted(file.relative_to(images[0]).as_posix() for file in images[1])
    assert len(found["ids"]) == len(found["latitude"]) == len(found["longitude"]) == 10
    metres = [utm.from_latlon(*degrees) for degrees in zip(found["latitude"], found["longitude"], strict=True)]
    np.testing.assert_allclose([place[0] for place in metres], 585000 + 30 * np.arange(10), atol=0.02)
    assert all(isinstance(each, str) for each in found["ids"])


def calibrated(make_locator, features=("lead", "similarity", "spread", "agreeing"), weight=1.0, bias=1.0, **changes):
    """A locator that has a calibration by some features, whatever the order; and the orders that it was asked for."""
    ones, asked = np.ones(len(features)), []
    learnt = Calibration(tuple(features), 0 * ones, ones, weight * ones, bias, 1.0)
    of = LearntOn("folder here", "val", "here_val", "0", "0", 50, "within 25 m")

    def find(order):
        asked.append(order)
        return StoredCalibration(learnt, {}, of)

    return make_locator(calibrations=find, **changes), asked


def test_a_calibration_says_how_sure_an_answer_is(make_locator, queries):
    locator, asked = calibrated(make_locator, ["similarity"], 3.0, -2.5, usual=Ask(least=0.75))
    with serving(locator) as client:
        sure, unsure = (client.locate(as_bytes(path))[1] for path in (locator.root / "a/0.png", queries[1]))
    for found in (sure, unsure):
        cosine = 1 - found["matches"][0]["distance"] ** 2 / 2
        assert found["confidence"] == pytest.approx(1 / (1 + np.exp(2.5 - 3 * cosine)), abs=1e-4)
        assert found["refused"] == (found["confidence"] < 0.75) and "within 25 m" in found["confidence_kind"]
    assert asked == ["none"]  # looked for once


def test_without_the_images_there_is_no_reranking(make_locator, queries, tmp_path):
    with serving(make_locator(root=tmp_path / "gone")) as client:
        status, said, _ = client.locate(as_bytes(queries[0]), "?rerank=5")
        assert status == 422 and "no local descriptors" in said["error"] and "gone" not in said["error"]
        status, found, _ = client.locate(as_bytes(queries[0]))
        assert status == 200 and client("GET", found["matches"][0]["image"])[0] == 404


@pytest.mark.parametrize(
    ("is_calibrated", "least", "refused"), [(True, None, False), (True, 0.001, True), (False, None, False)]
)
def test_a_search_of_a_part_says_how_sure_it_is_of_nothing(make_locator, images, is_calibrated, least, refused):
    """What looks as similar is filtered away: neither a probability nor a ratio, and nothing passes a threshold."""
    usual = Ask(least=least)
    locator = calibrated(make_locator, usual=usual)[0] if is_calibrated else make_locator(usual=usual)
    with serving(locator) as client:
        image = as_bytes(images[1][0])
        whole = client.locate(image, "?rerank=5")[1]
        assert whole["confidence"] is not None and whole["refused"] is False
        far = whole["matches"][-1]
        for limit in (f"near={far['latitude']},{far['longitude']},45", "where=night=yes", "box=40,-81,41,-79"):
            found = client.locate(image, f"?rerank=5&{limit}")[1]
            assert found["matches"] and found["confidence"] is None and found["refused"] == refused
            assert "only a part of the database was searched" in found["confidence_kind"]


def test_where_nothing_is_found_the_answer_is_empty(make_locator, queries):
    """In a part where there is nothing, and in a database from which all was removed."""
    theirs, image = calibrated(make_locator)[0], as_bytes(queries[0])
    nowhere = ["?where=night=never", "?near=-33.8,151.2,500&rerank=5", "?box=1,1,2,2&rerank=5&agreement=true"]
    with serving(theirs) as client:
        for query in [*nowhere, "", "?top=20"]:
            if query not in nowhere:
                for name in filter(None, theirs.records.names):
                    theirs.remove(name)
            status, found, _ = client.locate(image, query)
            assert status == 200 and found["matches"] == [] and found["confidence"] is None, query


def test_what_others_ask_for_changes_no_answer(locator, queries):
    """Of an engine that looks farther for more hits, as a graph does."""
    engine, pixels = locator.engine, np.array(Image.open(queries[0])).transpose(2, 0, 1)
    search = engine.search

    def lacking(values, count, wanted=None):
        found = search(values, count, wanted)
        return found._replace(rows=found.rows[:, count > 100 :], distances=found.distances[:, count > 100 :])

    engine.search = lacking
    alone = locator.answer_each([pixels], [Ask(top=3)])[0].files
    first, deep, last = locator.answer_each([pixels] * 3, [Ask(top=3), Ask(top=150), Ask(top=3)])
    assert first.files == last.files == alone and deep.files[:3] != alone
