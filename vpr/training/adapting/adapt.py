"""Adapting a model to a place: how much of what varies goes, and whether that helps images that were held out."""

from dataclasses import dataclass

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.models.whitening import Whitening
from vpr.training.adapting.held_out import Questions, hold_out, questions_of, recalls
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
CHANCE = 0.01  # of the score: of trials so near to the best the strongest is kept: val splits gained more by it


@dataclass(frozen=True)
class Trial:
    """Recalls of held-out images by N: as they are, and by night."""

    removed: int  # directions that lose more than half
    plain: dict[int, float]
    night: dict[int, float]

    @property
    def score(self) -> float:
        """By which trials are compared."""
        return self.plain[1] + self.night[1]


@dataclass(frozen=True)
class Adaptation:
    """What came of it."""

    before: Trial
    trials: list[Trial]
    best: Trial
    whitening: Whitening | None  # None where the model is better as it is
    questions: Questions
    pairs: int  # of images of one place that it was learnt from


def adapt(views: torch.Tensor, positions: np.ndarray, radius: float, seed: int, clusters: int = 1) -> Adaptation:
    """Learn what varies within places, and keep it if held-out images are found better without.

    Args:
        views: [N, V, D] descriptors of length 1 of N images: as they are, and in VIEWS.
        positions: [N, 2] in metres, NaN where unknown.
        radius: metres within which images are of one place.
        clusters: rows that a descriptor is made of, for short ones.

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
    before = _trial(views, questions, basis[:0], 0)
    trials = [_trial(views, questions, weighted(basis[: ROWS * each], rows, each), each) for each in most]
    usable = [each for each in trials if each.plain[1] >= before.plain[1] - LARGEST_LOSS and each.score > before.score]
    highest = max((each.score for each in usable), default=before.score)
    near = [each for each in usable if each.score >= highest - CHANCE]
    best = max(near, key=lambda each: each.removed, default=before)
    whitening = _whitening(views, positions, radius, best.removed, seed, clusters) if best.removed else None
    return Adaptation(before, trials, best, whitening, questions, len(pairs))


def require_images(count: int) -> None:
    """Raise a UserError where so many images are too few."""
    if count < LEAST_IMAGES:
        raise UserError(
            f"found {count} images, wanted {LEAST_IMAGES} at least to adapt a model: add images of the place"
        )


def _trial(views: torch.Tensor, questions: Questions, removed: torch.Tensor, count: int) -> Trial:
    """Recalls where directions [r, D] are weakened."""
    kept = without(views, removed)
    plain, night = (recalls(kept, questions, view) for view in (0, STYLED))
    return Trial(count, plain, night)


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
