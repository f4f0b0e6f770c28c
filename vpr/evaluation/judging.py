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
from vpr.retrieval.answer_features import LOOKED_AT, Answers, uncalibrated
from vpr.retrieval.calibration_file import StoredCalibration, data_set, find_calibration, learnt_on
from vpr.runs.descriptors_file import SplitDescriptors
from vpr.search.exact import descriptor_distances

CROSS_VALIDATED = "cross-validated: each query by what was learnt from those at other places"
LEARNT_HERE = "learnt on these very queries, so that this is too good"


@dataclass(frozen=True)
class Judging:
    """By what answers are judged.

    Attributes:
        folder: where calibrations of the model lie; None: the model is not known, and has none.
        recipe: of the answers, see `answer_recipe`.
        learn: whether to learn a calibration from them.
        least: a threshold of the user.
    """

    folder: Path | None
    recipe: Mapping[str, str]
    learn: bool = False
    least: float | None = None


@dataclass(frozen=True)
class Judged:
    """How sure answers are.

    Attributes:
        learnt: the calibration that was learnt from them, if one was to be.
        failure: why a calibration could not be learnt or read; answers are then judged without.
    """

    certainty: Certainty
    learnt: StoredCalibration | None = None
    failure: UserError | None = None


def judge_answers(
    descriptors: SplitDescriptors, images: PlaceImages, results: QueryResults, judging: Judging
) -> Judged:
    """Judge what a test found.

    Where a calibration is to be learnt, each answer has the probability by what was learnt from others.
    """
    answers = answers_of(descriptors, images, results)
    right = np.array([outcome.rank == 1 for outcome in results.outcomes], bool)
    answerable = np.array([outcome.answerable for outcome in results.outcomes], bool)
    scores, learnt, failure = Scores(*uncalibrated(answers)), None, None
    try:
        if judging.learn:
            found = learn_calibration(answers, right, place_groups(images.places.query_positions))
            learnt = StoredCalibration(found.calibration, judging.recipe, learnt_on(images))
            scores = Scores(found.held_out, learnt.label, True, CROSS_VALIDATED)
        elif judging.folder and (stored := find_calibration(judging.folder, judging.recipe, data_set(images))):
            note = LEARNT_HERE if stored.learnt_on_these(images) else ""
            scores = Scores(stored.calibration.probability(answers), stored.label, True, note)
    except UserError as error:
        failure = error  # to be raised when all else that took long has been written
    return Judged(judge(scores, right, answerable, judging.least), learnt, failure)


def answers_of(descriptors: SplitDescriptors, images: PlaceImages, results: QueryResults) -> Answers:
    """What a test found, as `locate` looks at it: the first LOOKED_AT hits."""
    found = results.found[:, :LOOKED_AT]
    distances = descriptor_distances(descriptors.database, descriptors.queries, found)
    again, sequence = results.reranked, results.similarities
    return Answers(
        found,
        distances,
        images.places.database_positions,
        scores=again.scores if again else None,
        agreeing=again.agreeing if again else None,
        sequence=None if sequence is None else sequence[:, :LOOKED_AT],
    )
