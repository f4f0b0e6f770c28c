"""Local descriptors for re-ranking: a few dimensions that keep most of what tells them apart."""

from dataclasses import dataclass

import numpy as np

LOCAL_DIM = 64


@dataclass(frozen=True, eq=False)
class LocalProjection:
    """What projects the directions of local descriptors onto their principal components; see `vpr.models.pca`."""

    mean: np.ndarray  # float32 [D], of local descriptors of length 1
    components: np.ndarray  # float32 [d, D], principal components, those of the largest variance first, scaled
    learnt_on: str = ""  # in words

    @property
    def dim(self) -> int:
        """d, the length of a projected local descriptor."""
        return len(self.components)
