"""Which epoch's model is the best one, by the validation split, and what the test split says of it in the end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.catalogue import DATASETS
from vpr.data.places import PlaceImages, PlacesSpec, has_split, load_places, require_queries
from vpr.data.reader import ImageReader
from vpr.descriptors.describe import LocalDescribing, Source
from vpr.descriptors.local_maps import MemorySink
from vpr.evaluation.evaluate import RESULTS_FILE, Evaluation, describe_split, measure_each, record
from vpr.evaluation.outcomes import Outcome
from vpr.models.place_model import PlaceModel
from vpr.retrieval.ask import Ask
from vpr.retrieval.rules import Reranking
from vpr.runs.local_projection import sampled_projection
from vpr.training.log import Recalls
from vpr.training.state import SELECTED_BY, Position

OWN, ALL = "val", "all"  # of --bestBy: the run's own validation split, and all sets


def select(position: Position, recalls: Recalls, epoch: int, best_by: str = OWN) -> bool:
    """Whether recalls after `epoch` are the best so far, by one set or all; `position` then takes them as the best."""
    sets = [*recalls.values()] if best_by == ALL else [recalls[best_by]]
    score = [sum(each[n] for each in sets) / len(sets) for n in SELECTED_BY]
    better = score > position.best
    if better:
        position.best, position.best_epoch, position.epochs_without_gain = score, epoch, 0
    else:
        position.epochs_without_gain = epoch - position.best_epoch
    return better


@dataclass(frozen=True)
class ValidationReranking:
    """Re-ranking at each validation. It is printed and decides nothing, since a training improves the descriptor."""

    rule: Reranking
    database: ImageReader  # reads the database's images
    seed: int  # as of `sampled_projection`, with the model as it then is
    dim: int  # likewise


ValidationSet = tuple[PlaceImages, Source, ValidationReranking | None]  # what is measured at a validation


def open_sets(places: PlacesSpec, folders: Sequence[str], best_by: str) -> dict[str, PlaceImages]:
    """The val splits of --valSets by their folders' names, each of the first data set that has such a layout.
    Raises a UserError: one has no val split with queries, or the name of another, or --bestBy names none."""
    found: dict[str, PlaceImages] = {}
    for folder in folders:
        spec, name = replace(places, root=Path(folder)), Path(folder).resolve().name
        specs = (replace(spec, dataset=dataset) for dataset in (places.dataset, *DATASETS))
        images, reason = find_split(next((each for each in specs if has_split(each, OWN)), spec), OWN)
        if images is None:
            raise UserError(f"--valSets: {folder}: {reason}: name folders that --root could name, with a val split")
        if name in (*found, OWN, ALL):
            raise UserError(f"--valSets: {folder}: there is a set of the name {name} already: rename the folder")
        found[name] = images
    if best_by not in (OWN, ALL, *found):
        raise UserError(f"--bestBy={best_by}: wanted {', '.join((OWN, ALL, *found))}: name one, or add it to --valSets")
    return found


def measure_split(
    model: PlaceModel,
    images: PlaceImages,
    source: Source,
    recall_values: Iterable[int],
    batch_size: int | None = None,
    reranking: ValidationReranking | None = None,
    name: str = "",
) -> tuple[Evaluation, list[Outcome]]:
    """Recalls on a split, in every process, at `recall_values` and SELECTED_BY; each query's outcome in process 0.
    Of a further set, which has a `name`, it is also said what is found by its queries minus their mean."""
    local = None
    if reranking:
        projection = sampled_projection(model, reranking.database, reranking.seed, reranking.dim, batch_size)
        local = LocalDescribing(projection, MemorySink(len(images.files)))
    descriptors = describe_split(model, images, source, batch_size, local)
    found: tuple[Evaluation | None, list[Outcome]] = None, []
    if processes.is_main():
        ask = Ask(rerank=reranking.rule.depth, rerank_by=reranking.rule.by) if reranking else Ask()
        measure = partial(measure_each, descriptors, model, images, sorted({*recall_values, *SELECTED_BY}))
        stages = measure(ask)
        evaluation, answers = next(stages)
        found = evaluation, answers.outcomes
        as_session = islice(measure(Ask(conditions="session")), 1, None) if name else ()
        for after, _ in (*stages, *as_session):
            say(f"{name and f'{name}: '}{after.lines()}")
    measured = processes.broadcast(found[0])
    assert measured is not None  # process 0 measured it
    return measured, found[1]


def find_split(places: PlacesSpec, split: str) -> tuple[PlaceImages | None, str]:
    """A split with its images, or None and what is missing."""
    if not has_split(places, split):
        return None, f"no {split} spec"
    try:
        images = load_places(places, split)
        require_queries(images)
    except UserError as error:
        return None, f"no {split} split ({error})"
    return images, ""


def open_test_split(places: PlacesSpec) -> PlaceImages | None:
    """The test split with its images; None, with a line that says why, where val has to stand in for it."""
    images, reason = find_split(places, "test")
    if processes.any_process(images is None):
        say(f"{reason or 'no test split in another process'}: the best model will be measured on val")
        return None
    return images


def measure_best(
    model: PlaceModel,
    epochs: int,
    splits: Sequence[tuple[PlaceImages, Source]],
    recall_values: Sequence[int],
    batch_size: int | None,
    run: Path,
) -> None:
    """Measure a run's best model, say its recalls and add them to the run's results.

    Args:
        epochs: it was trained for.
        splits: test and val with the sources of their images, or val alone. It takes the place of a test split that
            cannot be read.

    Raises:
        UserError: it cannot be measured; the run itself is whole.
    """
    (images, source), *others = splits
    try:
        evaluation = _evaluate(model, images, source, recall_values, batch_size)
    except UserError as error:
        if not others or processes.world() > 1:  # other processes may be in the middle of it
            raise UserError(f"{error}; the run is whole, measure it with --mode=test --resume={run}") from error
        say(f"the test split cannot be measured ({error}): the best model is measured on val")
        evaluation = _evaluate(model, *others[0], recall_values, batch_size)
    if evaluation is not None:
        say(f"best model (after epoch {epochs}): {evaluation.lines()}")
        record(run / RESULTS_FILE, evaluation, {"run": run.name, "checkpoint": "best", "epochs": epochs})


def _evaluate(
    model: PlaceModel, images: PlaceImages, source: Source, recall_values: Sequence[int], batch_size: int | None
) -> Evaluation | None:
    """Recalls on a split, in process 0."""
    descriptors = describe_split(model, images, source, batch_size)
    if not processes.is_main():
        return None
    return next(measure_each(descriptors, model, images, recall_values))[0]
