"""--mode=test: describe, search, and count Recall@N of a trained or an off-the-shelf model."""

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path

import torch

from vpr.artifacts.descriptors_file import SplitDescriptors, load_descriptors, recipe_of, save_descriptors
from vpr.artifacts.model import load_finished, results_folder
from vpr.cli.specs import places_spec, reading
from vpr.common import processes
from vpr.common.device import choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlacePhotos, load_places, require_queries
from vpr.evaluation.evaluate import RESULTS_FILE, describe_split, measure, measure_index, record
from vpr.evaluation.explanation import opened_at_pooling
from vpr.evaluation.recall import recall_line
from vpr.models.describer import Describer
from vpr.report.write import write_pictures


def run(options: argparse.Namespace) -> None:
    """Test the run of --resume, or without it the off-the-shelf model."""
    photos = load_places(places_spec(options), options.split)
    require_queries(photos)
    device = choose_device(options.device)
    say(device_line(device))
    finished = load_finished(options)
    model, source = finished.model.to_device(device, options.precision), finished.source
    if options.explain:
        opened_at_pooling(model)
    descriptors = _load_or_describe(model, photos, options, device)
    if not processes.is_main():
        return
    evaluation, answers = measure(descriptors, model, photos, options.recallValues)
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
            approximate = measure_index(
                descriptors, photos, evaluation, answers.positives, options.index, options.nprobe, options.seed
            )
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


def _load_or_describe(
    model: Describer, photos: PlacePhotos, options: argparse.Namespace, device: torch.device
) -> SplitDescriptors:
    if options.loadDescriptors:
        return load_descriptors(Path(options.loadDescriptors), recipe_of(model, photos, options), photos)
    reader = photos.reader(reading(options, device))
    descriptors = describe_split(model, photos, reader, options.cacheBatchSize)
    if options.saveDescriptors and processes.is_main():
        save_descriptors(Path(options.saveDescriptors), descriptors, recipe_of(model, photos, options))
        say(f"wrote {options.saveDescriptors}")
    return descriptors
