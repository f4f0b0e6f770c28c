"""What a training on batches of places takes: images by place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlaceSet:
    """Images by place; no image is in two places, and each place has at least two, or one of which views make pairs."""

    name: str
    images: list[np.ndarray]  # of each place int64 [n], of the split's files: the database's, then the queries'
    # float64 [P, 2] in metres, the mean of each place's images; NaN, or None for all: unknown.
    positions: np.ndarray | None = None
    sets: np.ndarray | None = None  # int64 [P], which set each place is of: a batch is of one alone; None: one set

    def __len__(self) -> int:
        return len(self.images)


def grouped(name: str, labels: np.ndarray, positions: np.ndarray | None = None, least: int = 2) -> PlaceSet:
    """Images that share a label [N] of 0 or more make a place, in the order of labels, if they are `least` or more."""
    order = np.argsort(labels, kind="stable")
    order = order[labels[order] >= 0]
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    images = [each for each in groups if len(each) >= max(least, 1)]
    means = None if positions is None else np.array([positions[each].mean(axis=0) for each in images]).reshape(-1, 2)
    return PlaceSet(name, images, means)


def joined(sets: Sequence[PlaceSet]) -> PlaceSet:
    """Sets of the same split's files as one, of which a batch is of one set's places, and of one of its own sets'."""
    where = [np.full((len(one), 2), np.nan) if one.positions is None else one.positions for one in sets]
    images, of, first = [each for one in sets for each in one.images], list[np.ndarray](), 0
    for one in sets:
        of.append(first + (np.zeros(len(one), np.int64) if one.sets is None else one.sets))
        first = int(of[-1].max(initial=first)) + 1
    return PlaceSet("+".join(one.name for one in sets), images, np.concatenate(where), np.concatenate(of))
