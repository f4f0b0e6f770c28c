"""A query with its positive and hard negatives, and batches of these."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrainingTuple:
    """A query with its nearest potential positive and its hard negatives, nearest first.

    `query` indexes the queries, `positive` and `negatives` the database.
    """

    query: int
    positive: int
    negatives: np.ndarray


@dataclass(frozen=True)
class TupleBatch:
    """Tuples whose distinct images are described together, and where each tuple's images are among these."""

    # Indices into the split's files, the database's then the queries'; an image of several tuples is there once.
    images: list[int]
    query: np.ndarray  # int64 [T], rows of `images`, one per tuple
    positive: np.ndarray  # int64 [T], likewise
    negative: np.ndarray  # int64 [N], rows of `images`, of all tuples' negatives
    tuple_of_negative: np.ndarray  # int64 [N], the tuple of each negative

    @classmethod
    def of(cls, tuples: list[TrainingTuple], database_size: int) -> "TupleBatch":
        """The batch of one or more tuples of a split with so many database images."""
        query = [item.query + database_size for item in tuples]
        positive = [item.positive for item in tuples]
        negative = np.concatenate([item.negatives for item in tuples])
        tuple_of_negative = np.repeat(np.arange(len(tuples)), [len(item.negatives) for item in tuples])
        images, rows = np.unique(np.concatenate([query, positive, negative]), return_inverse=True)
        count = len(tuples)
        return cls(images.tolist(), rows[:count], rows[count : 2 * count], rows[2 * count :], tuple_of_negative)
