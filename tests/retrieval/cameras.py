"""Keypoints of points in space that two cameras see, and of what they do not."""

import numpy as np

from vpr.retrieval.verification.keypoints import DIM, SCALE, Keypoints


def unit_descriptors(count, random):
    """int8 [count, DIM], unit vectors in random directions."""
    values = random.normal(size=(count, DIM))
    return np.round(values / np.linalg.norm(values, axis=1, keepdims=True) * SCALE).clip(-127, 127).astype(np.int8)


def seen(space, rotation, centre, width, height, focal):
    """Where a camera sees points [n, 3]: pixels [n, 2]."""
    local = (space - centre) @ rotation.T
    return local[:, :2] / local[:, 2:] * focal + (width / 2, height / 2)


def turned(degrees):
    """A rotation about the vertical axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def two_views(points=120, outliers=40, seed=0, sizes=((640, 480), (1280, 720)), noise=0.0):
    """Keypoints of two cameras, the same row being the same point in space; the last `outliers` rows look alike, and
    are not. The cameras have other sizes and focal lengths; the second has moved 1 m aside and turned by 8 degrees."""
    random = np.random.default_rng(seed)
    space = random.uniform((-3, -2, 6), (3, 2, 14), (4 * (points + outliers), 3))
    views = []
    for (width, height), degrees, centre, focal in zip(
        sizes, (0, 8), ((0, 0, 0), (1, 0.1, 0.2)), (1.0, 0.8), strict=True
    ):
        views.append(seen(space, turned(degrees), np.array(centre), width, height, focal * width) / (width, height))
    inside = np.flatnonzero(np.all([(view > 0.02) & (view < 0.98) for view in views], axis=(0, 2)))
    views = [view[inside[: points + outliers]] for view in views]
    assert len(views[0]) == points + outliers
    views[1][points:] = random.uniform(0, 1, (outliers, 2))
    descriptors = unit_descriptors(points + outliers, random)
    return [
        Keypoints((view + random.normal(0, noise, view.shape) / size).astype(np.float32), descriptors, *size)
        for view, size in zip(views, sizes, strict=True)
    ]


def sampson(fundamental, query, hit, scales=(1.0, 1.0)):
    """First-order distances of matches in pixels [n, 2] from a fundamental matrix, of images that were scaled."""
    matrix = np.diag([1 / scales[1], 1 / scales[1], 1]) @ fundamental @ np.diag([1 / scales[0], 1 / scales[0], 1])
    distances = []
    for (x, y), (u, v) in zip(query * scales[0], hit * scales[1], strict=True):
        line, back = matrix @ (x, y, 1), matrix.T @ (u, v, 1)
        distances.append(abs(line @ (u, v, 1)) / np.sqrt(line[0] ** 2 + line[1] ** 2 + back[0] ** 2 + back[1] ** 2))
    return np.array(distances)
