"""From the features of an answer to the probability that its first hit is right, and what may be said by it."""

from dataclasses import dataclass

import numpy as np

from vpr.retrieval.answer_features import FEATURES, Answers, answer_features
from vpr.retrieval.verification.head import probability

SURE = 0.9  # of a guarantee: the probability, over the queries that it is learnt on, that it holds


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


@dataclass(frozen=True)
class Guarantee:
    """How sure the answers of n queries were, each by what was learnt from others.

    NaN where that is unknown, which is never answered; inf where nothing could be learnt from the others.
    """

    confidences: np.ndarray  # float64 [n], of their first hits
    right: np.ndarray  # bool [n], whether these are right
    unknown: np.ndarray  # float64 [n], of the first hits that were left when all right images were taken away

    def threshold(self, rate: float) -> float:
        """The least confidence from which on false answers are rare; inf: there is none.

        By SURE it holds that of questions such as these at most `rate` are answered wrongly, and as many of questions
        about places that are not in the database; if queries are drawn one by one, and what was learnt from all is as
        sure as what was learnt without each. The number of false answers falls as a threshold rises, so that the upper
        bound of Clopper and Pearson for one number of false answers, as many as keep it below `rate`, holds for the
        threshold that leaves so many (Bates et al., "Distribution-free, risk-controlling prediction sets", Journal of
        the ACM 2021, theorem 2.1; each of the two rates has half of what is left to chance).
        """
        false = self.confidences[~self.right], self.unknown
        return max(_least(each[~np.isnan(each)], len(self.right), rate) for each in false)

    def answered(self, threshold: float) -> tuple[float, float, float]:
        """Shares of queries from a threshold on: answered, answered wrongly, and answered without their places."""
        given = self.confidences >= threshold
        return float(given.mean()), float((given & ~self.right).mean()), float((self.unknown >= threshold).mean())


def _least(false: np.ndarray, count: int, rate: float) -> float:
    """A threshold that leaves so few of some false answers, by their confidences, that they are rare among `count`."""
    from scipy.stats import beta

    numbers = np.arange(min(count, int(rate * count) + 1))  # of more the bound is above the rate, as their share is
    allowed = int((beta.ppf(1 - (1 - SURE) / 2, numbers + 1, count - numbers) <= rate).sum())  # 0 to allowed - 1
    if allowed == 0:
        return float("inf")
    return float(np.nextafter(np.sort(false)[-allowed], np.inf)) if len(false) >= allowed else 0.0
