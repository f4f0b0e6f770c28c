"""Verification by keypoints and means of conditions: time and bytes of an image, of a pair, of a question."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

from benchmarks.measure import Timing, time_of
from benchmarks.report import Row
from benchmarks.stages import Bench
from vpr.retrieval.conditions.centring import MapConditions, centred
from vpr.retrieval.matching import by_threads
from vpr.retrieval.verification import pairs
from vpr.retrieval.verification.keypoints import DIM, MOST, SCALE, KeypointNetwork, Keypoints
from vpr.retrieval.verification.layers import by_engine

SIZE = (270, 480)  # height and width of an image in pixels
SAME, AGREE = 300, 100  # keypoints of a pair that match, and those of them that two cameras see
IMAGES, WIDTH, CONDITIONS, DRAWN = 1000, 7168, 4, 4096  # descriptors that are centred, means that are chosen from


def verification(bench: Bench) -> list[Row]:
    """XFeat on an image, and what two images have in common."""
    from kornia.feature import XFeat

    torch.manual_seed(0)
    plain, fast = (KeypointNetwork(XFeat().net.state_dict()) for _ in range(2))
    fast.layers.load_state_dict(plain.layers.state_dict())
    by_engine(fast.layers, "openvino", 1)
    size = f"an image, {len(two_images()[0].pack()):,} bytes"
    image = np.random.default_rng(0).integers(0, 256, (3, *SIZE), dtype=np.uint8)
    slow, quick = bench.compare(lambda: plain.detect(image), lambda: fast.detect(image), 10 * bench.repeats)
    query, hit = two_images()
    textbook = time_of(lambda: by_threads(partial(matches_by_sorting, query), [hit]), bench.repeats)
    matching, whole = bench.compare(
        lambda: by_threads(partial(_neighbours, query), [hit]),
        lambda: by_threads(partial(pairs.verify, query), [hit]),  # each with one thread of BLAS, as in the program
        10 * bench.repeats,
    )
    return [
        Row("keypoints of an image", f"XFeat, {SIZE[1]}x{SIZE[0]}", slow, quick, limit=_ms(quick, size)),
        Row("matches of a pair", f"{MOST} keypoints each", textbook, matching, limit=_ms(matching, "a pair")),
        Row(
            "verification of a pair", f"{SAME} matches, {AGREE} of which agree", None, whole,
            limit=f"{_ms(whole, 'a pair')}, MAGSAC++ {1000 * (whole.median - matching.median):.3g} of them",
        ),
    ]  # fmt: skip


def conditions(bench: Bench) -> list[Row]:
    """Means subtracted from a map's descriptors, and the choice of a mean for one image."""
    values = np.random.default_rng(0).normal(size=(DRAWN, WIDTH)).astype(np.float16)
    some, mean = values[:IMAGES], values.mean(axis=0, dtype=np.float32)
    slow, quick = bench.compare(lambda: centred_one_by_one(some, mean), lambda: centred(some, mean))
    engine = SimpleNamespace(rows=lambda: np.arange(DRAWN), descriptors=values.__getitem__)
    known = MapConditions(engine, {str(n): values[n].astype(np.float32) for n in range(CONDITIONS)})
    choice = time_of(lambda: known.of(some[:1], "stored"), 10 * bench.repeats)  # the map's own mean is there by then
    return [
        Row("centring", f"{IMAGES} x {WIDTH}", slow, quick, 8 * some.size, 4 * some.size, _ms(quick, "in all")),
        Row(
            "choice of a mean", f"one image, {CONDITIONS} conditions x {WIDTH}", None, choice, None,
            4 * WIDTH * (CONDITIONS + 1), _ms(choice, "a question"),
        ),
    ]  # fmt: skip


def two_images() -> tuple[Keypoints, Keypoints]:
    """Keypoints of two images at random: the first SAME match, and AGREE of them lie where one shift has them."""
    random, found = np.random.default_rng(0), []
    descriptors = random.normal(size=(2, MOST, DIM))
    descriptors[1, :SAME] = descriptors[0, :SAME]
    points = random.uniform(0, 0.8, (2, MOST, 2))
    points[1, :AGREE] = points[0, :AGREE] + random.uniform(0, 0.2, (AGREE, 1)) * (1, 0)  # of depths of their own
    for own, where in zip(descriptors, points, strict=True):
        unit = own / np.linalg.norm(own, axis=1, keepdims=True)
        rounded = (SCALE * unit).round().clip(-127, 127).astype(np.int8)
        found.append(Keypoints(where.astype(np.float32), rounded, *SIZE[::-1]))
    return found[0], found[1]


def matches_by_sorting(query: Keypoints, hit: Keypoints) -> np.ndarray:
    """Pairs that are each other's nearest: all cosines sorted along both sides, in float32."""
    one, other = (each.descriptors.astype(np.float32) / SCALE for each in (query, hit))
    cosines = one @ other.T
    nearest, back = np.argsort(-cosines, axis=1)[:, 0], np.argsort(-cosines, axis=0)[0]
    own = np.arange(len(one))
    kept = (back[nearest] == own) & (cosines[own, nearest] > pairs.LEAST_COSINE)
    return np.stack([own[kept], nearest[kept]], axis=1)


def centred_one_by_one(descriptors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Descriptors minus a mean, of length 1 again, in float64."""
    away = (each.astype(np.float64) - mean for each in descriptors)
    return np.stack([each / np.linalg.norm(each) for each in away])


def _neighbours(query: Keypoints, hit: Keypoints) -> np.ndarray:
    return pairs.mutual_neighbours(query.descriptors, hit.descriptors)


def _ms(timing: Timing, what: str) -> str:
    return f"{1000 * timing.median:.3g} ms {what}"
