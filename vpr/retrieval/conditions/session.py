"""The last frames of one camera, by which the next is searched, the mean of all, and which of them it saw before."""

from dataclasses import dataclass, field

import numpy as np

from vpr.data.frames import Frames
from vpr.search.rules import SPEEDS, SequenceRule
from vpr.search.sequences import sequence_scores

RULE = SequenceRule(10, causal=True, speeds=(0.0, *SPEEDS))  # at speed 0 the camera stands still
APART = 20  # frames that are too new to be asked for
WINDOW = 20  # frames whose mean is subtracted from the last of them
BLOCK, BLOCKS = 64, 16  # frames that are dropped at once, and how many times as many are kept


@dataclass(eq=False)
class Earlier:
    """The frames of one camera so far, of which those of long before are compared with the next.

    What light, lens and pose of the camera add to all frames of a while is in the mean of the last ones, and is
    subtracted: else a frame is more like all others of the same walk than like its own place in another one.
    """

    window: int = WINDOW  # frames in that mean, the frame itself among them; 0: nothing is subtracted
    length: int = APART  # frames before each that take part, at most APART; 0: single frames
    first: int = 0  # the oldest frame that is kept
    nbytes: int = 0  # of the descriptors that are kept
    _last: list[np.ndarray] = field(default_factory=list)  # float32 [dim], of the window
    blocks: list[np.ndarray] = field(default_factory=list)  # float32 [up to BLOCK, dim], centred
    _cosines: list[np.ndarray] = field(default_factory=list)  # of each of the last frames with all before it

    def add(self, descriptor: np.ndarray) -> np.ndarray:
        """Take the next frame [dim]: how like it each frame from `first` on is, but for the last APART; float32 [n]."""
        self._make_room(len(descriptor))
        value = descriptor.astype(np.float32)
        if self.window:
            self._last = [*self._last, value][-self.window :]
            value = value - np.mean(self._last, axis=0)
        value /= max(float(np.linalg.norm(value)), 1e-12)
        cosines = np.concatenate([block @ value for block in self.blocks])
        self._cosines = [*self._cosines, cosines][-1 - self.length :]
        scores, old = cosines[:0], len(cosines) - APART
        if old > 0:
            rows = np.stack([each[:old] for each in self._cosines])  # [frames, old]
            last, known = (Frames(np.zeros(count, np.int64), np.arange(count) + 0.0) for count in rows.shape)
            scores = sequence_scores(rows, last, known, SequenceRule(self.length, causal=True))[-1]
        self.blocks[-1] = np.concatenate([self.blocks[-1], value[None]])
        self.nbytes = sum(each.nbytes for each in (*self.blocks, *self._last))
        return scores

    def _make_room(self, dim: int) -> None:
        if self.blocks and len(self.blocks[-1]) < BLOCK:
            return
        if len(self.blocks) == BLOCKS:
            del self.blocks[0]
            self.first, self._cosines = self.first + BLOCK, [each[BLOCK:] for each in self._cosines]
        self.blocks.append(np.empty((0, dim), np.float32))


@dataclass(eq=False)
class Session:
    """What is known of the frames of one camera, in the order in which they came.

    It is in memory alone: after a restart it begins anew.
    """

    rule: SequenceRule = RULE  # how similarities of frames are combined; no frame has those after it
    # Float [n, dim], descriptors as they were searched with, the newest last; no more than the rule looks back at.
    frames: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float16))
    total: np.ndarray | float = 0.0  # float64 [dim], sum of all descriptors
    count: int = 0  # of all frames
    earlier: Earlier = field(default_factory=Earlier)
    seen: tuple[int, float] | None = None  # which earlier frame is most like the last, from 0, and its score

    def with_next(self, descriptors: np.ndarray, step: float) -> tuple[np.ndarray, Frames]:
        """The frames and those that follow them [m, dim], and their order, numbered in steps."""
        frames = np.concatenate([self.frames.reshape(-1, descriptors.shape[1]), descriptors])
        return frames, Frames(np.zeros(len(frames), np.int64), step * np.arange(len(frames)))

    def count_in(self, descriptors: np.ndarray) -> None:
        """The next frames, [m, dim], take part in the mean."""
        self.total = self.total + descriptors.sum(axis=0, dtype=np.float64)
        self.count += len(descriptors)
        for descriptor in descriptors:
            scores = self.earlier.add(descriptor)
            self.seen = (self.earlier.first + int(scores.argmax()), float(scores.max())) if len(scores) else None

    def add(self, descriptors: np.ndarray) -> None:
        """Take the next frames, [m, dim]."""
        self.frames = self.with_next(descriptors, 1)[0][-self.rule.length :]
