"""Frames: images that are consecutive frames, found from folders and the numbers in file names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

BREAK = 10  # a step of over so many usual ones parts two sequences
NUMBER = re.compile(r"\d{2,}x\d{2,}|1\d{9}\.\d+|\d+", re.IGNORECASE)  # width and height, seconds since 1970, any other
KNOWN_STEPS = 3  # steps from which on a sequence's own median is its usual step


@dataclass(frozen=True)
class Frames:
    """Which sequence each image is a frame of, and where in it."""

    sequences: np.ndarray  # int64 [N], equal where two images are of one sequence
    # float64 [N], in the order of time within a sequence: the number in the name (of a frame, or a time), less the
    # first of its sequence.
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.sequences)

    def of(self, images: np.ndarray | slice) -> "Frames":
        """The same of these images alone."""
        return Frames(self.sequences[images], self.numbers[images])

    def order(self) -> np.ndarray:
        """Indices of the images, sequence by sequence, each in the order of time: int64 [N]."""
        return np.lexsort((self.numbers, self.sequences))

    def text(self) -> str:
        """How many sequences there are, how long they are, and the usual step of the numbers; of one image at least."""
        _, lengths = np.unique(self.sequences, return_counts=True)
        spread = " to ".join(map(str, sorted({min(lengths), max(lengths)})))
        sequences = f"{len(lengths)} sequence{'s' * (len(lengths) > 1)} of {spread} frames"
        return f"{len(self)} images in {sequences}, step {usual_step(self.of(self.order())):g}"


def find_sequences(names: Sequence[str]) -> Frames:
    """The sequences among images.

    Images are of one sequence if they lie in one folder and their names differ only in the last number. A step between
    two consecutive numbers that is over BREAK times the sequence's median step (of a sequence of few frames, the median
    step of all) begins another one. Images without a number in the name are a sequence in the order of their names.
    `names`: paths of the images, in any order.
    """
    parts = [sequence_and_number(name) for name in names]
    ranks = {name: rank for rank, name in enumerate(sorted(names))}
    numbers = np.array([ranks[name] if n is None else n for name, (_, n) in zip(names, parts, strict=True)], float)
    _, groups = np.unique(np.array([group for group, _ in parts], object), return_inverse=True)
    order = np.lexsort((numbers, groups))
    groups, ordered = groups[order], numbers[order]
    begins = np.diff(groups, prepend=-1) > 0
    begins |= _breaks(ordered, begins)
    starts = np.flatnonzero(begins)
    sequence_of = np.cumsum(begins) - 1
    sequences, since = np.empty(len(names), np.int64), np.empty(len(names))
    sequences[order], since[order] = sequence_of, ordered - ordered[starts][sequence_of]
    return Frames(sequences, since)


def sequence_and_number(name: str) -> tuple[str, float | None]:
    """What the names of a sequence have in common, with the folder, and the number of the frame.

    The number is the last one in the name that is no width and height (640x480), None where there are no digits. A name
    that is a decimal number, a time in seconds, is that, and so is a time in seconds since 1970 within a name. Names
    that begin with @ tell positions, so that a sequence has the folder alone in common: their number is the eighth
    field, where VPR-datasets-downloader puts the frame, or in shorter names the last behind the fifth. Without one
    they are of no sequence.
    """
    path = PurePath(name)
    folder, fields = path.parent.as_posix(), path.name.split("@")
    if fields[0] == "" and len(fields) > 1:
        frame = fields[7] if len(fields) > 8 else "@".join(fields[5:-1])
        digits = re.findall(r"\d+", frame) if len(fields) <= 8 or frame.isdecimal() else []
        return (folder, float(digits[-1])) if digits else (name, None)
    if re.fullmatch(r"\d+\.\d+", path.stem):
        return folder, float(path.stem)
    numbers = [each for each in NUMBER.finditer(path.stem) if "x" not in each[0].lower()]
    last = numbers[-1] if numbers else re.search(r"\d+(?=\D*$)", path.stem)
    if last is None:
        return folder, None
    return f"{folder}/{path.stem[: last.start()]}*{path.stem[last.end() :]}", float(last[0])


def usual_step(frames: Frames) -> float:
    """The median step from frame to frame within sequences that are in order, 0 not counted; 1 where there is none."""
    steps = np.diff(frames.numbers)[np.diff(frames.sequences) == 0]
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else 1.0


def _breaks(ordered: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Where a step is so large that another sequence begins: bool [N], of numbers that are ordered within groups."""
    breaks, groups = np.zeros(len(ordered), bool), np.cumsum(begins)
    usual = usual_step(Frames(groups, ordered))
    starts = np.flatnonzero(begins)
    for start, stop in zip(starts, [*starts, len(ordered)][1:], strict=True):
        steps = np.diff(ordered[start:stop])
        own = np.median(steps[steps > 0]) if (steps > 0).sum() >= KNOWN_STEPS else usual
        breaks[start + 1 : stop] = steps > BREAK * own
    return breaks


def times_in_sequences(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The sequence of each image and its rank among that sequence's frames, int64 [N]; equal names have equal ranks.

    Names are told apart without their folders up to one that says which role images have: database, gallery, query or
    queries (and what follows a _), or what else the folder of a database may be called in a split.
    """
    roles = r"database|gallery|query|queries|(?:train|val|test)/(?:db|index|ref|references?)"
    prefix = re.compile(rf"^(?:.*/)?(?:{roles})(?:_[^/]*)?/")
    found = find_sequences([prefix.sub("", PurePath(name).as_posix()) for name in names])
    _, frames = np.unique(np.stack([found.sequences, found.numbers], axis=1), axis=0, return_inverse=True)
    frames = frames.ravel()
    firsts = np.full(found.sequences.max(initial=-1) + 1, len(names))
    np.minimum.at(firsts, found.sequences, frames)
    return found.sequences, frames - firsts[found.sequences]
