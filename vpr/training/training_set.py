"""The training split: what may be a query's positive, and what may not be its negative."""

from dataclasses import dataclass

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlacePhotos, PlacesSpec, load_places, require_queries
from vpr.training.rules import TrainingRules


@dataclass(frozen=True)
class TrainingSet:
    """The training split with, for each query, its potential positives and what may not be a negative."""

    photos: PlacePhotos
    positives: list[np.ndarray]
    not_negatives: list[np.ndarray]
    usable: np.ndarray  # queries that have a positive


def load_training_set(places: PlacesSpec, rules: TrainingRules) -> TrainingSet:
    """The training split. Queries without a potential positive are left out, with a message.

    Raises:
        UserError: there are too few photos, or as of `load_places`.
    """
    photos = load_places(places, "train")
    require_queries(photos)
    positives = photos.places.training_positives()
    usable = np.flatnonzero([len(indices) > 0 for indices in positives])
    say(
        f"{photos.places.name}: {len(photos.database_files)} database photos, {len(usable)} queries; "
        f"{len(positives) - len(usable)} queries without a potential positive are left out"
    )
    if len(photos.database_files) < 2 * rules.negatives or len(usable) < rules.batch_size:
        raise UserError(
            f"{photos.places.name} has {len(photos.database_files)} database photos and {len(usable)} usable queries: "
            f"training needs {2 * rules.negatives} (2 x --nNeg) and {rules.batch_size} (--batchSize) at least; "
            "add photos, or cluster and test without training"
        )
    return TrainingSet(photos, positives, photos.places.not_negatives(), usable)
