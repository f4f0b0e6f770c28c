"""Learning the probability that a first hit is right, from queries whose truth is known."""

import numpy as np

from vpr.common.errors import UserError
from vpr.retrieval.answer_features import FEATURES, SPREAD_HITS, Answers, answer_features
from vpr.retrieval.calibration import Calibration

FEWEST_QUERIES = 50
FOLDS = 5
SQUARE = 25.0  # metres; queries of one square are never on both sides of a fold
FEWEST_OF_A_KIND = FOLDS  # right and wrong first hits
DECAY = 7.0
PUBLISHED_SLOPE = 350.0  # of SUE
KNOWN_OF_MOST = 0.9  # share of the answers
STRENGTH = 1.0  # C of scikit-learn's logistic regression, the inverse of L2's weight


def learn_calibration(
    answers: Answers, right: np.ndarray, groups: np.ndarray, others: Answers | None = None
) -> tuple[Calibration, np.ndarray, np.ndarray]:
    """Learn the probability that a first hit is right, and cross-validate it.
    Raises a UserError: there are too few queries, or too few of them right or wrong.

    Args:
        right: bool [M], whether the first hit of each query is right.
        groups: [M] integers, the same for queries of one place, see `place_groups`.
        others: what is found when the right images are taken away; None: not known.

    Returns:
        the calibration; [M] probabilities of each query by one learnt without it and without queries at its place; and
        those of `others` likewise. NaN where a feature is not known; where nothing could be learnt without that place
        NaN, and of `others` inf.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    require_queries_to_learn_from(len(right))
    for kind, count in (("right", int(right.sum())), ("wrong", int((~right).sum()))):
        if count < FEWEST_OF_A_KIND:
            raise UserError(
                f"--calibrate: {count} of {len(right)} first hits are {kind}, wanted at least {FEWEST_OF_A_KIND} to "
                "tell right from wrong: take a split with more queries"
            )
    held_out, unknown = np.full(len(right), np.nan), np.full(len(right), np.inf)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for fitted, left_out in folds.split(right, right, groups):
        if len(np.unique(right[fitted])) == 2:  # not so where one place has all the wrong ones
            calibration = fit(answers.only(fitted), right[fitted])
            held_out[left_out] = calibration.probability(answers.only(left_out))
            unknown[left_out] = calibration.probability(others.only(left_out)) if others else np.nan
    return fit(answers, right), held_out, unknown


def require_queries_to_learn_from(count: int) -> None:
    """Raises UserError where there are too few queries."""
    if count < FEWEST_QUERIES:
        raise UserError(
            f"--calibrate: found {count} queries, wanted at least {FEWEST_QUERIES} to learn probabilities from: "
            "take a split with more"
        )


def fit(answers: Answers, right: np.ndarray) -> Calibration:
    """A logistic regression on features that most answers have and that differ; UserError where there are none."""
    from sklearn.linear_model import LogisticRegression

    slope = slope_of(answers.distances)
    features = answer_features(answers, slope)  # [M, 4]
    used = np.isfinite(features).mean(axis=0) >= KNOWN_OF_MOST
    complete = ~np.isnan(features[:, used]).any(axis=1)
    if complete.any():
        used[used] = np.ptp(features[complete][:, used], axis=0) > 0
    if not complete.any() or not used.any() or len(np.unique(right[complete])) < 2:
        raise UserError(
            "--calibrate: no feature of the answers is known of most of them: drop it, or take another split"
        )
    features = features[complete][:, used]
    mean, scale = features.mean(axis=0), features.std(axis=0)
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit((features - mean) / scale, right[complete])
    names = tuple(name for name, is_used in zip(FEATURES, used, strict=True) if is_used)
    return Calibration(names, mean, scale, model.coef_[0], float(model.intercept_[0]), slope)


def slope_of(distances: np.ndarray) -> float:
    """A slope for `hit_spread` [1 / squared distance]: the last of its hits weighs exp(-DECAY), in the median query.

    The published slope belongs to the distances of its authors' descriptors. A slope chosen by the likelihood among
    several was less well calibrated than this one figure, which hardly varies between samples of queries.

    Distances are [M, c], of hits.
    """
    squared = distances[:, :SPREAD_HITS].astype(float) ** 2
    known = ~np.isnan(squared).any(axis=1)
    gap = float(np.median(np.ptp(squared[known], axis=1))) if known.any() and squared.shape[1] else 0.0
    return DECAY / gap if gap > 0 else PUBLISHED_SLOPE


def place_groups(positions: np.ndarray) -> np.ndarray:
    """A number for each query [M], the same within a square of SQUARE metres.

    Where positions are unknown, or fill fewer squares than there are folds, each query has its own.
    """
    known = np.isfinite(positions).all(axis=1)
    groups = np.arange(len(positions))
    if known.any():
        squares = np.floor(positions[known] / SQUARE)
        groups[known] = len(positions) + np.unique(squares, axis=0, return_inverse=True)[1].reshape(-1)
    return groups if len(np.unique(groups)) >= FOLDS else np.arange(len(positions))
