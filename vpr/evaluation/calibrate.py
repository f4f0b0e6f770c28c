"""Learning from queries whose truth is known how sure an answer is."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from vpr.common.errors import UserError
from vpr.evaluation.calibration_error import reliability
from vpr.retrieval.answer_features import FEATURES, SPREAD_HITS, Answers, answer_features
from vpr.retrieval.calibration import Calibration

FEWEST_QUERIES = 50
FOLDS = 5
HALVES = 50  # random halves
PLACE = 25.0  # metres; queries of one square are never on both sides of a fold
FEWEST_OF_A_KIND = FOLDS  # right and wrong first hits
DECAY = 7.0
PUBLISHED_SLOPE = 350.0  # of SUE
KNOWN_OF_MOST = 0.9  # share of the answers
STRENGTH = 1.0  # C of scikit-learn's logistic regression, the inverse of L2's weight


@dataclass(frozen=True)
class Halves:
    """The calibration error where each query has the probability that the half it is not in taught, over random halves.

    Attributes:
        error: its mean and standard deviation.
        error_if_true: those where right and wrong are drawn from the probabilities of a calibration. What is then
            learnt is of the right form, and errs by what few queries teach and measure: so large an error is none.
    """

    error: tuple[float, float]
    error_if_true: tuple[float, float]


@dataclass(frozen=True)
class Learnt:
    """A calibration, and what it would have said of queries that it was not learnt on.

    Attributes:
        held_out: [M] probabilities of each query by a calibration learnt without it and without queries at its
            place; NaN where a feature is not known.
    """

    calibration: Calibration
    held_out: np.ndarray
    halves: Halves | None


def learn_calibration(answers: Answers, right: np.ndarray, groups: np.ndarray, seed: int = 0) -> Learnt:
    """Learn the probability that a first hit is right, and cross-validate it.

    Args:
        right: bool [M], whether the first hit of each query is right.
        groups: [M] integers, the same for queries of one place, see `place_groups`.

    Raises:
        UserError: there are too few queries, or too few of them right or wrong.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    check_enough(right)
    held_out = np.full(len(right), np.nan)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fitted, left_out in folds.split(right, right, groups):
        if len(np.unique(right[fitted])) == 2:  # not so where one place has all the wrong ones
            calibration = fit(rows_of(answers, fitted), right[fitted])
            held_out[left_out] = calibration.probability(rows_of(answers, left_out))
    calibration = fit(answers, right)
    return Learnt(calibration, held_out, errors_on_halves(answers, right, calibration, seed=seed))


def errors_on_halves(
    answers: Answers, right: np.ndarray, calibration: Calibration, times: int = HALVES, seed: int = 0
) -> Halves | None:
    """Learn from each of two random halves and measure on the other; None where no half can be learnt from.

    Both halves are measured together: the fewer the queries, the more of an error is chance.
    """
    random, errors = np.random.default_rng(seed), list[tuple[float, float]]()
    truth = calibration.probability(answers)
    known = np.flatnonzero(~np.isnan(truth))
    for _ in range(times):
        order = random.permutation(known)
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        drawn = random.random(len(truth)) < truth
        error, if_true = (error_across_halves(answers, happened, *halves) for happened in (right, drawn))
        if error is not None and if_true is not None:  # a half that is all right teaches nothing
            errors.append((error, if_true))
    if not errors:
        return None
    (mean, mean_if_true), (spread, spread_if_true) = np.mean(errors, axis=0).tolist(), np.std(errors, axis=0).tolist()
    return Halves((mean, spread), (mean_if_true, spread_if_true))


def error_across_halves(answers: Answers, right: np.ndarray, one: np.ndarray, other: np.ndarray) -> float | None:
    """The error on two sets of queries of what each learnt from the other; None where one teaches nothing."""
    if len(np.unique(right[one])) < 2 or len(np.unique(right[other])) < 2:
        return None
    probabilities = np.full(len(right), np.nan)
    for fitted, asked in ((one, other), (other, one)):
        probabilities[asked] = fit(rows_of(answers, fitted), right[fitted]).probability(rows_of(answers, asked))
    known = ~np.isnan(probabilities)
    return reliability(probabilities[known], right[known]).error if known.any() else None


def require_queries_to_learn_from(count: int) -> None:
    """Raises UserError where there are too few queries."""
    if count < FEWEST_QUERIES:
        raise UserError(
            f"--calibrate: found {count} queries, wanted at least {FEWEST_QUERIES} to learn probabilities from: "
            "take a split with more"
        )


def check_enough(right: np.ndarray) -> None:
    """Raises UserError where queries do not suffice to learn from, or too few are right or wrong."""
    require_queries_to_learn_from(len(right))
    for kind, count in (("right", int(right.sum())), ("wrong", int((~right).sum()))):
        if count < FEWEST_OF_A_KIND:
            raise UserError(
                f"--calibrate: {count} of {len(right)} first hits are {kind}, wanted at least {FEWEST_OF_A_KIND} to "
                "tell right from wrong: take a split with more queries"
            )


def fit(answers: Answers, right: np.ndarray) -> Calibration:
    """A logistic regression on the features that are known of most answers and differ between them.

    Raises:
        UserError: there is no such feature.
    """
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
    return regression(features[complete][:, used], right[complete], used, slope)


def regression(features: np.ndarray, right: np.ndarray, used: np.ndarray, slope: float) -> Calibration:
    """The regression on features [M, F], which are those of FEATURES that are `used`."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0), features.std(axis=0)
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit((features - mean) / scale, right)
    names = tuple(name for name, is_used in zip(FEATURES, used, strict=True) if is_used)
    return Calibration(names, mean, scale, model.coef_[0], float(model.intercept_[0]), slope)


def slope_of(distances: np.ndarray) -> float:
    """A slope for `hit_spread` [1 / squared distance]: the last of its hits weighs exp(-DECAY), in the median query.

    The published slope belongs to the distances of its authors' descriptors. A slope chosen by the likelihood among
    several was less well calibrated than this one figure, which hardly varies between samples of queries.

    Args:
        distances: [M, c] of hits.
    """
    squared = distances[:, :SPREAD_HITS].astype(float) ** 2
    known = ~np.isnan(squared).any(axis=1)
    gap = float(np.median(np.ptp(squared[known], axis=1))) if known.any() and squared.shape[1] else 0.0
    return DECAY / gap if gap > 0 else PUBLISHED_SLOPE


def rows_of(answers: Answers, rows: np.ndarray) -> Answers:
    """Some of the answers, by index."""
    values = {name: getattr(answers, name) for name in ("found", "distances", "scores", "agreeing", "sequence")}
    taken: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
    return dataclasses.replace(answers, **taken)


def place_groups(positions: np.ndarray) -> np.ndarray:
    """A number for each query [M], the same within a square of PLACE metres.

    Where positions are unknown, or fill fewer squares than there are folds, each query has its own.
    """
    known = np.isfinite(positions).all(axis=1)
    groups = np.arange(len(positions))
    if known.any():
        squares = np.floor(positions[known] / PLACE)
        groups[known] = len(positions) + np.unique(squares, axis=0, return_inverse=True)[1].reshape(-1)
    return groups if len(np.unique(groups)) >= FOLDS else np.arange(len(positions))
