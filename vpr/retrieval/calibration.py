"""From the features of an answer to the probability that its first hit is right."""

from dataclasses import dataclass

import numpy as np

from vpr.retrieval.answer_features import FEATURES, Answers, answer_features
from vpr.retrieval.verification.head import probability


@dataclass(frozen=True)
class Calibration:
    """A logistic regression on standardised features: p = 1 / (1 + exp(-(bias + weights . (x - mean) / scale))).

    Attributes:
        names: F features that it uses, keys of FEATURES.
        mean, scale, weights: [F], float64.
        bias: of the regression.
        slope: of the weights of `hit_spread`, which is a feature.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: float
    slope: float

    def probability(self, answers: Answers) -> np.ndarray:
        """The probability that each first hit is right, float64 [M]; NaN where a feature is not known."""
        columns = [list(FEATURES).index(name) for name in self.names]
        features = answer_features(answers, self.slope)[:, columns]  # [M, F]
        logits = self.bias + ((features - self.mean) / self.scale) @ self.weights
        return probability(logits)
