"""What a training on batches of places takes: images by place."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlaceSet:
    """Images by place; no image is in two places, and each place has at least two."""

    name: str
    images: list[np.ndarray]  # of each place int64 [n], of the split's files: the database's, then the queries'
    positions: np.ndarray | None = None  # float64 [P, 2] in metres, the mean of each place's images; None: unknown

    def __len__(self) -> int:
        return len(self.images)
