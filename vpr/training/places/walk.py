"""Places to train on without positions: neighbours in time, and what descriptors and geometry say is the same place."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from vpr.common.errors import UserError
from vpr.training.places.place_set import PlaceSet, grouped


def places_of_walk(name: str, lengths: Sequence[int], reach: int = 2, gap: int = 5) -> PlaceSet:
    """Each 2 `reach` + 1 frames in a row are a place; the `gap` frames up to the next are of none.

    With `reach` and `gap` 0 each image is a place. That is what an unordered folder takes, in which nothing says that
    two images show the same: views of one image then have to make the pairs. `lengths` are the frames of each walk;
    files are those of the first, then of the second. Raises a UserError: no walk is long enough.
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


def grow(places: PlaceSet, descriptors: np.ndarray, agree: Callable[[int, int], bool], nearest: int = 10) -> PlaceSet:
    """Places of a walk that comes by again: what looks alike and is confirmed becomes one place.

    TF-VPR expands places by neighbours of descriptors and contracts them by geometry. Here agreement is not passed on,
    by which a whole walk would become one place: the place that agrees with most takes in those that agree with itself,
    and places that agree with these alone are left out. So are frames of no place, unless all that they agree with has
    become one place, which they join. `agree` says whether two frames show the same, such as enough matches that
    verify; it is asked once for each of the `nearest` frames by descriptors [N, dim] that are of no or another place.
    """
    count, frames = len(places), len(descriptors)
    node = count + np.arange(frames)  # of each frame: its place, or itself where it has none
    for number, images in enumerate(places.images):
        node[images] = number
    confirmed, links = functools.cache(agree), [set[int]() for _ in range(count + frames)]
    for images in places.images:
        likeness = descriptors[images] @ descriptors.T  # [n, N]
        likeness[:, images] = -np.inf
        near = np.argsort(-likeness, axis=1, kind="stable")[:, : min(nearest, frames - len(images))]
        for one, other in zip(images.repeat(near.shape[1]).tolist(), near.ravel().tolist(), strict=True):
            if confirmed(min(one, other), max(one, other)):
                links[node[one]].add(int(node[other]))
                links[node[other]].add(int(node[one]))
    merged, free = np.full(count + frames, -1), set(range(count))
    for seed in sorted(free, key=lambda number: -len(links[number])):
        if seed in free:
            star = {seed} | links[seed] & free
            merged[list(star)] = seed
            free -= star.union(*(links[number] for number in star))
    for frame in range(count, count + frames):
        into = {int(merged[number]) for number in links[frame]}
        merged[frame] = into.pop() if len(into) == 1 else -1
    return grouped(places.name, merged[node])
