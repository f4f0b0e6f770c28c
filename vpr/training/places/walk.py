"""Places to train on without positions: neighbours in time, and what descriptors and geometry say is the same place."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.frames import find_sequences
from vpr.data.places import PlaceImages
from vpr.data.reader import ImageReader
from vpr.descriptors.describe import LocalDescribing, describe
from vpr.descriptors.local_maps import MemorySink
from vpr.models.place_model import PlaceModel
from vpr.retrieval.rerank import local_scores
from vpr.runs.local_projection import sampled_projection
from vpr.training.places.place_set import PlaceSet, grouped

NEAREST = 5  # frames by descriptors that are scored for each
VISIT = 20  # frames to either side of one that are of the same visit to a place
CHANCE = 200  # random pairs of frames, whose scores are those of different places
# Median deviations above their median from which on a score tells one place. Of 20 places joined along a path, by day,
# by night and on its other side, none is longer than a place; the 21 in a tower of like floors are of several.
DEVIATIONS = 10


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


def grow(
    places: PlaceSet, descriptors: np.ndarray, score: Callable[[int, int], float], least: float, visit: int = VISIT
) -> PlaceSet:
    """Places of walks that come by again: frames that confirm each other across visits are of one place.

    As TF-VPR expands places by neighbours of descriptors and contracts them by geometry. But along a path frames verify
    over a hundred metres: all that pass a threshold would be one place, where what scores best is nearby. Each frame
    takes the best by `score`, from `least` on, of the NEAREST by descriptors over `visit` frames away; two that take
    each other are a pair. Two places that have more pairs with each other than with any other become one. One that has
    more pairs with earlier frames of no place lies between places of that visit, too near to both, and is left out.

    Descriptors [N, dim] are of length 1; under different light, each walk's want their mean taken away before.
    """
    place_of, best = np.full(len(descriptors), -1), np.full(len(descriptors), -1)
    for number, images in enumerate(places.images):
        place_of[images] = number
    known = functools.cache(score)
    for frame in range(len(descriptors)):
        likeness = descriptors @ descriptors[frame]
        likeness[max(0, frame - visit) : frame + visit + 1] = -np.inf
        near = [int(n) for n in np.argsort(-likeness, kind="stable")[:NEAREST] if np.isfinite(likeness[n])]
        scores = {known(min(frame, other), max(frame, other)): other for other in reversed(near)}
        if scores and max(scores) >= least:
            best[frame] = scores[max(scores)]
    pairs = [(one, other) for one, other in enumerate(best.tolist()) if other >= 0 and best[other] == one]  # both ways
    votes = Counter((int(place_of[one]), int(place_of[other])) for one, other in pairs)
    favourite = {one: other for (one, other), _ in reversed(votes.most_common()) if min(one, other) >= 0}
    into = np.arange(len(places))
    for one, other in favourite.items():
        if favourite[other] == one:
            into[max(one, other)] = min(one, other)
    between = Counter(int(place_of[one]) for one, other in pairs if other < one and place_of[other] < 0)
    for place, count in between.items():
        if place >= 0 and count > votes[place, favourite.get(place, place)]:
            into[place] = -1
    return grouped(places.name, np.where(place_of < 0, -1, into[place_of]))


def grow_by_model(
    places: PlaceSet, frames: PlaceImages, source: ImageReader, model: PlaceModel, seed: int, batch_size: int | None
) -> list[list[int]]:
    """The frames of each place as of `grow`, by a model's descriptors and by how well its local descriptors agree in
    where they lie; in every process. `source` reads the frames."""
    names, found, generator = frames.places.database_names, places, np.random.default_rng(seed)
    sink = MemorySink(count := len(names))
    local = LocalDescribing(sampled_projection(model, source, seed, batch_size=batch_size), sink)
    described, _ = describe(model, source, range(count), batch_size, "frames of walks", local)
    if processes.is_main() and count > VISIT + 1:
        maps, descriptors, walks = sink.finished(), described.astype(np.float32), find_sequences(names).sequences
        for walk in np.unique(walks):
            descriptors[walks == walk] -= descriptors[walks == walk].mean(axis=0)
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True).clip(np.finfo(np.float32).tiny)

        def score(one: int, other: int) -> float:
            return float(local_scores(one, np.array([other]), maps, maps, "spatial")[0][0])

        ones = generator.integers(count - VISIT - 1, size=CHANCE)
        chance = np.array([score(one, int(generator.integers(one + VISIT + 1, count))) for one in ones.tolist()])
        usual = float(np.median(chance))  # which the few pairs that are of one place do not change
        found = grow(places, descriptors, score, usual + DEVIATIONS * float(np.median(np.abs(chance - usual))))
        say(f"{places.name}: {len(places)} places of walks, {len(found)} where they are seen again")
    return processes.broadcast([images.tolist() for images in found.images])
