"""Hard batches of places: such as look alike, and are not the same.

After CliqueMining (Izquierdo and Civera, ECCV 2024): a batch grows from a random place by places that are drawn the
likelier the nearer their descriptors are. There places are maximal cliques of images under 25 m apart, without what is
near a chosen one. Here they are made before, and those near a chosen one are left to later batches; only the most alike
are drawn from, for of thousands of places all would have nearly the same chance; each comes once an epoch at most.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.random import Generator

from vpr.training.places.place_set import PlaceSet

APART = 45.0  # metres between places of a batch: the 25 within which images match, and two radii of 10
DRAWN_FROM = 3  # times as many places as are drawn, the most alike
SEEDS, ROWS = 32, 1024  # places that others are compared with at once, and rows of descriptors


def most_alike(descriptors: torch.Tensor, spots: np.ndarray, image: int) -> np.ndarray:
    """A place's images [n] from one on, the most alike first, one of each other spot [n]: weak supervision, since what
    was taken at a place in different directions is not alike, and a panorama's images never show the same."""
    likeness = (descriptors.float() @ descriptors[image].float()).cpu().numpy()
    likeness[image] = np.inf
    order = np.argsort(-likeness, kind="stable")
    return order[np.sort(np.unique(spots[order], return_index=True)[1])]


def hard_batches(
    places: PlaceSet, descriptors: np.ndarray | torch.Tensor, batch: int, generator: Generator, apart: float = APART
) -> list[np.ndarray]:
    """The batches of an epoch: indices of 2 to `batch` places that look alike; no place is in two.

    Later batches are of what is left, and look less alike; places that find no other are left out. Descriptors
    [P, dim], on any device, are the mean of a place's images', or a random one's. Places of a batch lie `apart` metres
    apart at least, where positions are known, and are of one set.
    """
    where, left, batches = places.positions, np.ones(len(places), bool), []
    sets = np.zeros(len(places)) if places.sets is None else places.sets
    for seed, from_seed in _distances(torch.as_tensor(descriptors), generator.permutation(len(places)), left):
        others = np.flatnonzero(left & (sets == sets[seed]) & (np.arange(len(left)) != seed))
        distance = from_seed[others]
        drawn, rest = np.split(np.argsort(distance, kind="stable"), [DRAWN_FROM * batch])
        # The order of exponential times at these rates is a draw without putting back.
        rates = distance[drawn].max(initial=0) - distance[drawn] + np.finfo(np.float32).eps
        drawn = drawn[np.argsort(generator.exponential(size=len(drawn)) / rates)]
        chosen = [seed]
        for place in others[np.concatenate([drawn, rest])].tolist():
            if len(chosen) == batch:
                break
            if where is None or not np.hypot(*(where[chosen] - where[place]).T).min() < apart:  # also of NaN
                chosen.append(place)
        left[chosen] = False
        if len(chosen) > 1:
            batches.append(np.array(chosen))
    return batches


def _distances(descriptors: torch.Tensor, order: np.ndarray, left: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Of the places of `order` that are `left` [P] when their turn comes, the distances [P] of descriptors [P, dim] to
    theirs. Several are computed at once, by few rows at a time: of 60,000 places a float32 copy has 8 GB."""
    tiles = descriptors.split(ROWS)
    squares = torch.cat([tile.float().square().sum(dim=1) for tile in tiles])
    while len(order := order[left[order]]):
        seeds, order = order[:SEEDS], order[SEEDS:]
        own = descriptors[seeds].float()
        products = torch.cat([tile.float() @ own.T for tile in tiles])  # [P, seeds]
        squared = squares[:, None] + squares[seeds] - 2 * products
        for seed, column in zip(seeds.tolist(), squared.clamp(min=0).sqrt().T.cpu().numpy(), strict=True):
            if left[seed]:
                yield seed, column
