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
    """Tuples whose distinct images are described together, and where each tuple's images are among these.

    Attributes:
        images: indices into the split's files, the database's then the queries'; an image that several tuples share is
            there once.
        query, positive: int64 [T], rows of `images`, one per tuple.
        negative: int64 [N], rows of `images`, of all tuples' negatives.
        tuple_of_negative: int64 [N], the tuple of each negative.
    """

    images: list[int]
    query: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    tuple_of_negative: np.ndarray

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
