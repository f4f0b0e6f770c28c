"""Was this place seen before? The frames of a folder one after the other, each compared with those of long before it.

    python examples/loop_closure.py frames/ --model=fast --weights=FILE [--keypointWeights=FILE]
    python examples/loop_closure.py toy_city/ --dataset=toy --split=val --model=fast --weights=FILE

Frames of a data set are its database, then its queries; those of the toy city along a path, each direction by itself.
No answer changes by later frames. With positions (docs/own-images.md) it prints how many of the frames of places seen
before get the right answer, of all of them and where few or no answers may be wrong.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from vpr.cli.load import computing, keypoints_of, model_of
from vpr.cli.locating import database_images
from vpr.cli.options import parse_options
from vpr.cli.specs import places_spec, reading
from vpr.common.device import choose_device
from vpr.common.errors import UserError
from vpr.data.places import PlaceImages, load_places
from vpr.retrieval.conditions.session import APART, WINDOW, Earlier
from vpr.retrieval.verification.keypoints import Keypoints
from vpr.retrieval.verification.pairs import verify

NEAR = 25.0  # metres within which two frames show one place
LOOKED_AT = 5  # hits that are verified
PRECISIONS = (1.0, 0.99, 0.95)
EVERY = 90  # degrees between the directions of the toy city that are taken: those between see half of the same
OTHER_WAY = 1e4  # metres by which places that are looked at in another direction are moved away


@dataclass(frozen=True)
class Way:
    """How a frame is compared with those before."""

    name: str
    window: int = WINDOW  # as of `Earlier`
    length: int = APART
    verified: bool = False


WAYS = (
    Way("single frames", 0, 0),
    Way(f"without the mean of the last {WINDOW}", length=0),
    Way("the same, verified", length=0, verified=True),
    Way(f"sequences of {APART}, with their means", window=0),
    Way(f"sequences of {APART} without them"),
    Way("the same, verified", verified=True),
)


@dataclass
class SeenBefore:
    """The frames of one camera so far."""

    way: Way
    keypoints: list[Keypoints | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._earlier = Earlier(self.way.window, self.way.length)

    def add(self, descriptor: np.ndarray, keypoints: Keypoints | None) -> tuple[int, float] | None:
        """The next frame: which earlier one shows its place most likely, and a score of that; None: all are too new."""
        self.keypoints.append(keypoints)
        scores, first = self._earlier.add(descriptor), self._earlier.first
        if not len(scores):
            return None
        hits = np.argsort(-scores, kind="stable")[: LOOKED_AT if self.way.verified else 1]
        found = scores[hits]
        if self.way.verified:
            inliers = np.array([verify(keypoints, self.keypoints[first + hit]).inliers for hit in hits])
            # Walls that repeat have many inliers, of which a sequence knows better.
            found = found * np.log1p(inliers) if self.way.length else inliers + found
        best = int(found.argmax())
        return first + int(hits[best]), float(found[best])


def main() -> None:
    """Ask for each frame, in each way, and print what is found and how fast."""
    options = parse_options(["locate", "--root", *sys.argv[1:]])
    known, device = known_images(options), choose_device(options.device)
    images = frames_of(options, known)
    read = reading(options, device)
    # Clusters are learnt of the database alone: other modes take them for the set's.
    loaded, reader = model_of(options, device, database=known), read.of(images.database_files)
    model, kept = computing(loaded.model, options, device, len(reader.files)), keypoints_of(options, read)
    ways = [way for way in WAYS if kept or not way.verified]
    places = [SeenBefore(way) for way in ways]
    answers: list[list] = [[] for _ in ways]
    seconds = np.zeros(len(ways) + 2)
    for image in pixels_of(reader, seconds):
        began = time.perf_counter()
        descriptor = model.describe(np.ascontiguousarray(image[None]))[0].astype(np.float32)
        seconds[0] += time.perf_counter() - began
        began = time.perf_counter()
        keypoints = kept.network.detect(image) if kept else None
        seconds[1] += time.perf_counter() - began
        for number, place in enumerate(places):
            began = time.perf_counter()
            answers[number].append(place.add(descriptor, keypoints))
            seconds[number + 2] += time.perf_counter() - began
    count, wanted = len(reader.files), "/".join(f"{100 * each:g}%" for each in PRECISIONS)
    print(f"{count} frames, those of the last {APART} not asked for; {loaded.model.name}; images as they are")
    print(f"one place: at most {NEAR:g} m apart; found at {wanted} precision, and right where all are answered")
    for number, way in enumerate(ways):
        took = seconds[0] + seconds[number + 2] + (seconds[1] if way.verified else 0)
        print(f"{way.name}: {worth(answers[number], images)}, {count / took:.1f} frames a second")


def pixels_of(reader, seconds: np.ndarray) -> Iterator[np.ndarray]:
    """The frames uint8 [3, H, W]; reading is of the time of all ways."""
    for number in range(len(reader.files)):
        began = time.perf_counter()
        image = reader[number]
        if isinstance(image, UserError):
            raise image
        seconds[0] += time.perf_counter() - began
        yield image


def known_images(options) -> PlaceImages:
    """A folder's images, or a split."""
    return database_images(options) if options.dataset == "folder" else load_places(places_spec(options), options.split)


def frames_of(options, images: PlaceImages) -> PlaceImages:
    """The frames in order: a folder's images, or a split's database and then its queries."""
    if options.dataset == "folder":
        return images
    places = images.places
    positions = np.concatenate([places.database_positions, places.query_positions])
    order = np.arange(len(positions))
    if options.dataset == "toy":
        order, positions = along_streets(images, positions, Path(options.root))
    names, files = [*places.database_names, *places.query_names], images.files
    joined = type(places)(**{**vars(places), "database_names": names, "database_positions": positions})
    return type(images)(**{**vars(images), "places": joined, "database_files": files}).only(order.tolist(), [])


def along_streets(images: PlaceImages, positions: np.ndarray, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The toy city's images along a path from station to nearest station, a direction after the other, its database
    before its queries; and their positions, where other directions are other places."""
    count = len(images.database_files)
    stations = np.unique(positions[:count], axis=0)
    path, left = [0], set(range(1, len(stations)))
    while left:
        path.append(min(left, key=lambda each: np.linalg.norm(stations[each] - stations[path[-1]])))
        left.remove(path[-1])
    ranks = np.linalg.norm(positions[:, None] - stations[path], axis=2).argmin(axis=1)
    yaws = [45 * (int(name.rpartition("yaw")[2].partition(".")[0]) - 1) for name in images.places.database_names]
    asked = json.loads((root / "toy_city.json").read_text())["query_headings"][images.split]
    ways = np.rint(np.array([*yaws, *asked]) / 45).astype(int) % 8  # as the database has them
    order = np.lexsort((ranks, ways, np.arange(len(positions)) >= count))
    order = order[45 * ways[order] % EVERY == 0]
    return order, positions + np.stack([OTHER_WAY * ways, np.zeros(len(ways))], axis=1)


def worth(answers: list[tuple[int, float] | None], images: PlaceImages) -> str:
    """Recall where so much of what is answered has to be right, and where all is answered, in words.

    A frame that shows no place that was seen before has no right answer.
    """
    positions = np.asarray(images.places.database_positions, float)
    if not np.isfinite(positions).all():
        return f"{sum(answer is not None for answer in answers)} answers, unknown how many are right"
    metres = np.linalg.norm(positions[:, None] - positions[None], axis=2)  # [N, N]
    old = np.tri(len(positions), k=-APART - 1, dtype=bool)
    seen = max(1, int((old & (metres <= NEAR)).any(axis=1).sum()))
    given = sorted((-answer[1], metres[n, answer[0]] <= NEAR) for n, answer in enumerate(answers) if answer)
    scores, right = np.array([score for score, _ in given]), np.cumsum([good for _, good in given])
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # answers as sure as each other are given together
    precision = right / np.arange(1, len(right) + 1)
    found = "/".join(f"{100 * max(right[last & (precision >= each)], default=0) / seen:.1f}" for each in PRECISIONS)
    total = int(right[-1]) if len(right) else 0
    return f"of {seen} frames of places seen before {found}% found, {100 * total / seen:.1f}% right of all {len(right)}"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
