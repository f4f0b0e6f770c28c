"""Recall@N by sequences of frames, beside that of single frames."""

import dataclasses

from vpr.data.places import PlaceImages
from vpr.evaluation.evaluate import CURVE, Evaluation, QueryResults
from vpr.evaluation.outcomes import SHOWN, outcomes_of
from vpr.evaluation.recall import recall_at
from vpr.runs.descriptors_file import SplitDescriptors
from vpr.search.exact import descriptor_distances
from vpr.search.exclusion import RecentFrames
from vpr.search.protocols import search_frames, walks_of
from vpr.search.sequences import SequenceRule, frames_used


def measure_sequences(
    descriptors: SplitDescriptors,
    images: PlaceImages,
    first: Evaluation,
    answers: QueryResults,
    rule: SequenceRule,
    recent: RecentFrames | None = None,
) -> tuple[Evaluation, QueryResults]:
    """Recall@N by sequences.

    Args:
        first, answers: of the single frames.
        recent: frames of the query's own walk that may not be found.

    Raises:
        UserError: the images are no frames in order.
    """
    places = images.places
    excluded = recent.of(places.database_names, places.query_names) if recent else None
    count = answers.found.shape[1]
    found, scores = search_frames(descriptors.database, descriptors.queries, count, places, rule, excluded)
    evaluation = dataclasses.replace(
        first,
        recalls=recall_at(found, answers.positives, list(first.recalls)),
        search=f"{first.search}, {rule.text()}",
    )
    distances = descriptor_distances(descriptors.database, descriptors.queries, found[:, :SHOWN])
    curve = recall_at(found, answers.positives, range(1, CURVE + 1))
    outcomes = outcomes_of(found, distances, answers.positives, places, answers.outcomes)
    return evaluation, QueryResults(
        outcomes, answers.positives, curve, found, scores, frames_used(walks_of(places)[1], rule)
    )
