"""How sure a test's answers are: by a calibration that is there, by one learnt from them, or by today's ratio."""

from dataclasses import dataclass

import numpy as np

from vpr.artifacts.calibration import StoredCalibration, learnt_on
from vpr.artifacts.descriptors_file import SplitDescriptors
from vpr.data.places import PlaceImages
from vpr.evaluation.calibrate import learn_calibration, place_groups
from vpr.evaluation.certainty import Certainty, Scores, judge
from vpr.evaluation.evaluate import QueryResults
from vpr.search.answer_features import RATIO, Answers, ratio_of
from vpr.search.exact import descriptor_distances
from vpr.search.locate import LOOKED_AT

CROSS_VALIDATED = "cross-validated: each query by what was learnt from those at other places"
LEARNT_HERE = "learnt on these very queries, so that all of this is too good"


@dataclass(frozen=True)
class Truth:
    """Which first hits are right, and which queries have a true match; bool [M] each."""

    right: np.ndarray
    answerable: np.ndarray


def truth_of(results: QueryResults) -> Truth:
    """The truth of a test's answers."""
    outcomes = results.outcomes
    right = np.array([outcome.rank == 1 for outcome in outcomes], bool)
    return Truth(right, np.array([outcome.answerable for outcome in outcomes], bool))


def answers_of(descriptors: SplitDescriptors, images: PlaceImages, results: QueryResults) -> Answers:
    """What a test found, as `locate` looks at it: the first LOOKED_AT hits."""
    found = results.found[:, :LOOKED_AT]
    distances = descriptor_distances(descriptors.database, descriptors.queries, found)
    again = results.reranked
    local, agreeing = (again.local, again.agreeing) if again else (None, None)
    return Answers(found, distances, images.places.database_positions, local, agreeing)


def judge_by_ratio(answers: Answers, truth: Truth, least: float | None = None) -> Certainty:
    """By the ratio of distances, which needs no calibration."""
    return judge(Scores(ratio_of(answers), RATIO), truth.right, truth.answerable, least)


def judge_by_calibration(
    answers: Answers, truth: Truth, stored: StoredCalibration, images: PlaceImages, least: float | None = None
) -> Certainty:
    """By the probabilities of a calibration; a note says where it was learnt on these queries."""
    note = LEARNT_HERE if stored.learnt_on_these(images) else ""
    scores = Scores(stored.calibration.probability(answers), stored.label, True, note)
    return judge(scores, truth.right, truth.answerable, least)


def judge_by_learning(
    answers: Answers, truth: Truth, recipe: dict[str, str], images: PlaceImages, least: float | None = None
) -> tuple[Certainty, StoredCalibration]:
    """Learn a calibration, and judge the answers by cross-validation.

    Args:
        recipe: of the answers, see `answer_recipe`.

    Raises:
        UserError: there are too few queries.
    """
    learnt = learn_calibration(answers, truth.right, place_groups(images.places.query_positions))
    stored = StoredCalibration(learnt.calibration, recipe, learnt_on(images))
    scores = Scores(learnt.held_out, stored.label, True, CROSS_VALIDATED)
    return judge(scores, truth.right, truth.answerable, least), stored
