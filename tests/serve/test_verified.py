"""A server with a network for keypoints: what agrees with the first match, and in which order hits are told."""

import json

import numpy as np
import pytest
from asking import as_bytes, serving
from PIL import Image

from vpr.data.images import decode
from vpr.data.reader import Reading
from vpr.retrieval.ask import Ask
from vpr.retrieval.verification.kept import KeptKeypoints
from vpr.retrieval.verification.keypoints import KeypointNetwork
from vpr.retrieval.verification.pairs import verify


@pytest.fixture(scope="module")
def network(xfeat_tensors):
    return KeypointNetwork(xfeat_tensors)


@pytest.fixture(scope="module")
def scenes(images, tmp_path_factory):
    """A folder of other images by the names of the ten, and for each one that shows it, moved by 16 pixels."""
    random, folder, asked = np.random.default_rng(0), tmp_path_factory.mktemp("scenes"), []
    for file in images[1]:
        scene, path = random.integers(0, 256, (128, 176, 3), dtype=np.uint8), folder / file.relative_to(images[0])
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(scene[:, :160]).save(path)
        asked.append(Image.fromarray(scene[:, 16:]))
    return folder, asked


@pytest.fixture
def asked(scenes):
    return scenes[1]


@pytest.fixture
def verifying(make_locator, network, scenes):
    """Makes locators that verify by these images, and search by the descriptors of the ten."""

    def make(path=None, **changes):
        return make_locator(**{"root": scenes[0], "keypoints": KeptKeypoints(network, Reading(), path), **changes})

    return make


def keypoints_of(network, image, folder):
    image.save(folder / "asked.png")
    return network.detect(decode(folder / "asked.png", None))


def plain_order(locator, image):
    """Names as the server tells them without re-ranking."""
    with serving(locator) as client:
        return [match["name"] for match in client.locate(as_bytes(image), "?top=10&rerank=0")[1]["matches"]]


@pytest.mark.parametrize("by", ["xfeat", "head"])
def test_hits_are_told_in_the_order_of_their_keypoints(verifying, network, asked, tmp_path, by):
    locator, depth = verifying(usual=Ask(rerank_by=by, verify=4)), 6
    image = asked[3]
    plain = plain_order(locator, image)
    with serving(locator) as client:
        status, found, _ = client.locate(as_bytes(image), f"?top=10&rerank={depth}&agreement=true")
        assert status == 200
        again = client.locate(as_bytes(image), f"?top=10&rerank={depth}")[1]
    told = [match["name"] for match in found["matches"]]
    assert again["agreement"] is again["verification"] is None and [match["name"] for match in again["matches"]] == told
    own = keypoints_of(network, image, tmp_path)
    pair = {name: verify(own, locator.keypoints.of(name, locator.root / name)) for name in plain}
    if by == "xfeat":
        assert told == [*sorted(plain[:4], key=lambda name: -pair[name].inliers), *plain[4:]]
    else:
        assert set(told[:6]) == set(plain[:6]) and told[6:] == plain[6:]
    inliers = {tuple(np.round(point, 3)) for point in pair[told[0]].query_points.tolist()}
    shown = found["agreement"]
    assert {line["weight"] for line in shown} <= {1.0}
    assert {tuple(np.round(line["query"], 3)) for line in shown} <= inliers
    assert plain != told and pair[told[0]].inliers > 8


def test_points_that_agree_are_inliers_and_not_those_of_other_places(verifying, network, asked, tmp_path):
    locator = verifying(usual=Ask(rerank_by="xfeat", verify=10))
    own = keypoints_of(network, asked[5], tmp_path)
    with serving(locator) as client:
        found = client.locate(as_bytes(asked[5]), "?top=1&rerank=10&agreement=true")[1]
    assert found["matches"][0]["name"] == "b/5.png", "what it shows"
    same = verify(own, locator.keypoints.of("b/5.png", locator.root / "b/5.png"))
    others = set()
    for row in locator._chance.rows(10):
        name = locator.records.names[row]
        if name != "b/5.png":  # all are 30 m apart
            others |= {
                tuple(p) for p in verify(own, locator.keypoints.of(name, locator.root / name)).query_points.tolist()
            }
    pairs = zip(same.query_points.tolist(), same.hit_points.tolist(), strict=True)
    wanted = [(query, hit) for query, hit in pairs if tuple(query) not in others]
    assert len(wanted) > 20 and others
    shown = [(line["query"], line["hit"]) for line in found["agreement"]]
    assert len(shown) > 20
    for query, hit in shown:
        assert any(np.allclose(query, q, atol=6e-4) and np.allclose(hit, h, atol=6e-4) for q, h in wanted)
    told = found["verification"]
    assert (told["inliers"], told["matches"]) == (same.inliers, same.matches)
    assert told["query_size"] == told["hit_size"] == list(asked[5].size)
    query, hit = ((points * told["query_size"]) for points in (same.query_points, same.hit_points))
    lines = np.c_[query, np.ones(len(query))] @ np.array(told["fundamental"]).T  # in the hit
    away = abs(np.sum(lines * np.c_[hit, np.ones(len(hit))], axis=1)) / np.hypot(lines[:, 0], lines[:, 1])
    assert np.median(away) < 1.5, "in pixels: what agrees does with this matrix"
    moved = [(hit[0] - query[0]) * 160 for query, hit in shown]
    assert np.median(moved) == pytest.approx(16, abs=1)


def test_what_one_question_wants_is_not_done_to_another(verifying, asked):
    """Of questions answered at once: one wants points that agree without re-ranking, which takes local descriptors."""
    locator = verifying(usual=Ask(rerank_by="xfeat", verify=4))
    image = np.ascontiguousarray(np.array(asked[2]).transpose(2, 0, 1))
    plain = Ask(rerank_by="xfeat", verify=4, rerank=0, agreement=True)
    wish = Ask(rerank_by="xfeat", verify=4, rerank=6)
    (alone,) = locator.answer_each([image], [wish])
    beside, together = locator.answer_each([image, image], [plain, wish])
    assert [match.name for match in together.matches] == [match.name for match in alone.matches]
    assert [match.score for match in together.matches] == [match.score for match in alone.matches]
    assert together.confidence_kind == alone.confidence_kind and beside.agreement is not None


def test_the_server_prepares_keypoints_when_it_starts(verifying, tmp_path, capsys):
    locator = verifying(tmp_path / "kept.sqlite")
    locator.prepare()
    assert "keypoints of 10 images" in capsys.readouterr().out and locator.keypoints.bytes_per_image > 12


def test_images_that_are_gone_are_told_without_a_path(verifying, asked, tmp_path):
    with serving(verifying(root=tmp_path / "gone", usual=Ask(rerank_by="xfeat"))) as client:
        status, found, _ = client.locate(as_bytes(asked[0]), "?rerank=5")
        assert status == 422 and "no keypoints" in found["error"] and "gone" not in json.dumps(found)
        assert client.locate(as_bytes(asked[0]), "?rerank=0")[0] == 200


def test_an_engine_that_measures_nothing_verifies_nothing(verifying, asked):
    locator = verifying(usual=Ask(rerank_by="xfeat"))
    locator.engine.measures = False
    assert locator.reranking(locator.usual) is None
    with serving(locator) as client:
        assert client.locate(as_bytes(asked[0]), "?rerank=5")[0] == 422
