"""--mode=test: describe, search, and count Recall@N of a trained or an off-the-shelf model."""

import argparse
import contextlib
import datetime
from collections.abc import Callable
from pathlib import Path

from vpr.artifacts.descriptors_file import SplitDescriptors, load_descriptors, recipe_of, save_descriptors
from vpr.artifacts.hloc import is_hloc, load_hloc, write_hloc_files
from vpr.artifacts.local_file import local_file
from vpr.artifacts.local_projection import projection_for
from vpr.artifacts.model import LoadedModel
from vpr.cli.load import model_of, results_folder
from vpr.cli.options import flags_of
from vpr.cli.specs import hloc_files, places_spec, reading, second_look
from vpr.common import processes
from vpr.common.device import choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages, load_places, require_queries
from vpr.data.reader import Reading
from vpr.descriptors.describe import LocalDescribing
from vpr.evaluation.evaluate import RESULTS_FILE, describe_split, measure, measure_index, measure_second_look, record
from vpr.evaluation.explanation import opened_at_pooling
from vpr.evaluation.recall import recall_line
from vpr.models.local_maps import LocalSink, MemorySink
from vpr.report.matches import comparer
from vpr.report.write import explainer, write_pictures
from vpr.search.second_look import SecondLook


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
    look = second_look(options)
    descriptors = _load_or_describe(loaded, images, read, options, look)
    if not processes.is_main():
        return
    evaluation, answers = measure(descriptors, model, images, options.recallValues, look.depth if look else 0)
    results = [evaluation]
    if look:
        again, answers = measure_second_look(descriptors, images, evaluation, answers, look)
        results.append(again)
    result = "\n\n".join(each.lines() for each in results)
    say(result)  # before anything is written, which may fail
    folder, source = results_folder(loaded, options), loaded.source
    if descriptors.made_by:  # no result of the model
        folder, source = Path(options.runsPath), {"descriptors": options.loadDescriptors}

    def write_results() -> None:
        for each in results:
            record(folder / RESULTS_FILE, each, source)

    def draw() -> None:
        if options.panels:
            stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
            pictures = folder / f"test_{options.split}_{stamp}"
            explain = explainer(model, images, read.size) if options.explain else None
            local = descriptors.local
            compare = comparer(local.queries, local.database, look) if look and local else None
            flags = flags_of(options)
            write_pictures(pictures, results[-1], answers, images, flags, options.panels, explain, compare)

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
        all_of(write_results, interchange, draw, search_by_index)
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
    loaded: LoadedModel, images: PlaceImages, read: Reading, options: argparse.Namespace, look: SecondLook | None
) -> SplitDescriptors:
    model, path = loaded.model, Path(options.loadDescriptors or options.saveDescriptors or "")
    if options.loadDescriptors:
        foreign = is_hloc(path)
        if foreign:
            descriptors = load_hloc(path, images, Path(options.root))
        else:
            descriptors = load_descriptors(path, recipe_of(model, loaded.spec, images, read.size), images)
        if look and not descriptors.local:
            how = "--rerank needs the images described anew" if foreign else "make it anew with --rerank"
            raise UserError(f"{path} has no local descriptors: {how}, or drop --rerank")
        return descriptors
    recipe = recipe_of(model, loaded.spec, images, read.size)
    with _sink(options, images) as sink:
        local = None
        if look:
            database = read.of(images.database_files)
            projection = projection_for(loaded, database, options.seed, options.localDim, options.cacheBatchSize)
            local = LocalDescribing(projection, sink)
        descriptors = describe_split(model, images, images.reader(read), options.cacheBatchSize, local)
    if options.saveDescriptors and processes.is_main():
        save_descriptors(path, descriptors, recipe)
        say(f"wrote {path}")
    return descriptors


def _sink(options: argparse.Namespace, images: PlaceImages) -> contextlib.AbstractContextManager[LocalSink]:
    """Where local descriptors go: into a file beside those of --saveDescriptors, else into memory."""
    if options.rerank and options.saveDescriptors and processes.is_main():
        return local_file(Path(options.saveDescriptors))
    return contextlib.nullcontext(MemorySink(len(images.files)))
