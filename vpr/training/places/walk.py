"""Places to train on without positions: neighbours in time, and what descriptors and geometry say is the same place."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from vpr.common.errors import UserError
from vpr.training.places.place_set import PlaceSet, grouped


def places_of_walk(name: str, lengths: Sequence[int], reach: int = 2, gap: int = 5) -> PlaceSet:
    """Each 2 `reach` + 1 frames in a row are a place; the `gap` frames up to the next are of none.

    With `reach` 0 each frame is a place, and with `gap` 0 as well all are. That is what an unordered folder takes, in
    which nothing says that two images show the same: views of one image then have to make the pairs.

    Args:
        lengths: frames of each walk; files are the frames of the first, then of the second ...
    """
    size, labels, first = 2 * reach + 1, [np.empty(0, np.int64)], 0
    for length in lengths:
        number, within = np.divmod(np.arange(length), size + gap)
        labels.append(np.where(within < size, first + number, -1))
        first += length
    found = grouped(name, np.concatenate(labels), least=min(2, size))
    if not len(found):
        raise UserError(f"{name}: no walk has {min(2, size)} frames, wanted {size} for a place: add frames")
    return found


def grow(places: PlaceSet, descriptors: np.ndarray, agree: Callable[[int, int], bool], nearest: int = 3) -> PlaceSet:
    """Places of a walk that comes by again: what looks alike and is confirmed becomes one place.

    As TF-VPR expands places by neighbours of descriptors and contracts them by geometry. Agreement is not passed on
    from place to place, by which a whole walk would become one: the place that agrees with most others takes in those
    that agree with itself, and places that agree with these only are left out. A frame of no place joins where all
    places that it agrees with have become one; what agrees with several is in between, and stays out.

    Args:
        descriptors: float [N, dim], of length 1, of all frames.
        agree: whether two frames show the same, such as enough matches that verify; asked once for each pair.
        nearest: frames outside of its place that are tried for each frame of a place.
    """
    place_of = np.full(len(descriptors), -1)
    for number, images in enumerate(places.images):
        place_of[images] = number
    # Places that each agrees with: of the places, then of the frames, of which those of no place are looked at.
    confirmed, links = functools.cache(agree), [set[int]() for _ in range(len(places) + len(descriptors))]
    for number, images in enumerate(places.images):
        likeness = descriptors[images] @ descriptors.T  # [n, N]
        likeness[:, images] = -np.inf
        near = np.argsort(-likeness, axis=1, kind="stable")[:, : min(nearest, len(descriptors) - len(images))]
        for one, other in zip(images.repeat(near.shape[1]).tolist(), near.ravel().tolist(), strict=True):
            if confirmed(min(one, other), max(one, other)):
                links[place_of[other] if place_of[other] >= 0 else len(places) + other].add(number)
                if place_of[other] >= 0:
                    links[number].add(int(place_of[other]))
    merged, free = np.full(len(places), -1), set(range(len(places)))
    for seed in sorted(free, key=lambda number: -len(links[number])):
        if seed in free:
            star = {seed} | links[seed] & free
            merged[list(star)] = seed
            free -= star.union(*(links[number] for number in star))
    labels = np.where(place_of < 0, -1, merged[place_of])
    for frame in np.flatnonzero(place_of < 0):
        into = {int(merged[number]) for number in links[len(places) + frame]}
        labels[frame] = into.pop() if len(into) == 1 else -1
    return grouped(places.name, labels)
