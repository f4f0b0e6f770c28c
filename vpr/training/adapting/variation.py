"""Directions in which descriptors of one place differ: from another spot, by night, from another angle.

Descriptors of one place should be one. Of their differences d_i = x_a - x_b, over pairs of images of a place and over
styled views of an image, the principal directions B hold most of what a change of light or viewpoint does to a
descriptor; y = (x - B^T B x) / |x - B^T B x| has lost it. Nothing else moves, so that other places lose little. In
speaker recognition this is nuisance attribute projection (Solomonoff, Campbell, Boardman, ICASSP 2005); it is the
limit of a linear discriminant whose variance within a class is infinite in r directions and equal in all others.
"""

import numpy as np
import torch

MOST_DIFFERENCES = 4000  # rows that directions are learnt of, at most: 0.5 GB at 32,768 dimensions
NEIGHBOURS = 2  # images of its place that an image is compared with
STANDING = 1.0  # metres within which images are taken from one spot, and may look elsewhere
AT_ONCE = 1000  # images whose products with all others are in memory


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


def without(descriptors: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
    """Descriptors [..., D] of length 1 without their parts in orthonormal directions [r, D]."""
    return torch.nn.functional.normalize(descriptors - (descriptors @ removed.T) @ removed, dim=-1)
