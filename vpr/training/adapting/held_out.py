"""Images that are asked for and not learnt from: parts of the place, as they are and styled."""

from dataclasses import dataclass

import numpy as np
import torch

from vpr.training.adapting.variation import STANDING

SHARE = 0.25  # of the images is held out
PARTS = 8  # in which they lie: neighbours in space, or in the order of names
MOST = 0.5  # is held out where it is more for all images of a spot
LEAST = 20  # questions that are worth counting
RECALLS = (1, 5)
SMALLEST_SPREAD = 1e-6  # of similarities that differ


@dataclass(frozen=True)
class Questions:
    """Which images are asked for, and which are right answers to each."""

    images: np.ndarray  # int64 [Q]
    right: list[np.ndarray]  # of each, images
    excluded: list[np.ndarray]  # of each, images that are no answers: itself, others from its spot, those learnt from
    database: int  # the view that the database is in: 0, or another where each image is its own answer
    protocol: str  # in words


def hold_out(positions: np.ndarray, seed: int) -> np.ndarray:
    """bool [N], the images that are held out: PARTS random images with their nearest that are not yet, by position, or
    by order where images have none. All images of a spot go with one of them, unless that were most of all."""
    from scipy.spatial import cKDTree  # scipy takes a while to import

    count, generator = len(positions), np.random.default_rng(seed)
    known = np.isfinite(positions).all(axis=1)
    where = positions if known.all() else np.column_stack([np.arange(count)] * 2)
    held, most = np.zeros(count, bool), max(1, round(SHARE * count / PARTS))
    for centre in generator.choice(count, min(PARTS, count), replace=False):
        away = np.where(held, np.inf, np.hypot(*(where - where[centre]).T))
        held[np.argsort(away, kind="stable")[:most]] = True
    whole = held.copy()
    for spot in cKDTree(where).query_ball_point(where[held], STANDING if known.all() else 0):
        whole[spot] = True
    return whole if whole.mean() <= MOST else held


def questions_of(held: np.ndarray, positions: np.ndarray, radius: float, turned: int) -> Questions:
    """What is asked of held-out images: other ones within `radius` metres, but from over 1 m away, are right.

    Images that directions were learnt from are no answers: they lose all of their differences, those asked for only a
    part, so that the more directions, the worse an image would seem to be found among them. Where fewer than LEAST have
    a right answer, as without positions, each is asked among all images in the view `turned`, where it is the answer
    itself: among the held-out ones alone nearly all would be found.
    """
    images = np.flatnonzero(held)
    right, excluded = [], []
    for image in images:
        apart = np.hypot(*(positions - positions[image]).T)
        right.append(np.flatnonzero(held & (apart > STANDING) & (apart <= radius)))
        excluded.append(np.flatnonzero(~held | (apart <= STANDING)))
    asked = [at for at, found in enumerate(right) if len(found)]
    if len(asked) >= LEAST:
        protocol = f"a hit within {radius:g} m, from over {STANDING:g} m away, among the other held-out images"
        right, excluded = ([each[at] for at in asked] for each in (right, excluded))
        return Questions(images[asked], right, excluded, 0, protocol)
    nothing = [np.empty(0, np.int64)] * len(images)
    protocol = "the image itself among all, seen from another angle"
    return Questions(images, [images[[at]] for at in range(len(images))], nothing, turned, protocol)


def answers(views: torch.Tensor, questions: Questions, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Of questions asked in a view the place of the first right answer [Q], from 1, and how clear it is [Q]: how far
    ahead it is of all wrong ones, in standard deviations of theirs.

    Args:
        views: [N, V, D] descriptors of length 1.
    """
    similar = (views[questions.images, view] @ views[:, questions.database].T).numpy()  # [Q, N]
    places, clear = np.ones(len(similar), np.int64), np.zeros(len(similar))
    for at, (row, right, excluded) in enumerate(zip(similar, questions.right, questions.excluded, strict=True)):
        best, wrong = row[right].max(), np.delete(row, np.union1d(right, excluded))
        if len(wrong):
            places[at] += (wrong >= best).sum()
            clear[at] = (best - wrong.max()) / max(wrong.std(), SMALLEST_SPREAD)
    return places, clear


def recalls(first: np.ndarray) -> dict[int, float]:
    """Recall@N by N, between 0 and 1, of the places of first right answers."""
    return {n: float((first <= n).mean()) for n in RECALLS}
