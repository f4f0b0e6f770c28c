"""The training split: what may be a query's positive, and what may not be its negative."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pittsburgh import LEAST_POSITIVE_SQUARED_DISTANCE, Places
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.frames import find_sequences
from vpr.data.layouts.folders import POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS
from vpr.data.places import PlaceImages, PlacesSpec, load_places, require_queries
from vpr.training.choices import BY_PLACE, BY_TEACHER
from vpr.training.places.clustering import places_of
from vpr.training.places.headings import headings_of, sectors_of
from vpr.training.places.place_set import PlaceSet, joined
from vpr.training.places.tables import read_place_files
from vpr.training.places.walk import places_of_walk
from vpr.training.rules import TrainingRules


@dataclass(frozen=True)
class TrainingSet:
    """The training split with, for each query, its potential positives and what may not be a negative."""

    images: PlaceImages
    positives: list[np.ndarray]
    not_negatives: list[np.ndarray]
    usable: np.ndarray  # queries that have a positive
    places: PlaceSet | None = None  # for objectives that go by place, which ask for no queries
    taught: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))  # [N, dim], a teacher's of all images
    teacher: dict[str, str] = field(default_factory=dict)  # what tells it from others


def load_training_set(places: PlacesSpec, rules: TrainingRules) -> TrainingSet:
    """The training split. Queries without a potential positive are left out, with a message.
    Raises a UserError: nothing can be learnt of these images, or as of `load_places`."""
    if rules.loss == BY_PLACE:
        return _by_place(places, rules)
    images = load_places(places, "train")
    if rules.loss == BY_TEACHER:
        return TrainingSet(images, [], [], np.empty(0, np.int64))
    require_queries(images)
    positives = images.places.training_positives()
    not_negatives = images.places.not_negatives()
    usable = np.flatnonzero([len(indices) > 0 for indices in positives])
    reason = why_left_out(images.places, positives, not_negatives)
    say(
        f"{images.places.name}: {len(images.database_files)} database images, {len(usable)} queries; "
        f"{len(positives) - len(usable)} queries without a potential positive are left out{reason}"
    )
    training = TrainingSet(images, positives, not_negatives, usable)
    _require_enough(training, rules, reason)
    _count_negatives(training, rules)
    return training


def _by_place(spec: PlacesSpec, rules: TrainingRules) -> TrainingSet:
    """A training split by place. Raises a UserError: there are not two places, not two in a batch, or no two that may
    be in one."""
    if rules.place_folders:
        images, sets = _of_folders([Path(folder) for folder in rules.place_folders], spec, rules.images_per_place)
    elif rules.walk:
        images = load_places(spec, "train", positions_required=False)
        frames = find_sequences(images.places.database_names)
        images = images.only(frames.order().tolist(), [])
        sets = [places_of_walk(images.places.name, np.unique(frames.sequences, return_counts=True)[1].tolist())]
    else:
        images = load_places(spec, "train")
        sets = [places_of(images, rules.place_distance, rules.place_radius, _views(images, rules.place_headings))]
    for each in sets:
        _require_batches(each, rules, rules.places_apart(images.places.positive_radius))
    places = sets[0] if len(sets) == 1 else joined(sets)
    used, count = sum(map(len, places.images)), len(images.files)
    say(f"{places.name}: {len(places)} places with {used} of {count} images, the others are left out")
    return TrainingSet(images, [], [], np.empty(0, np.int64), places)


def _views(images: PlaceImages, sectors: int) -> np.ndarray | None:
    """Into which of so many sectors each image looks; None where that makes no difference (0)."""
    if not sectors:
        return None
    headings = headings_of([*images.places.database_names, *images.places.query_names])
    if not np.isfinite(headings).any():
        raise UserError(
            f"{images.places.name}: no image's name tells where it looks, wanted _yaw1 to _yaw12, or "
            "degrees behind the ninth @ of a name: drop --placeHeadings"
        )
    return sectors_of(headings, sectors)


def _of_folders(folders: list[Path], spec: PlacesSpec, least: int) -> tuple[PlaceImages, list[PlaceSet]]:
    """The images of folders of places, without positions of their own, and the sets of these, numbered through."""
    files, names, sets = list[Path](), list[str](), list[PlaceSet]()
    for folder in folders:
        own, found = read_place_files(folder, least, spec)
        sets.append(replace(found, images=[each + len(files) for each in found.images]))
        files += own
        names += [str(file.relative_to(folder)) for file in own]
    name, where = "+".join(each.name for each in sets), np.full((len(files), 2), np.nan)
    places = Places(name, names, [], where, where[:0], POSITIVE_RADIUS, TRAINING_POSITIVE_RADIUS)
    return PlaceImages(places, "train", files, []), sets


def _require_batches(places: PlaceSet, rules: TrainingRules, apart: float) -> None:
    """Raises a UserError: there are no two places for a batch."""
    if min(len(places), rules.batch_size) < 2:
        raise UserError(
            f"{places.name} has {len(places)} places, of which a step takes {rules.batch_size} (--batchSize): "
            "wanted two of each at least; raise --batchSize, or add images of other places"
        )
    centres = places.positions  # of which mostly the first has another far away
    sets = np.zeros(len(places)) if places.sets is None else places.sets
    if centres is not None and all(
        np.hypot(*(centres[sets == own] - each).T).max() < apart for each, own in zip(centres, sets, strict=True)
    ):
        raise UserError(
            f"{places.name}: no two of its {len(places)} places lie {apart:g} m apart, which a batch takes two "
            "of at least: add images of other places, or lower --placeRadius"
        )


def _require_enough(training: TrainingSet, rules: TrainingRules, reason: str) -> None:
    places, usable, remedy = training.images.places, len(training.usable), "cluster and test without training"
    name, database = places.name, len(training.images.database_files)
    if not usable:
        raise UserError(
            f"{name}: none of the {len(training.positives)} queries has a potential positive, a database image over "
            f"1 m and at most {places.training_positive_radius:g} m away{reason}: add such images, or {remedy}"
        )
    if database < 2 * rules.negatives or usable < rules.batch_size:
        raise UserError(
            f"{name} has {database} database images and {usable} usable queries: training needs {2 * rules.negatives} "
            f"(2 x --nNeg) and {rules.batch_size} (--batchSize) at least{reason}; add images, lower these, or {remedy}"
        )


def why_left_out(places: Places, positives: list[np.ndarray], not_negatives: list[np.ndarray]) -> str:
    """The rule by which queries have no positive although their place is in the database; empty where none is so."""
    at_the_query = 0
    for query, (chosen, near) in enumerate(zip(positives, not_negatives, strict=True)):
        apart = np.hypot(*(places.database_positions[near] - places.query_positions[query]).T)
        at_the_query += not len(chosen) and bool((apart <= LEAST_POSITIVE_SQUARED_DISTANCE**0.5).any())
    if not at_the_query:
        return ""
    return (
        f" ({at_the_query} stand where a database image does: a positive is over 1 m and at most "
        f"{places.training_positive_radius:g} m away, so that positions which pairs share train nothing, see "
        "docs/own-images.md)"
    )


def _count_negatives(training: TrainingSet, rules: TrainingRules) -> None:
    """Refuse a training without any negative; say how many queries have none or fewer than a tuple takes."""
    places, database = training.images.places, len(training.images.database_files)
    counts = np.array([database - len(training.not_negatives[query]) for query in training.usable])
    radius = f"{places.positive_radius:g} m"
    if not counts.any():
        raise UserError(
            f"{places.name}: none of the {len(counts)} queries has a negative, all {database} database images lie "
            f"within {radius} of each: add images of places farther away, or cluster and test without training"
        )
    none, few = int((counts == 0).sum()), int(((counts > 0) & (counts < rules.negatives)).sum())
    if none or few:
        say(
            f"{places.name}: {none} of them have no negative, a database image over {radius} away, and teach nothing; "
            f"{few} have fewer than {rules.negatives} (--nNeg)"
        )
