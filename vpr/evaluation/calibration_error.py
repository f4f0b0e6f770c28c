"""Expected calibration error of probabilities, and the table behind a reliability diagram."""

from dataclasses import dataclass

import numpy as np

QUERIES_PER_BIN = 25  # the share of right ones among fewer is mostly chance
MOST_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Queries in bins of about equal counts by their probability."""

    counts: np.ndarray  # [B] queries of each bin
    predicted: np.ndarray  # [B] mean probability
    happened: np.ndarray  # [B] share of first hits that are right

    @property
    def queries(self) -> int:
        """Queries in all bins."""
        return int(self.counts.sum())

    @property
    def error(self) -> float:
        """Expected calibration error: the sum over bins of count / queries * |mean probability - share that is right|.

        Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015; there
        with bins of equal width. Of few queries it is too large, since a share that differs by chance always adds.
        """
        return float(self.counts @ np.abs(self.predicted - self.happened)) / self.queries


def reliability(probabilities: np.ndarray, right: np.ndarray, bins: int | None = None) -> Reliability:
    """Queries in bins by probability. Equal probabilities stay in one bin, so that there may be fewer bins.
    Raises a ValueError: there are no queries.

    Args:
        probabilities: [M].
        right: bool [M], what happened.
        bins: how many, of about equal counts; None: one for each QUERIES_PER_BIN queries, from 1 to MOST_BINS.
    """
    count = len(probabilities)
    if not count:
        raise ValueError("no queries: there is nothing to compare")
    bins = bins or max(1, min(MOST_BINS, count // QUERIES_PER_BIN))
    order = np.argsort(probabilities, kind="stable")
    rising, happened = probabilities[order].astype(float), right[order].astype(float)
    cuts = np.linspace(0, count, bins + 1)[:-1].round().astype(int)
    starts = np.unique(np.searchsorted(rising, rising[cuts], side="left"))  # to the front of a run of equal ones
    counts = np.diff(starts, append=count)
    return Reliability(counts, np.add.reduceat(rising, starts) / counts, np.add.reduceat(happened, starts) / counts)
