"""--mode=test: describe, search, and count Recall@N of a trained or an off-the-shelf model."""

import argparse
import dataclasses
import datetime
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from vpr import processes
from vpr.approximate import IndexSearch, build_index, index_name, stored_bytes
from vpr.descriptors import Source, describe, describe_sizes
from vpr.errors import UserError
from vpr.explain import require_netvlad
from vpr.files import append_to_list, write_json
from vpr.finished_model import load_finished, name_of, results_folder
from vpr.model import PlaceModel, choose_device, device_line
from vpr.outcomes import SHOWN, Outcome, outcomes_of
from vpr.pictures import write_pictures
from vpr.places import PlacePhotos, load_places, require_queries
from vpr.progress import say
from vpr.recall import recall_at, recall_line
from vpr.search import descriptor_distances, search_places
from vpr.stored_descriptors import SplitDescriptors, load_descriptors, recipe_of, save_descriptors

RESULTS_FILE = "results.json"
CURVE = 100  # the last N of the recall curve


@dataclass(frozen=True)
class Evaluation:
    """Recalls (between 0 and 1, by N) and what they were measured on."""

    recalls: dict[int, float]
    split: str
    spec: str
    queries: int
    queries_without_positive: int
    database_photos: int
    model: str
    descriptor_dim: int
    image_size: str
    search: str = "exact"
    bytes_per_image: float = 0

    def lines(self) -> str:
        """What was measured, then the recalls in percent."""
        return (
            f"split {self.split} ({self.spec}): {self.queries} queries, of which {self.queries_without_positive} have "
            f"no database photo within reach and count as missed; {self.database_photos} database photos\n"
            f"{self.model}; images {self.image_size}; "
            f"search {self.search}, {self.bytes_per_image:.0f} bytes per image\n"
            f"{recall_line(self.recalls)}"
        )


@dataclass(frozen=True)
class Answers:
    """What came of each query, what would have been right, and Recall@N for all N up to CURVE."""

    outcomes: list[Outcome]
    positives: list[np.ndarray]
    curve: dict[int, float]


def run(options: argparse.Namespace) -> None:
    """Test the run of --resume, or without it the off-the-shelf model."""
    photos = load_places(options, options.split)
    require_queries(photos)
    device = choose_device(options)
    say(device_line(device))
    finished = load_finished(options)
    model, source = finished.model.place(device, options.precision), finished.source
    if options.explain:
        require_netvlad(model)
    descriptors = _load_or_describe(model, photos, options, device)
    if not processes.is_main():
        return
    evaluation, answers = measure(descriptors, model, photos, options.recallValues, options)
    result = evaluation.lines()
    say(result)  # before anything is written, which may fail
    folder = results_folder(finished, options)

    def draw() -> None:
        if options.panels:
            stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            pictures = folder / f"test_{options.split}_{stamp}"
            write_pictures(pictures, evaluation, answers, photos, model, options, device)

    def search_by_index() -> None:
        nonlocal result
        if options.index:
            approximate = measure_index(descriptors, photos, evaluation, answers.positives, options)
            lost = {n: recall - approximate.recalls[n] for n, recall in evaluation.recalls.items()}
            result = f"{approximate.lines()}\nlost against exact search: {recall_line(lost)}"
            say(result)
            record(folder / RESULTS_FILE, approximate, source)

    try:
        all_of(lambda: record(folder / RESULTS_FILE, evaluation, source), draw, search_by_index)
    finally:
        say(result)  # once more, as the last line


def all_of(*steps: Callable[[], None]) -> None:
    """Run all steps, though some fail, since what has been measured took long.

    Raises:
        UserError: the first that a step raised.
    """
    failures = []
    for step in steps:
        try:
            step()
        except UserError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def describe_split(
    model: PlaceModel, photos: PlacePhotos, source: Source, options: argparse.Namespace, device: torch.device
) -> SplitDescriptors:
    """Describe the database and the queries; complete in process 0."""
    count, total = len(photos.database_files), len(source.files)
    database, sizes = describe(model, source, range(count), options, device, f"{photos.split} database")
    queries, query_sizes = describe(model, source, range(count, total), options, device, f"{photos.split} queries")
    return SplitDescriptors(database, queries, sizes | query_sizes)


def measure(
    descriptors: SplitDescriptors,
    model: PlaceModel,
    photos: PlacePhotos,
    recall_values: list[int],
    options: argparse.Namespace,
) -> tuple[Evaluation, Answers]:
    """Search exactly and count Recall@N."""
    places = photos.places
    found = search_places(descriptors.database, descriptors.queries, max(*recall_values, CURVE), places)
    distances = descriptor_distances(descriptors.database, descriptors.queries, found[:, :SHOWN])
    positives = places.positives()
    evaluation = Evaluation(
        recalls=recall_at(found, positives, recall_values),
        split=photos.split,
        spec=places.name,
        queries=len(places.query_names),
        queries_without_positive=sum(len(indices) == 0 for indices in positives),
        database_photos=len(places.database_names),
        model=name_of(model, options),
        descriptor_dim=model.descriptor_dim,
        image_size=describe_sizes(descriptors.photo_sizes, options.imageSize is not None, photos.query_longest_side),
        bytes_per_image=descriptors.database.element_size() * model.descriptor_dim,
    )
    curve = recall_at(found, positives, range(1, CURVE + 1))
    return evaluation, Answers(outcomes_of(found, distances, positives, places), positives, curve)


def measure_index(
    descriptors: SplitDescriptors,
    photos: PlacePhotos,
    exact: Evaluation,
    positives: list[np.ndarray],
    options: argparse.Namespace,
) -> Evaluation:
    """Recall@N by the approximate search of --index instead of the exact one."""
    index = build_index(options.index, descriptors.database, options.seed, options.nprobe)
    count = max(exact.recalls)
    search = IndexSearch(index)
    found = search_places(descriptors.database, descriptors.queries, count, photos.places, search)
    # Where not every hit counts more are asked for, and some indexes then look deeper than for `count`.
    deeper = f", up to {search.deepest} hits asked for" if search.deepest > count else ""
    return dataclasses.replace(
        exact,
        recalls=recall_at(found, positives, list(exact.recalls)),
        search=f"by index {index_name(options.index, index)}{deeper}",
        bytes_per_image=stored_bytes(index) / len(photos.database_files),
    )


def _load_or_describe(
    model: PlaceModel, photos: PlacePhotos, options: argparse.Namespace, device: torch.device
) -> SplitDescriptors:
    if options.loadDescriptors:
        return load_descriptors(Path(options.loadDescriptors), recipe_of(model, photos, options), photos)
    reader = photos.reader(options.imageSize, options.threads, device)
    descriptors = describe_split(model, photos, reader, options, device)
    if options.saveDescriptors and processes.is_main():
        save_descriptors(Path(options.saveDescriptors), descriptors, recipe_of(model, photos, options))
        say(f"wrote {options.saveDescriptors}")
    return descriptors


def record(path: Path, evaluation: Evaluation, source: dict) -> None:
    """Add an evaluation to a results file: a list, oldest first.

    Raises:
        UserError: what is there is no such list. It stays as it is, and the evaluation goes into a file beside it.
    """
    now = datetime.datetime.now()
    entry = {"measured": now.isoformat(timespec="seconds"), **source, **asdict(evaluation)}
    try:
        append_to_list(path, entry)
    except UserError as error:
        beside = path.with_name(f"{path.stem}_{now:%Y-%m-%d_%H-%M-%S.%f}{path.suffix}")
        write_json(beside, [entry])
        raise UserError(f"{error}; it is unchanged, and the new result is in {beside}: mend or move it") from error
    say(f"wrote {path}")
