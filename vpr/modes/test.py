"""--mode=test: describe, search, and count Recall@N of a trained or an off-the-shelf model."""

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path

from vpr.artifacts.descriptors_file import SplitDescriptors, load_descriptors, recipe_of, save_descriptors
from vpr.artifacts.hloc import is_hloc, load_hloc, write_hloc_files
from vpr.artifacts.model import LoadedModel
from vpr.cli.load import model_of, results_folder
from vpr.cli.options import flags_of
from vpr.cli.specs import hloc_files, places_spec, reading
from vpr.common import processes
from vpr.common.device import choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages, load_places, require_queries
from vpr.data.reader import Reading
from vpr.evaluation.evaluate import RESULTS_FILE, describe_split, measure, measure_index, record
from vpr.evaluation.explanation import opened_at_pooling
from vpr.evaluation.recall import recall_line
from vpr.report.write import explainer, write_pictures


def run(options: argparse.Namespace) -> None:
    """Test the run of --resume, or without it the off-the-shelf model."""
    images = load_places(places_spec(options), options.split)
    require_queries(images)
    _refuse_to_explain_unknown_models(options)
    hloc = hloc_files(options)
    hloc.check(images, Path(options.root))
    device = choose_device(options.device)
    say(device_line(device))
    loaded, read = model_of(options, device), reading(options, device)
    model = loaded.model.to_device(device, options.precision)
    if options.explain:
        opened_at_pooling(model)  # now, not after all images are described
    descriptors = _load_or_describe(loaded, images, read, options)
    if not processes.is_main():
        return
    evaluation, answers = measure(descriptors, model, images, options.recallValues)
    result = evaluation.lines()
    say(result)  # before anything is written, which may fail
    folder, source = results_folder(loaded, options), loaded.source
    if descriptors.made_by:  # no result of the model
        folder, source = Path(options.runsPath), {"descriptors": options.loadDescriptors}

    def draw() -> None:
        if options.panels:
            stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            pictures = folder / f"test_{options.split}_{stamp}"
            explain = explainer(model, images, read.size) if options.explain else None
            write_pictures(pictures, evaluation, answers, images, flags_of(options), options.panels, explain)

    def search_by_index() -> None:
        nonlocal result
        if options.index:
            approximate = measure_index(
                descriptors, images, evaluation, answers.positives, options.index, options.nprobe, options.seed
            )
            lost = {n: recall - approximate.recalls[n] for n, recall in evaluation.recalls.items()}
            result = f"{approximate.lines()}\nlost against exact search: {recall_line(lost)}"
            say(result)
            record(folder / RESULTS_FILE, approximate, source)

    def interchange() -> None:
        write_hloc_files(hloc, images, Path(options.root), descriptors.database, descriptors.queries)

    try:
        all_of(lambda: record(folder / RESULTS_FILE, evaluation, source), interchange, draw, search_by_index)
    finally:
        say(result)  # once more, as the last line


def _refuse_to_explain_unknown_models(options: argparse.Namespace) -> None:
    if options.explain and options.loadDescriptors and is_hloc(Path(options.loadDescriptors)):
        raise UserError(f"--explain needs the model that made {options.loadDescriptors}: drop one of the two")


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
    loaded: LoadedModel, images: PlaceImages, read: Reading, options: argparse.Namespace
) -> SplitDescriptors:
    model = loaded.model
    if options.loadDescriptors and is_hloc(Path(options.loadDescriptors)):
        return load_hloc(Path(options.loadDescriptors), images, Path(options.root))
    if options.loadDescriptors:
        recipe = recipe_of(model, loaded.spec, images, read.size)
        return load_descriptors(Path(options.loadDescriptors), recipe, images)
    descriptors = describe_split(model, images, images.reader(read), options.cacheBatchSize)
    if options.saveDescriptors and processes.is_main():
        recipe = recipe_of(model, loaded.spec, images, read.size)
        save_descriptors(Path(options.saveDescriptors), descriptors, recipe)
        say(f"wrote {options.saveDescriptors}")
    return descriptors
