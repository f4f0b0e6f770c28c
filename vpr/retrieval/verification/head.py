"""One small regression over all scores of a hit, each standardised over the hits of its query.

A score tells more of a hit beside those of the query's other hits than by its value: at night all are low. The
coefficients are the same for every model and place; `python -m benchmarks.head` makes them, and judges each set of
images by coefficients that were learnt on the others.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("head.json")
SMALLEST = 1e-6  # deviation of scores that differ


def standardised(scores: np.ndarray) -> np.ndarray:
    """Scores [..., K] minus their mean over the K hits, over their deviation; 0 where all are equal. float64."""
    scores = np.asarray(scores, float)
    away = scores - scores.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.square(away).mean(axis=-1, keepdims=True))
    return np.where(deviation > SMALLEST, away / np.maximum(deviation, SMALLEST), 0.0)


@dataclass(frozen=True)
class Head:
    """A logistic regression: log-odds = bias + sum of weight x standardised score."""

    weights: Mapping[str, float]  # by the names of scores: global, soft, spatial, inliers
    bias: float

    def log_odds(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """That each of the K hits of a query is right, float64 [K], from its scores [K] by name."""
        return self.bias + np.sum(
            [weight * standardised(scores[name]) for name, weight in self.weights.items()], axis=0
        )


def probability(log_odds: np.ndarray) -> np.ndarray:
    """The logistic function, which overflows nowhere."""
    return np.asarray(0.5 * (1 + np.tanh(log_odds / 2)), float)


@cache
def head_of(verified: bool) -> Head:
    """The head for hits that are verified by keypoints, or are not."""
    found = json.loads(FILE.read_text(encoding="utf-8"))["verified" if verified else "plain"]
    return Head(found["weights"], found["bias"])
