"""From the features of an answer to the probability that its first hit is right."""

from dataclasses import dataclass

import numpy as np

from vpr.retrieval.answer_features import FEATURES, Answers, answer_features
from vpr.retrieval.verification.head import probability


@dataclass(frozen=True)
class Calibration:
    """A logistic regression on standardised features: p = 1 / (1 + exp(-(bias + weights . (x - mean) / scale)))."""

    names: tuple[str, ...]  # F features that it uses, keys of FEATURES
    mean: np.ndarray  # float64 [F]
    scale: np.ndarray  # float64 [F]
    weights: np.ndarray  # float64 [F]
    bias: float  # of the regression
    slope: float  # of the weights of `hit_spread`, which is a feature

    def probability(self, answers: Answers) -> np.ndarray:
        """The probability that each first hit is right, float64 [M]; NaN where a feature is not known."""
        columns = [list(FEATURES).index(name) for name in self.names]
        features = answer_features(answers, self.slope)[:, columns]  # [M, F]
        logits = self.bias + ((features - self.mean) / self.scale) @ self.weights
        return probability(logits)
