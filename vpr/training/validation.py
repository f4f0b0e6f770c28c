"""Which epoch's model is the best one, by the validation split, and what the test split says of it in the end."""

import argparse
from pathlib import Path

import torch

from vpr.artifacts.model import load_model
from vpr.cli.specs import places_spec, reading
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlacePhotos, has_split, load_places, require_queries
from vpr.descriptors.describe import Source
from vpr.evaluation.evaluate import RESULTS_FILE, Evaluation, describe_split, measure, record
from vpr.evaluation.outcomes import Outcome
from vpr.models.place_model import PlaceModel
from vpr.report.panels import panel, stacked
from vpr.training.log import Board
from vpr.training.state import SELECTED_BY, Position, TrainingState

PANELS = 3  # of the worst queries, for each validation


def validate(
    board: Board,
    state: TrainingState,
    validation: PlacePhotos,
    source: Source,
    options: argparse.Namespace,
    device: torch.device,
) -> tuple[bool, dict[int, float]]:
    """Measure the validation split after an epoch; whether it is the best so far, and the recalls."""
    position = state.position
    evaluation, outcomes = measure_split(state.model, validation, source, options, device)
    if processes.is_main():
        worst = sorted(outcomes, key=lambda outcome: outcome.sort_key)[:PANELS]
        board.add_picture("validation/worst", stacked([panel(validation, each) for each in worst]), position.epoch)
    for n, recall in evaluation.recalls.items():
        board.add(f"validation/recall_at_{n}", recall, position.epoch)
    better = select(position, evaluation.recalls, position.epoch)
    say(f"epoch {position.epoch} validation: {evaluation.lines()}{' (best so far)' if better else ''}")
    return better, evaluation.recalls


def select(position: Position, recalls: dict[int, float], epoch: int) -> bool:
    """Whether recalls after `epoch` are the best so far; `position` then takes them as the best."""
    score = [recalls[n] for n in SELECTED_BY]
    better = score > position.best
    if better:
        position.best, position.best_epoch, position.epochs_without_gain = score, epoch, 0
    else:
        position.epochs_without_gain = epoch - position.best_epoch
    return better


def measure_split(
    model: PlaceModel, photos: PlacePhotos, source: Source, options: argparse.Namespace, device: torch.device
) -> tuple[Evaluation, list[Outcome]]:
    """Recalls on a split, in every process, by --recallValues and SELECTED_BY; each query's outcome in process 0."""
    evaluation, outcomes = None, []
    recall_values = sorted({*options.recallValues, *SELECTED_BY})
    descriptors = describe_split(model, photos, source, options.cacheBatchSize)
    if processes.is_main():
        evaluation, answers = measure(descriptors, model, photos, recall_values)
        outcomes = answers.outcomes
    return processes.broadcast(evaluation), outcomes


def find_split(options: argparse.Namespace, split: str) -> tuple[PlacePhotos | None, str]:
    """A split with its photos, or None and what is missing."""
    if not has_split(places_spec(options), split):
        return None, f"no {split} spec"
    try:
        photos = load_places(places_spec(options), split)
        require_queries(photos)
    except UserError as error:
        return None, f"no {split} split ({error})"
    return photos, ""


def open_test_split(options: argparse.Namespace) -> PlacePhotos | None:
    """The test split with its photos; None, with a line that says why, where val has to stand in for it."""
    photos, reason = find_split(options, "test")
    if processes.any_process(photos is None):
        say(f"{reason or 'no test split in another process'}: the best model will be measured on val")
        return None
    return photos


def measure_best(
    options: argparse.Namespace,
    run: Path,
    test: PlacePhotos | None,
    validation: PlacePhotos,
    source: Source,
    device: torch.device,
) -> None:
    """Measure a run's best model on the test split; on val, from `source`, if there is none or it cannot be read.

    Raises:
        UserError: it cannot be measured; the run itself is whole.
    """
    model, epochs = load_model(options, run, "best")
    model.to_device(device, options.precision)
    try:
        evaluation = _evaluate(model, test or validation, None if test else source, options, device)
    except UserError as error:
        if test is None or processes.world() > 1:  # other processes may be in the middle of it
            raise UserError(f"{error}; the run is whole, measure it with --mode=test --resume={run}") from error
        say(f"the test split cannot be measured ({error}): the best model is measured on val")
        evaluation = _evaluate(model, validation, source, options, device)
    if evaluation is not None:
        say(f"best model (after epoch {epochs}): {evaluation.lines()}")
        record(run / RESULTS_FILE, evaluation, {"run": run.name, "checkpoint": "best", "epochs": epochs})


def _evaluate(
    model: PlaceModel, photos: PlacePhotos, source: Source | None, options: argparse.Namespace, device: torch.device
) -> Evaluation | None:
    """Recalls by --recallValues, in process 0. Without a source photos are read from their files."""
    source = source or photos.reader(reading(options, device))
    descriptors = describe_split(model, photos, source, options.cacheBatchSize)
    if not processes.is_main():
        return None
    return measure(descriptors, model, photos, options.recallValues)[0]
