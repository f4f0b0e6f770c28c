"""How sure a test's answers are: by a calibration that is there, one learnt from them, or a ratio of distances."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vpr.artifacts.calibration import StoredCalibration, learnt_on
from vpr.artifacts.descriptors_file import SplitDescriptors
from vpr.common.errors import UserError
from vpr.data.places import PlaceImages
from vpr.evaluation.calibrate import learn_calibration, place_groups, require_queries_to_learn_from
from vpr.evaluation.certainty import Certainty, Scores, judge
from vpr.evaluation.evaluate import QueryResults
from vpr.search.answer_features import RATIO, Answers, ratio_of
from vpr.search.exact import descriptor_distances
from vpr.search.locate import LOOKED_AT

CROSS_VALIDATED = "cross-validated: each query by what was learnt from those at other places"
LEARNT_HERE = "learnt on these very queries, so that this is too good"


@dataclass(frozen=True)
class Judging:
    """By what answers are judged.

    Attributes:
        known: a calibration that serves them; None takes the ratio of distances.
        recipe: of the answers, see `answer_recipe`, if a calibration is to be learnt from them; else None.
        least: a threshold of the user.
    """

    known: StoredCalibration | None = None
    recipe: Mapping[str, str] | None = None
    least: float | None = None


@dataclass(frozen=True)
class Judged:
    """How sure answers are.

    Attributes:
        learnt: the calibration that was learnt from them, if one was to be.
        failure: why there is none though one was to be.
    """

    certainty: Certainty
    learnt: StoredCalibration | None = None
    failure: UserError | None = None


def require_enough(images: PlaceImages, judging: Judging) -> None:
    """Raises UserError where a calibration is to be learnt from too few queries, before these are described."""
    if judging.recipe is not None:
        require_queries_to_learn_from(len(images.query_files))


def judge_answers(
    descriptors: SplitDescriptors, images: PlaceImages, results: QueryResults, judging: Judging
) -> Judged:
    """Judge what a test found.

    Where a calibration is to be learnt, each answer has the probability by what was learnt from others.
    """
    answers = answers_of(descriptors, images, results)
    right = np.array([outcome.rank == 1 for outcome in results.outcomes], bool)
    answerable = np.array([outcome.answerable for outcome in results.outcomes], bool)
    scores, learnt, failure = Scores(ratio_of(answers), RATIO), None, None
    if judging.recipe is not None:
        try:
            found = learn_calibration(answers, right, place_groups(images.places.query_positions))
            learnt = StoredCalibration(found.calibration, judging.recipe, learnt_on(images))
            scores = Scores(found.held_out, learnt.label, True, CROSS_VALIDATED)
        except UserError as error:
            failure = error
    elif judging.known:
        note = LEARNT_HERE if judging.known.learnt_on_these(images) else ""
        scores = Scores(judging.known.calibration.probability(answers), judging.known.label, True, note)
    return Judged(judge(scores, right, answerable, judging.least), learnt, failure)


def answers_of(descriptors: SplitDescriptors, images: PlaceImages, results: QueryResults) -> Answers:
    """What a test found, as `locate` looks at it: the first LOOKED_AT hits."""
    found = results.found[:, :LOOKED_AT]
    distances = descriptor_distances(descriptors.database, descriptors.queries, found)
    again = results.reranked
    local, agreeing = (again.local, again.agreeing) if again else (None, None)
    return Answers(found, distances, images.places.database_positions, local, agreeing)
