"""The last frames of one camera, by which the next is searched, and the mean of all of them."""

from dataclasses import dataclass, field

import numpy as np

from vpr.data.frames import Frames
from vpr.search.rules import SPEEDS, SequenceRule

# At speed 0 the camera stands still.
RULE = SequenceRule(10, causal=True, speeds=(0.0, *SPEEDS))


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

    def with_next(self, descriptors: np.ndarray, step: float) -> tuple[np.ndarray, Frames]:
        """The frames and those that follow them [m, dim], and their order, numbered in steps."""
        frames = np.concatenate([self.frames.reshape(-1, descriptors.shape[1]), descriptors])
        return frames, Frames(np.zeros(len(frames), np.int64), step * np.arange(len(frames)))

    def count_in(self, descriptors: np.ndarray) -> None:
        """The next frames, [m, dim], take part in the mean."""
        self.total = self.total + descriptors.sum(axis=0, dtype=np.float64)
        self.count += len(descriptors)

    def add(self, descriptors: np.ndarray) -> None:
        """Take the next frames, [m, dim]."""
        self.frames = self.with_next(descriptors, 1)[0][-self.rule.length :]
