"""The node for ROS 2: what it makes of an answer. The node itself needs rclpy, which is not here."""

import runpy
from pathlib import Path

import numpy as np
import pytest

NODE = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / "ros2" / "place_node.py"))
PROBABILITY = "probability that the first hit lies within 25 m, learnt on ..."


def match(east, north, placed=True):
    degrees = {"latitude": 40.0 + north / 1e5, "longitude": -80.0 + east / 1e5} if placed else dict.fromkeys(
        ("latitude", "longitude")
    )  # fmt: skip
    return {"name": f"{east}_{north}.jpg", "easting": 585000.0 + east, "northing": 4477000.0 + north, **degrees}


def answer(matches, confidence=0.9, kind=PROBABILITY, refused=False, **more):
    sure = {"confidence": confidence, "confidence_kind": kind, "refused": refused}
    return {"matches": matches, **sure, "uncertainty": None, **more}


def test_the_place_is_that_of_the_best_match():
    found = NODE["place_in"](answer([match(10, 20), match(500, 0)]))
    assert found["latitude"] == pytest.approx(40.0002) and found["longitude"] == pytest.approx(-79.9999)
    assert (found["easting"], found["northing"]) == (585010, 4477020)


@pytest.mark.parametrize(
    "unsure",
    [
        answer([]),
        answer([match(0, 0)], refused=True),
        answer([match(0, 0)], confidence=0.4),
        answer([match(0, 0, placed=False), match(9, 9)]),
    ],
)
def test_no_place_where_the_server_is_not_sure(unsure):
    assert NODE["place_in"](unsure) is None


def test_a_score_that_is_no_probability_is_no_reason_to_be_silent():
    ratio = "1 - (descriptor distance of the best match) / (...), no probability; near 0 another place looks as similar"
    assert NODE["place_in"](answer([match(0, 0)], confidence=0.01, kind=ratio)) is not None
    assert NODE["place_in"](answer([match(0, 0)], confidence=None, kind=ratio)) is not None


def test_the_covariance_is_what_the_server_tells():
    rows = [[30.0, 4.0], [4.0, 12.0]]
    found = NODE["place_in"](answer([match(0, 0)], uncertainty={"metres": 5.5, "covariance": rows}))
    assert found["covariance"] == [30, 4, 4, 12]
    whole = np.reshape(NODE["pose_covariance"](found["covariance"]), (6, 6))
    np.testing.assert_array_equal(whole[:2, :2], rows)
    assert np.count_nonzero(whole) == 8 and (np.diag(whole)[2:] >= 1e6).all()
    unknown = NODE["place_in"](answer([match(0, 0)]))["covariance"]
    np.testing.assert_allclose(np.reshape(unknown, (2, 2)), 25**2 * np.eye(2))
