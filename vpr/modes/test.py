"""--mode=test: describe, search, and count Recall@N of a trained or an off-the-shelf model."""

import argparse
import dataclasses
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vpr.cli.descriptors import descriptors_of
from vpr.cli.load import database_of, model_of, results_folder
from vpr.cli.options import flags_of
from vpr.cli.specs import engine_wanted, hloc_files, places_spec, reading, recent_frames, second_look, sequence_rule
from vpr.common import processes
from vpr.common.device import choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages, load_places, require_queries
from vpr.data.reader import Reading
from vpr.data.regions import Region, without_region
from vpr.database.engine_search import EngineSearch
from vpr.database.open import fill_engine
from vpr.evaluation.calibrate import require_queries_to_learn_from
from vpr.evaluation.evaluate import (
    RESULTS_FILE,
    Evaluation,
    QueryResults,
    how_ordered,
    look_text,
    measure,
    measure_index,
    measure_second_look,
    record,
)
from vpr.evaluation.explanation import opened_at_pooling
from vpr.evaluation.in_order import measure_sequences
from vpr.evaluation.judging import Judged, Judging, judge_answers
from vpr.evaluation.recall import recall_line
from vpr.report.matches import Compare, comparer
from vpr.report.write import explainer, write_pictures
from vpr.retrieval.calibration_file import answer_recipe, save_calibration
from vpr.retrieval.rerank import SecondLook
from vpr.runs.descriptors_file import SplitDescriptors
from vpr.runs.hloc import HlocFiles, is_hloc, write_hloc_files
from vpr.runs.model import LoadedModel
from vpr.search.approximate import RefinedSearch, build_index
from vpr.search.database import looks_at_all
from vpr.search.exclusion import RecentFrames
from vpr.search.protocols import walks_of
from vpr.search.sequences import SequenceRule, require_order


@dataclass(frozen=True)
class Subject:
    """What is tested: the model on its device, the images, and how they are read and searched.

    Attributes:
        rule: how sequences are searched; None: not.
        look: how hits are looked at again; None: not.
        recent: frames of a query's own walk that may not be found; None: all may.
        engine: searches instead of us; None: the search is exact.
    """

    loaded: LoadedModel
    images: PlaceImages
    read: Reading
    rule: SequenceRule | None
    look: SecondLook | None
    recent: RecentFrames | None
    engine: EngineSearch | RefinedSearch | None = None


def run(options: argparse.Namespace) -> None:
    """Test the run of --resume, or without it the off-the-shelf model."""
    images = load_places(places_spec(options), options.split)
    if options.heldOutRegion:
        images = without_region(images, Region(*options.heldOutRegion))
    require_queries(images)
    _refuse_what_wants_a_model(options)
    hloc = hloc_files(options)
    hloc.check(images, Path(options.root))
    device = choose_device(options.device)
    say(device_line(device))
    loaded, read, look = model_of(options, device), reading(options, device), second_look(options)
    model = loaded.model.to_device(device, options.precision)
    if options.explain:
        opened_at_pooling(model)  # now, not after all images are described
    if options.calibrate:
        require_queries_to_learn_from(len(images.query_files))
    subject = Subject(loaded, images, read, _sequences(options, images), look, recent_frames(options))
    descriptors = descriptors_of(options, loaded, images, read, look)
    if processes.is_main():
        _measure(subject, descriptors, hloc, options)


def _measure(subject: Subject, descriptors: SplitDescriptors, hloc: HlocFiles, options: argparse.Namespace) -> None:
    """Search, count, and write all that was asked for."""
    loaded, images = subject.loaded, subject.images
    subject = dataclasses.replace(subject, engine=_engine(subject, descriptors, options))
    results, answers = measure_all(descriptors, subject, options.recallValues)
    judged = judge_answers(descriptors, images, answers, _judging(subject, descriptors, options))
    results[-1] = dataclasses.replace(results[-1], certainty=judged.certainty.figures())
    result = "\n\n".join(each.lines() for each in results)
    say(f"{result}\n{judged.certainty.lines()}")  # before anything is written, which may fail
    folder, source = _destination(loaded, descriptors, options)
    local = descriptors.local

    def write_results() -> None:
        for each in results:
            record(folder / RESULTS_FILE, each, source)

    def draw() -> None:
        if options.panels:
            compare = comparer(local.queries, local.database, subject.look) if subject.look and local else None
            _draw(folder, subject, results[-1], answers, judged, compare, options)

    def search_by_index() -> None:
        nonlocal result
        if options.index:
            index = build_index(options.index, descriptors.database, options.seed, options.nprobe)
            approximate = measure_index(descriptors, images, results[0], answers.positives, options.index, index)
            result = f"{approximate.lines()}\n{lost_line(results[0], approximate)}"
            say(result)
            record(folder / RESULTS_FILE, approximate, source)
            if options.calibrate and not (subject.rule or subject.recent or looks_at_all(index)):
                search = RefinedSearch(options.index, index, descriptors.database)
                _calibrate(dataclasses.replace(subject, engine=search), search, descriptors, options)

    def interchange() -> None:
        write_hloc_files(hloc, images, Path(options.root), descriptors.database, descriptors.queries)

    try:
        all_of(write_results, lambda: _keep(judged, loaded), interchange, draw, search_by_index)
    finally:
        say(result)  # once more, as the last line


def _draw(
    folder: Path,
    subject: Subject,
    evaluation: Evaluation,
    answers: QueryResults,
    judged: Judged,
    compare: Compare | None,
    options: argparse.Namespace,
) -> None:
    """Pictures and the report, in a folder of their own."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    pictures, images = folder / f"test_{options.split}_{stamp}", subject.images
    explain = explainer(subject.loaded.model, images, subject.read.size) if options.explain else None
    flags = flags_of(options)
    write_pictures(pictures, evaluation, answers, images, flags, options.panels, explain, compare, judged.certainty)


def _refuse_what_wants_a_model(options: argparse.Namespace) -> None:
    for flag, typed in (("explain", options.explain), ("calibrate", options.calibrate)):
        if typed and options.loadDescriptors and is_hloc(Path(options.loadDescriptors)):
            raise UserError(f"--{flag} needs the model that made {options.loadDescriptors}: drop one of the two")


def _judging(subject: Subject, descriptors: SplitDescriptors, options: argparse.Namespace) -> Judging:
    """By what answers are judged: by a calibration of the model, unless its descriptors were made elsewhere."""
    loaded, look, local = subject.loaded, subject.look, descriptors.local
    approximate = subject.engine.approximate if subject.engine else ""
    how = how_ordered(subject.rule, look_text(look, local.maps.dim) if look and local else None, approximate)
    if subject.recent:
        how = f"{how}; {subject.recent.text()}"
    recipe = answer_recipe(loaded.model, loaded.spec, subject.read.size, how)
    folder = None if descriptors.made_by else loaded.folder
    return Judging(folder, recipe, options.calibrate, options.minConfidence)


def _calibrate(
    subject: Subject, search: RefinedSearch, descriptors: SplitDescriptors, options: argparse.Namespace
) -> None:
    """Learn the probabilities of what an approximate index finds, which misses some of what an exact search finds."""
    images, look, model = subject.images, subject.look, subject.loaded.model
    depth = look.depth if look else 0
    evaluation, answers = measure(descriptors, model, images, options.recallValues, depth, engine=search)
    if look:
        evaluation, answers = measure_second_look(descriptors, images, evaluation, answers, look)
    judged = judge_answers(descriptors, images, answers, _judging(subject, descriptors, options))
    say(f"{search.name}: {judged.certainty.lines()}")
    _keep(judged, subject.loaded)


def _keep(judged: Judged, loaded: LoadedModel) -> None:
    """Write the calibration that was learnt.

    Raises:
        UserError: one was to be learnt or read, and could not be.
    """
    if judged.failure:
        raise judged.failure
    if judged.learnt:
        path = save_calibration(loaded.folder, judged.learnt)
        say(f"wrote {path}: {judged.learnt.label}; from {', '.join(judged.learnt.calibration.names)}")


def measure_all(
    descriptors: SplitDescriptors, subject: Subject, recall_values: Sequence[int]
) -> tuple[list[Evaluation], QueryResults]:
    """Recalls of single images, by sequences and after a second look, as asked for, and what came of the last."""
    images, rule, look, recent = subject.images, subject.rule, subject.look, subject.recent
    model, depth = subject.loaded.model, look.depth if look else 0
    evaluation, answers = measure(descriptors, model, images, recall_values, depth, recent)
    results = [evaluation]
    if subject.engine:
        evaluation, answers = measure(descriptors, model, images, recall_values, depth, engine=subject.engine)
        say(f"{subject.engine.name}: {lost_line(results[0], evaluation)}")
        results.append(evaluation)
    if rule:
        evaluation, answers = measure_sequences(descriptors, images, evaluation, answers, rule, recent)
        results.append(evaluation)
    if look:
        evaluation, answers = measure_second_look(descriptors, images, evaluation, answers, look)
        results.append(evaluation)
    return results, answers


def _engine(subject: Subject, descriptors: SplitDescriptors, options: argparse.Namespace) -> EngineSearch | None:
    """The engine that the flags name, filled with the database; None: the exact search.

    Raises:
        UserError: it cannot be reached, or does not serve what else is asked for.
    """
    wanted, images = engine_wanted(options), subject.images
    if not wanted.address.target:
        return None
    if subject.rule or subject.recent or descriptors.made_by:
        raise UserError(
            "--engine=milvus has descriptors of images that we described, without their order: drop --engine"
        )
    database = database_of(options, subject.loaded, images, subject.read)
    return EngineSearch(fill_engine(wanted, database, descriptors.database, None), images.places.database_names)


def lost_line(exact: Evaluation, approximate: Evaluation) -> str:
    """What an approximate search loses."""
    lost = {n: recall - approximate.recalls[n] for n, recall in exact.recalls.items()}
    return f"lost against exact search: {recall_line(lost)}"


def _destination(
    loaded: LoadedModel, descriptors: SplitDescriptors, options: argparse.Namespace
) -> tuple[Path, dict[str, str]]:
    """The folder of the results, and what they are said to come from."""
    if descriptors.made_by:  # no result of the model
        return Path(options.runsPath), {"descriptors": options.loadDescriptors}
    return results_folder(loaded, options), loaded.source


def _sequences(options: argparse.Namespace, images: PlaceImages) -> SequenceRule | None:
    """How sequences are searched, if at all; refuses images that are none before they are described."""
    rule = sequence_rule(options)
    if rule:
        require_order(walks_of(images.places), rule)
    return rule


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
