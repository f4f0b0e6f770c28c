"""Directions in which descriptors of one place differ: from another spot, by night, from another angle.

Descriptors of one place should be one. Of their differences x_a - x_b, over pairs of images of a place and over styled
views of an image, the principal directions b_i hold most of what a change of light or viewpoint does to a descriptor,
with the mean squares v_i. A descriptor keeps the share l / (v_i + l) of its part in each, and all of the rest, so that
other places lose little: y = (x - B^T B x) / |x - B^T B x| with the rows sqrt(v_i / (v_i + l)) b_i of B. Speaker
recognition knows the limit of a small l as nuisance attribute projection (Solomonoff, Campbell, Boardman, ICASSP 2005)
and the root of the share as within-class covariance normalisation (Hatch, Kajarekar, Stolcke, Interspeech 2006).
"""

import numpy as np
import torch

MOST_DIFFERENCES = 4000  # rows that directions are learnt of, at most: 0.5 GB at 32,768 dimensions
NEIGHBOURS = 2  # images of its place that an image is compared with
SMALLEST = 1e-12  # mean square of a direction that differs at all
STANDING = 1.0  # metres within which images are taken from one spot, and may look elsewhere


def pairs_of_places(descriptors: torch.Tensor, positions: np.ndarray, radius: float) -> np.ndarray:
    """Images of one place: each with the NEIGHBOURS that are the most alike of those over 1 m and at most `radius`
    metres away, int64 [M, 2]. The nearest by position may look the other way; the paper (section 4) chooses a query's
    positive by descriptors too.

    Args:
        descriptors: [N, D] of length 1.
        positions: [N, 2] in metres; images without one (NaN) have no pair.
    """
    from scipy.spatial import cKDTree  # scipy takes a while to import

    known = np.flatnonzero(np.isfinite(positions).all(axis=1))
    if not len(known):
        return np.empty((0, 2), np.int64)
    tree, found = cKDTree(positions[known]), []
    for image in known:
        near = known[tree.query_ball_point(positions[image], radius)]
        near = near[np.hypot(*(positions[near] - positions[image]).T) > STANDING]
        if len(near):
            alike = (descriptors[near] @ descriptors[image]).numpy()
            found += [(image, other) for other in near[np.argsort(-alike, kind="stable")[:NEIGHBOURS]]]
    return np.array(found, np.int64).reshape(-1, 2)


def differences(views: torch.Tensor, pairs: np.ndarray, seed: int) -> torch.Tensor:
    """Differences within places, at most MOST_DIFFERENCES [M, D]: of pairs, and of views to the images as they are.

    Both count alike, however many they are.

    Args:
        views: [N, V, D] descriptors of length 1 of images in their views, the first as they are.
        pairs: int64 [M, 2] of the N images.
    """
    styled = (views[:, 1:] - views[:, :1]).flatten(0, 1)  # [N (V - 1), D]
    real = views[pairs[:, 0], 0] - views[pairs[:, 1], 0]
    generator, parts = np.random.default_rng(seed), []
    for rows in (styled, real):
        chosen = np.sort(generator.permutation(len(rows))[: MOST_DIFFERENCES // 2])
        parts.append(rows[chosen])
    styled, real = parts
    return torch.cat([styled * (len(real) / len(styled)) ** 0.5, real]) if len(real) else styled


def directions(rows: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """The `count` principal directions of differences [M, D] about zero, orthonormal, the largest first [r, D]."""
    from sklearn.utils.extmath import randomized_svd

    count = min(count, *rows.shape)
    _, _, found = randomized_svd(rows.numpy(), count, n_iter=3, random_state=seed)
    return torch.from_numpy(np.ascontiguousarray(found, np.float32))


def weighted(basis: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """The rows of B [r, D] for an orthonormal basis [r, D] of differences [M, D]: l is the mean square in direction
    `count`, so that those before it lose more than half of a descriptor's part in them."""
    squares = (rows @ basis.T).pow(2).mean(dim=0)  # [r]
    least = squares[min(count, len(squares)) - 1].clamp_min(SMALLEST)
    return (squares / (squares + least)).sqrt()[:, None] * basis


def without(descriptors: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """Descriptors [..., D] x -> y, of length 1, with B the rows of `removed` [r, D]."""
    return torch.nn.functional.normalize(descriptors - (descriptors @ removed.T) @ removed, dim=-1)
