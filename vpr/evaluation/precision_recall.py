"""Precision and recall of answers over a threshold of their score."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PrecisionRecall:
    """A point for each score that occurs, from the highest on: all queries of at least that score are answered."""

    thresholds: np.ndarray  # [T] scores, falling
    answered: np.ndarray  # [T] queries that are answered
    right: np.ndarray  # [T] of these, those whose first hit is right
    answerable: int  # queries that have a true match in the database
    queries: int  # all queries

    @property
    def precision(self) -> np.ndarray:
        """[T] right among answered."""
        return self.right / self.answered

    @property
    def recall(self) -> np.ndarray:
        """[T] right among answerable; NaN where no query is."""
        return self.right / self.answerable if self.answerable else np.full(len(self.right), np.nan)

    @property
    def area(self) -> float:
        """Average precision: the sum of precision times the step in recall. NaN where no query is answerable.

        scikit-learn's documentation advises against the trapezoidal rule, whose straight lines between points are too
        optimistic. It is at most the largest recall, which is Recall@1 of the answerable queries.
        """
        if not self.answerable:
            return float("nan")
        return float(self.precision @ np.diff(self.recall, prepend=0.0))

    def recall_at_precision(self, precision: float) -> tuple[float, float]:
        """The largest recall that is had with at least such a precision, and its threshold; 0 and infinity if none."""
        enough = np.flatnonzero(self.right >= precision * self.answered * (1 - 1e-12))
        if not len(enough):
            return 0.0, float("inf")
        best = enough[np.argmax(self.right[enough])]  # of equal recalls the one with the fewest answers
        return float(self.recall[best]), float(self.thresholds[best])


def precision_recall(scores: np.ndarray, right: np.ndarray, answerable: np.ndarray) -> PrecisionRecall:
    """The curve of first hits over a threshold of their score.

    Precision is right answers among all answers, recall is right answers among all queries that have a true match
    (Galvez-Lopez and Tardos, "Bags of binary words for fast place recognition in image sequences", IEEE T-RO 2012,
    section VI: correct detections among fired ones, and among loop events). A query without a true match is a wrong
    answer if it is answered, and has no part in recall; one with many counts once. Queries of equal score are
    answered together. A score that is NaN is never answered.
    `scores`: [M], the higher the surer. `right` and `answerable`: bool [M], whether the first hit is a true match, and
    whether there is any.
    """
    known = ~np.isnan(scores)
    order = np.argsort(-scores[known], kind="stable")
    falling, hits = scores[known][order], right[known][order]
    last = np.flatnonzero(np.diff(falling, append=np.nan) != 0)  # of each run of equal scores; NaN differs from all
    return PrecisionRecall(
        falling[last], last + 1, np.cumsum(hits)[last].astype(int), int(np.sum(answerable)), len(scores)
    )
