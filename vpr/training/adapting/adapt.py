"""Adapting a model to a place: how much of what varies goes, and whether that helps images that were held out."""

from dataclasses import dataclass

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.models.whitening import Whitening
from vpr.training.adapting.held_out import Questions, answers, hold_out, questions_of, recalls
from vpr.training.adapting.short import short_projection
from vpr.training.adapting.variation import differences, directions, pairs_of_places, weighted, without

VIEWS = ("night", "homography", "night")  # the last is of questions alone
STYLED, TURNED = 3, 2  # the view of questions by night, and of a database that holds the questions' images
LEAST_IMAGES = 20
CANDIDATES = (2, 4, 8, 16, 32, 64, 128)  # directions that lose more than half
ROWS = 4  # times as many are taken, the others of which lose less
MOST_TRIALS = 4  # of the largest that images and dimensions allow
LARGEST_SHARE = 8  # at most one in so many dimensions loses more than half
LARGEST_LOSS = 0.005  # of plain recall
SIGNIFICANCE = 0.05  # how likely it is at most that chance makes answers of one of the trials so much clearer
NEAR = 0.01  # of the score: of trials so near to the best the strongest is kept: val splits gained more by it


@dataclass(frozen=True)
class Trial:
    """Recalls of held-out images by N: as they are, and by night."""

    removed: int  # directions that lose more than half
    plain: dict[int, float]
    night: dict[int, float]
    won: int  # questions, of both, whose first answer is right now and was wrong before
    lost: int
    clearer: int  # of which the right answer is farther ahead of all wrong ones, in standard deviations of theirs
    asked: int

    @property
    def score(self) -> float:
        """By which trials are compared."""
        return self.plain[1] + self.night[1]

    @property
    def chance(self) -> float:
        """How likely so many answers or more are clearer if each is so by the toss of a coin (sign test)."""
        from scipy.stats import binomtest  # scipy takes a while to import

        return float(binomtest(self.clearer, max(self.asked, 1), alternative="greater").pvalue)


@dataclass(frozen=True)
class Adaptation:
    """What came of it."""

    before: Trial
    trials: list[Trial]
    best: Trial
    whitening: Whitening | None  # None where the model is better as it is
    questions: Questions
    pairs: int  # of images of one place that it was learnt from


def adapt(
    views: torch.Tensor,
    positions: np.ndarray,
    radius: float,
    seed: int,
    clusters: int = 1,
    own: Whitening | None = None,
) -> Adaptation:
    """Learn what varies within places, and keep it if held-out images are found better without.

    Args:
        views: [N, V, D] descriptors of length 1 of N images: as they are, and in VIEWS.
        positions: [N, 2] in metres, NaN where unknown.
        radius: metres within which images are of one place.
        clusters: rows that a descriptor is made of, for short ones.
        own: the whitening that the model has so far, with which it is what trials are compared with.

    Raises:
        UserError: there are too few images or dimensions.
    """
    count, _, dim = views.shape
    require_images(count)
    held = hold_out(positions, seed)
    questions = questions_of(held, positions, radius, TURNED)
    learnt = np.flatnonzero(~held)
    pairs = pairs_of_places(views[learnt, 0], positions[learnt], radius)
    rows = differences(views[learnt][:, :STYLED], pairs, seed)
    most = [each for each in CANDIDATES if each <= min(dim // LARGEST_SHARE, len(rows) // 2)][-MOST_TRIALS:]
    if not most:
        least = CANDIDATES[0] * LARGEST_SHARE
        raise UserError(f"found {dim} dimensions, wanted {least} at least to adapt a model: take one with more")
    basis = directions(rows, ROWS * most[-1], seed)
    as_it_is = views if own is None else torch.nn.functional.normalize(own.linear(views - own.mean), dim=-1)
    was = _answers(as_it_is, questions)
    before = _trial(0, was, was)
    trials = [
        _trial(each, was, _answers(without(views, weighted(basis[: ROWS * each], rows, each)), questions))
        for each in most
    ]
    best = _best(before, trials)
    whitening = _whitening(views, positions, radius, best.removed, seed, clusters) if best.removed else None
    return Adaptation(before, trials, best, whitening, questions, len(pairs))


def require_images(count: int) -> None:
    """Raise a UserError where so many images are too few."""
    if count < LEAST_IMAGES:
        raise UserError(
            f"found {count} images, wanted {LEAST_IMAGES} at least to adapt a model: add images of the place"
        )


def _best(before: Trial, trials: list[Trial]) -> Trial:
    """The trial that is kept: what was before where none has clearer answers than chance would give."""
    least, likely = before.plain[1] - LARGEST_LOSS, SIGNIFICANCE / len(trials)
    usable = [each for each in trials if each.plain[1] >= least and each.won >= each.lost and each.chance <= likely]
    highest = max((each.score for each in usable), default=0)
    near = [each for each in usable if each.score >= highest - NEAR]
    return max(near, key=lambda each: each.removed, default=before)


def _answers(views: torch.Tensor, questions: Questions) -> np.ndarray:
    """Places of first right answers, and how clear they are [2, 2, Q], to questions as they are and by night."""
    return np.stack([answers(views, questions, view) for view in (0, STYLED)], axis=1)


def _trial(removed: int, before: np.ndarray, now: np.ndarray) -> Trial:
    """Recalls of answers [2, 2, Q], and how many are others than before, and clearer."""
    (was, was_clear), (found, clear) = before, now
    plain, night = map(recalls, found)
    won, lost = ((found == 1) & (was > 1)).sum(), ((found > 1) & (was == 1)).sum()
    return Trial(removed, plain, night, int(won), int(lost), int((clear > was_clear).sum()), clear.size)


def _whitening(
    views: torch.Tensor, positions: np.ndarray, radius: float, count: int, seed: int, clusters: int
) -> Whitening:
    """The same, learnt on all images; and the projection of what is left to short descriptors."""
    rows = differences(views[:, :STYLED], pairs_of_places(views[:, 0], positions, radius), seed)
    removed = weighted(directions(rows, ROWS * count, seed), rows, count)
    known = views[:, : STYLED - 1].flatten(0, 1)  # as they are and by night
    mean = known.mean(dim=0)
    left = Whitening(mean, None, removed=removed).linear(known - mean)
    return Whitening(mean, short_projection(left, clusters, seed), removed=removed)
