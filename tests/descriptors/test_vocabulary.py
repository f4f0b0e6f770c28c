"""k-means of local descriptors: how positions are sampled, and what centroids are."""

import numpy as np
import pytest

from vpr.descriptors.vocabulary import cluster, sample_of_map

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("height", "width", "count"), [(15, 17, 100), (10, 10, 100), (3, 4, 12)])
def test_samples_are_at_distinct_positions_and_of_length_1(height, width, count):
    feature = RANDOM.normal(size=(6, height, width)).astype(np.float32) * 5
    sample = sample_of_map(feature, seed=[123, 4])
    assert sample.shape == (count, 6)
    assert np.abs(np.linalg.norm(sample.astype(np.float64), axis=1) - 1).max() < 1e-6
    rows = [feature[:, y, x].astype(np.float64) for y in range(height) for x in range(width)]
    normalised = np.stack([row / np.linalg.norm(row) for row in rows])
    distance = np.linalg.norm(sample[:, None] - normalised[None], axis=2)
    assert distance.min(axis=1).max() < 1e-6
    assert len(set(distance.argmin(axis=1).tolist())) == count


def test_sampled_positions_depend_on_the_seed():
    feature = RANDOM.normal(size=(4, 20, 20)).astype(np.float32)
    first, again, other = (sample_of_map(feature, seed=[123, image]) for image in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_centroids_are_the_means_of_all_points_assigned_to_them():
    sizes, dim = [2500, 900, 500, 300], 5
    middles = 10 * np.eye(4, dim)
    points = np.concatenate(
        [middle + RANDOM.normal(0, 0.5, (size, dim)) for middle, size in zip(middles, sizes, strict=True)]
    ).astype(np.float32)
    assert len(points) > 256 * 4
    centroids = cluster(points[RANDOM.permutation(len(points))], 4, seed=123)
    assert centroids.shape == (4, dim)
    nearest = ((points[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=2).argmin(axis=1)
    for index, centroid in enumerate(centroids):
        own = points[nearest == index].astype(np.float64)
        assert len(own) > 0
        assert np.abs(own.mean(axis=0) - centroid).max() < 1e-3


def test_centroids_depend_on_the_seed():
    points = RANDOM.uniform(size=(500, 6)).astype(np.float32)
    first, again, other = (cluster(points, 8, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and np.abs(first - other).max() > 1e-2


def test_clusters_can_be_as_many_as_points():
    points = 10 * np.eye(6, dtype=np.float32)
    centroids = cluster(points, 6, seed=1)
    distance = np.linalg.norm(centroids[:, None] - points[None], axis=2)
    assert sorted(distance.argmin(axis=1).tolist()) == list(range(6)) and distance.min(axis=1).max() < 1e-5
