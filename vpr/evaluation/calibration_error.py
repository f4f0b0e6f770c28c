"""Whether probabilities are what happens: expected calibration error, and the table behind a reliability diagram."""

import math
from dataclasses import dataclass

import numpy as np

QUERIES_PER_BIN = 25  # fewer make the share of a bin so uncertain that nothing but that is measured
MOST_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Queries in bins of about equal counts by their probability.

    Attributes:
        counts: [B] queries of each bin.
        predicted: [B] mean probability.
        happened: [B] share of first hits that are right.
    """

    counts: np.ndarray
    predicted: np.ndarray
    happened: np.ndarray

    @property
    def queries(self) -> int:
        """Queries in all bins."""
        return int(self.counts.sum())

    @property
    def plain_error(self) -> float:
        """The sum over bins of count / n times |mean probability - share that is right|, the usual estimate.

        It is too large: the share of few queries differs from its expectation by chance, and always adds.
        """
        return float(self.counts @ np.abs(self.predicted - self.happened)) / self.queries

    @property
    def error(self) -> float:
        """The expected calibration error without most of the part that is due to chance; not below 0.

        Kumar, Liang, Ma, "Verified uncertainty calibration", NeurIPS 2019, section 5: the bias of the plain estimate
        is that which it would have if shares were drawn from normal distributions around those found, with variance
        y (1 - y) / count, and is subtracted. They draw; the mean of |normal| has a closed form, used here.
        """
        gaps = np.abs(self.predicted - self.happened)
        deviations = np.sqrt(self.happened * (1 - self.happened) / self.counts)
        drawn = np.array([mean_of_folded_normal(*pair) for pair in zip(gaps, deviations, strict=True)])
        return max(0.0, float(self.counts @ (2 * gaps - drawn)) / self.queries)


def reliability(probabilities: np.ndarray, right: np.ndarray, bins: int | None = None) -> Reliability:
    """Queries in bins by probability. Equal probabilities stay in one bin, so that there may be fewer bins.

    Args:
        probabilities: [M].
        right: bool [M], what happened.
        bins: how many, of about equal counts; None takes QUERIES_PER_BIN queries for each, at most MOST_BINS.

    Raises:
        ValueError: there are no queries.
    """
    count = len(probabilities)
    if not count:
        raise ValueError("no queries: there is nothing to compare")
    bins = bins or bins_for(count)
    order = np.argsort(probabilities, kind="stable")
    rising, happened = probabilities[order].astype(float), right[order].astype(float)
    cuts = np.linspace(0, count, bins + 1)[1:-1].round().astype(int)
    starts = np.unique(np.searchsorted(rising, rising[cuts], side="left"))  # to the front of a run of equal ones
    starts = np.union1d(starts, [0]).astype(int)
    counts = np.diff(starts, append=count)
    return Reliability(counts, np.add.reduceat(rising, starts) / counts, np.add.reduceat(happened, starts) / counts)


def bins_for(queries: int) -> int:
    """How many bins so many queries fill."""
    return max(1, min(MOST_BINS, queries // QUERIES_PER_BIN))


def mean_of_folded_normal(mean: float, deviation: float) -> float:
    """E|x| of a normal distribution."""
    if deviation <= 0:
        return abs(mean)
    scaled = mean / (deviation * math.sqrt(2))
    return deviation * math.sqrt(2 / math.pi) * math.exp(-(scaled**2)) + mean * math.erf(scaled)


def error_by_chance(
    probabilities: np.ndarray, bins: int | None = None, draws: int = 500, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of the error that is measured of a perfectly calibrated predictor.

    It has the same probabilities [M], and what happens is drawn from them: below this nothing can be told apart.
    """
    random = np.random.default_rng(seed)
    drawn = random.random((draws, len(probabilities))) < probabilities
    errors = np.array([reliability(probabilities, happened, bins).error for happened in drawn])
    return float(errors.mean()), float(errors.std())
