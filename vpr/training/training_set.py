"""The training split: what may be a query's positive, and what may not be its negative."""

from dataclasses import dataclass

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages, PlacesSpec, load_places, require_queries
from vpr.training.rules import TrainingRules


@dataclass(frozen=True)
class TrainingSet:
    """The training split with, for each query, its potential positives and what may not be a negative."""

    images: PlaceImages
    positives: list[np.ndarray]
    not_negatives: list[np.ndarray]
    usable: np.ndarray  # queries that have a positive


def load_training_set(places: PlacesSpec, rules: TrainingRules) -> TrainingSet:
    """The training split. Queries without a potential positive are left out, with a message.

    Raises:
        UserError: there are too few images, or as of `load_places`.
    """
    images = load_places(places, "train")
    require_queries(images)
    positives = images.places.training_positives()
    usable = np.flatnonzero([len(indices) > 0 for indices in positives])
    say(
        f"{images.places.name}: {len(images.database_files)} database images, {len(usable)} queries; "
        f"{len(positives) - len(usable)} queries without a potential positive are left out"
    )
    if len(images.database_files) < 2 * rules.negatives or len(usable) < rules.batch_size:
        raise UserError(
            f"{images.places.name} has {len(images.database_files)} database images and {len(usable)} usable queries: "
            f"training needs {2 * rules.negatives} (2 x --nNeg) and {rules.batch_size} (--batchSize) at least; "
            "add images, or cluster and test without training"
        )
    return TrainingSet(images, positives, images.places.not_negatives(), usable)
