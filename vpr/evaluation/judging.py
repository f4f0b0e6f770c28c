"""How sure a test's answers are: by a calibration that is there, one learnt from them, or a ratio of distances."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.data.places import PlaceImages
from vpr.evaluation.calibrate import learn_calibration, place_groups
from vpr.evaluation.certainty import Certainty, Scores, judge
from vpr.evaluation.evaluate import QueryResults
from vpr.retrieval.answer_features import Answers
from vpr.retrieval.calibration import Guarantee
from vpr.retrieval.calibration_file import StoredCalibration, data_set, find_calibration, learnt_on
from vpr.retrieval.ranking import confidences

CROSS_VALIDATED = "cross-validated: each query by what was learnt from those at other places"
LEARNT_HERE = "learnt on these very queries, so that this is too good"


@dataclass(frozen=True)
class Judged:
    """How sure answers are."""

    certainty: Certainty
    learnt: StoredCalibration | None = None  # the calibration that was learnt from them, if one was to be
    failure: UserError | None = None  # why a calibration could not be learnt or read; answers are then judged without


def judge_answers(
    images: PlaceImages,
    results: QueryResults,
    folder: Path | None,
    recipe: Mapping[str, str],
    learn: bool = False,
    least: float | None = None,
    others: Answers | None = None,
) -> Judged:
    """Judge what a test found.

    Args:
        folder: where calibrations of the model lie; None: the model is not known, and has none.
        recipe: of the answers, see `answer_recipe`.
        learn: whether to learn a calibration from them; each then has the probability by what was learnt from others.
        least: a threshold of the user.
        others: what is found when each query's right images are taken away; None: then no guarantee is learnt.
    """
    ranking = results.ranking
    right = np.array([outcome.rank == 1 for outcome in results.outcomes], bool)
    answerable = np.array([outcome.answerable for outcome in results.outcomes], bool)
    scores, learnt, failure = Scores(*confidences(ranking, None)), None, None
    try:
        if learn:
            groups = place_groups(images.places.query_positions)
            calibration, held_out, unknown = learn_calibration(ranking.answers, right, groups, others)
            least_sure = np.where(np.isinf(unknown), np.inf, held_out)  # of a place without which nothing was learnt
            guarantee = Guarantee(least_sure, right, unknown) if others else None
            learnt = StoredCalibration(calibration, recipe, learnt_on(images), guarantee)
            scores = Scores(held_out, learnt.label, True, CROSS_VALIDATED)
        elif folder and (stored := find_calibration(folder, recipe, data_set(images))):
            note = LEARNT_HERE if stored.learnt_on_these(images) else ""
            scores = Scores(*confidences(ranking, stored), True, note)
    except UserError as error:
        failure = error  # to be raised when all else that took long has been written
    return Judged(judge(scores, right, answerable, least), learnt, failure)
