"""Matches of the keypoints of two images, and those of them that agree with one fundamental matrix."""

from dataclasses import dataclass

import numpy as np

from vpr.retrieval.matching import memory
from vpr.retrieval.verification.keypoints import LONGEST, SCALE, Keypoints

LEAST_COSINE = 0.7  # of matches
PIXELS = 1.5  # that a match may lie off its epipolar line, in images of at most LONGEST pixels
ITERATIONS, SURE = 1000, 0.999  # 500 miss many of 100 matches that agree among 220
FEWEST = 8  # matches that a fundamental matrix is estimated from


@dataclass(frozen=True)
class Verified:
    """What two images have in common."""

    query_points: np.ndarray  # float32 [n, 2], (x, y) from 0 to 1: of the matches that agree
    hit_points: np.ndarray  # likewise
    fundamental: np.ndarray | None  # float64 [3, 3], from pixels of the query to lines in the hit; None: there is none
    matches: int  # how many there were before
    rows: np.ndarray  # int64 [n, 2], of these points among the keypoints of the query and of the hit

    @property
    def inliers(self) -> int:
        """How many agree."""
        return len(self.query_points)


def mutual_neighbours(query: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Pairs of descriptors int8 [n, d] and [m, d] that are each other's nearest: int64 [k, 2], in the query's order."""
    if not len(query) or not len(hit):
        return np.empty((0, 2), np.int64)
    products = memory.of(len(query), len(hit))[0]  # new memory costs half as much as the product
    np.matmul(query.astype(np.float32), hit.astype(np.float32).T, out=products)  # [n, m], exact
    nearest = products.argmax(axis=1)
    best = products[np.arange(len(query)), nearest]
    own = np.flatnonzero((best == products.max(axis=0)[nearest]) & (best > LEAST_COSINE * SCALE**2))
    own = np.sort(own[np.unique(nearest[own], return_index=True)[1]])  # of equals of the query the first counts
    return np.stack([own, nearest[own]], axis=1)


def verify(query: Keypoints, hit: Keypoints) -> Verified:
    """The matches of two images that agree with one fundamental matrix: MAGSAC++ (Barath et al., CVPR 2020), OpenCV's.

    The same images always have the same.
    """
    import cv2

    pairs = mutual_neighbours(query.descriptors, hit.descriptors)
    own, other = query.points[pairs[:, 0]], hit.points[pairs[:, 1]]
    none = Verified(own[:0], other[:0], None, len(pairs), pairs[:0])
    if len(pairs) < FEWEST:
        return none
    own_frame, other_frame = (np.array([one.width, one.height]) for one in (query, hit))
    own_scale, other_scale = (min(1, LONGEST / frame.max()) for frame in (own_frame, other_frame))
    own_pixels, other_pixels = own * own_frame * own_scale, other * other_frame * other_scale
    rule = cv2.UsacParams()
    rule.threshold, rule.confidence, rule.maxIterations, rule.randomGeneratorState = PIXELS, SURE, ITERATIONS, 0
    rule.score, rule.sampler = cv2.SCORE_METHOD_MAGSAC, cv2.SAMPLING_UNIFORM
    rule.loMethod, rule.final_polisher = cv2.LOCAL_OPTIM_NULL, cv2.MAGSAC  # an optimum on the way finds no more
    try:
        matrix, mask = cv2.findFundamentalMat(own_pixels, other_pixels, rule)
    except cv2.error:  # of points in a degenerate position
        return none
    if matrix is None or matrix.shape != (3, 3):
        return none
    agree = mask.ravel() > 0
    if min(_thickness(own_pixels[agree]), _thickness(other_pixels[agree])) < PIXELS:
        return none  # of points on a line all matches agree, whatever they are
    fundamental = np.diag([other_scale, other_scale, 1]) @ matrix @ np.diag([own_scale, own_scale, 1])
    return Verified(own[agree], other[agree], fundamental, len(pairs), pairs[agree])


def _thickness(points: np.ndarray) -> float:
    """How far points [n, 2] deviate from the line that fits them best: root mean square."""
    return float(np.linalg.svd(points - points.mean(axis=0), compute_uv=False)[-1] / np.sqrt(len(points)))
