"""Was this place seen before? The frames of a folder one after the other, each compared with those of long before it.

    python examples/loop_closure.py frames/ --model=fast --weights=FILE [--keypointWeights=FILE]

No answer changes by later frames. With positions (docs/own-images.md) it prints how many of the places that were seen
before are found when no answer may be wrong: by single frames, and with what each further step adds.
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from vpr.cli.load import computing, keypoints_of, model_of
from vpr.cli.locating import database_images
from vpr.cli.options import parse_options
from vpr.cli.specs import reading
from vpr.common.device import choose_device
from vpr.common.errors import UserError
from vpr.data.frames import Frames
from vpr.data.places import PlaceImages
from vpr.retrieval.conditions.centring import centred
from vpr.retrieval.verification.keypoints import Keypoints
from vpr.retrieval.verification.pairs import verify
from vpr.search.sequences import SequenceRule, sequence_scores

APART = 20  # frames that are too new to be asked for
NEAR = 25.0  # metres within which two frames show one place
LENGTH, LOOKED_AT = 10, 5  # frames of a sequence; hits that are verified
STEPS = ("single frames", "their mean", "sequences", "verified")


@dataclass
class SeenBefore:
    """The frames of one camera so far."""

    mean: bool = False  # whether what all frames so far have in common is taken away
    sequences: bool = False  # whether the frames before each take part
    verified: bool = False  # whether keypoints order the first hits
    keypoints: list[Keypoints | None] = field(default_factory=list)
    # Float32 [capacity, dim], descriptors, of which as many are there as squared lengths.
    _frames: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    _squares: list[float] = field(default_factory=list)
    _total: np.ndarray | float = 0.0  # float64 [dim], their sum

    def add(self, descriptor: np.ndarray, keypoints: Keypoints | None) -> tuple[int, float] | None:
        """The next frame: which earlier one shows its place most likely, and a score of that; None: all are too new."""
        self._keep(descriptor, keypoints)
        now = len(self._squares) - 1
        if now - APART < 1:
            return None
        first = max(0, now - LENGTH) if self.sequences else now
        similarities = self._similarities(first, now - APART)  # [frames from first to now, old ones]
        if self.sequences:
            last, old = (Frames(np.zeros(count, np.int64), np.arange(count) + 0.0) for count in similarities.shape)
            similarities = sequence_scores(similarities, last, old, SequenceRule(LENGTH, causal=True))
        scores = similarities[-1]
        if not self.verified:
            return int(scores.argmax()), float(scores.max())
        hits = np.argsort(-scores, kind="stable")[:LOOKED_AT]
        inliers = [verify(self.keypoints[now], self.keypoints[hit]).inliers for hit in hits]
        best = int(np.argmax(inliers))
        return int(hits[best]), inliers[best] + float(scores[hits[best]])

    def _keep(self, descriptor: np.ndarray, keypoints: Keypoints | None) -> None:
        count = len(self._squares)
        if count == len(self._frames):
            grown = np.empty((max(256, 2 * count), len(descriptor)), np.float32)
            grown[:count] = self._frames.reshape(count, len(descriptor))
            self._frames = grown
        self._frames[count] = descriptor
        values = descriptor.astype(np.float64)
        self._squares.append(float(values @ values))
        self._total = self._total + values
        self.keypoints.append(keypoints)

    def _similarities(self, first: int, old: int) -> np.ndarray:
        """Cosines of the frames from `first` on with the first `old`, float32."""
        count = len(self._squares)
        frames, asking = self._frames[:old], self._frames[first:count]
        if not self.mean:
            return asking @ frames.T
        # (x - m) / |x - m| of all that are old, of which only products with the few that ask are needed.
        mean = np.asarray(self._total / count, np.float32)
        asking = centred(asking, mean)
        products = frames @ np.concatenate([asking, mean[None]]).T  # [old, m + 1]
        lengths = np.sqrt(np.maximum(np.array(self._squares[:old]) - 2 * products[:, -1] + mean @ mean, 1e-6))
        return ((products[:, :-1] - asking @ mean) / lengths[:, None]).T.astype(np.float32)


def main() -> None:
    """Ask for each frame, by each step in turn, and print what is found and how fast."""
    options = parse_options(["locate", "--root", *sys.argv[1:]])
    images, device = database_images(options), choose_device(options.device)
    read = reading(options, device)
    loaded, reader = model_of(options, device, database=images), read.of(images.database_files)
    model, kept = computing(loaded.model, options, device, len(reader.files)), keypoints_of(options, read)
    steps = STEPS if kept else STEPS[:-1]
    places = [SeenBefore(*(number <= done for number in range(1, 4))) for done in range(len(steps))]
    answers: list[list] = [[] for _ in places]
    seconds = np.zeros(len(places) + 2)
    for number in range(len(reader.files)):
        began = time.perf_counter()
        image = reader[number]
        if isinstance(image, UserError):
            raise image
        descriptor = model.describe(np.ascontiguousarray(image[None]))[0].astype(np.float32)
        seconds[0] += time.perf_counter() - began
        began = time.perf_counter()
        keypoints = kept.network.detect(image) if kept else None
        seconds[1] += time.perf_counter() - began
        for step, place in enumerate(places):
            began = time.perf_counter()
            answers[step].append(place.add(descriptor, keypoints))
            seconds[step + 2] += time.perf_counter() - began
    count = len(reader.files)
    print(f"{count} frames, those of the last {APART} not asked for; {loaded.model.name}; images as they are")
    for step, (name, found) in enumerate(zip(steps, answers, strict=True)):
        took = seconds[0] + seconds[step + 2] + (seconds[1] if name == "verified" else 0)
        print(f"{name}: {worth(found, images)}, {count / took:.1f} frames a second")


def worth(answers: list[tuple[int, float] | None], images: PlaceImages) -> str:
    """Recall at 100 % precision of answers, and precision where all are given, in words."""
    positions = np.asarray(images.places.database_positions, float)
    if not np.isfinite(positions).all():
        return f"{sum(answer is not None for answer in answers)} answers, unknown how many are right"
    metres = np.linalg.norm(positions[:, None] - positions[None], axis=2)  # [N, N]
    old = np.tri(len(positions), k=-APART - 1, dtype=bool)
    seen = (old & (metres <= NEAR)).any(axis=1)
    given = [(answer[1], metres[n, answer[0]] <= NEAR) for n, answer in enumerate(answers) if answer]
    wrong = max((score for score, right in given if not right), default=-np.inf)
    sure = sum(score > wrong for score, right in given if right)
    right = sum(right for _, right in given)
    return (
        f"of {seen.sum()} places seen before {100 * sure / max(1, seen.sum()):.1f}% found at 100% precision, "
        f"{100 * right / max(1, seen.sum()):.1f}% at {100 * right / max(1, len(given)):.1f}%"
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
