"""--mode=test: describe, search, and count Recall@N of a trained or an off-the-shelf model."""

import argparse
import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import faiss

from vpr.cli.descriptors import descriptors_of
from vpr.cli.load import computing, database_of, keypoints_of, model_of, results_folder
from vpr.cli.locating import ask_of
from vpr.cli.options import flags_of
from vpr.cli.specs import device_of, engine_wanted, hloc_files, places_spec, reading, reranking_rule
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages, load_places, require_queries
from vpr.data.reader import Reading
from vpr.data.regions import Region, without_region
from vpr.database.location import index_file
from vpr.database.open import fill_engine
from vpr.evaluation.calibrate import require_queries_to_learn_from
from vpr.evaluation.evaluate import RESULTS_FILE, Evaluation, QueryResults, measure_each, measure_index, record
from vpr.evaluation.judging import Judged, judge_answers
from vpr.evaluation.outcomes import recall_line
from vpr.report.write import explainer, write_pictures
from vpr.retrieval.ask import Ask
from vpr.retrieval.calibration_file import answer_recipe, save_calibration
from vpr.retrieval.conditions.means_file import load_means, means_file
from vpr.retrieval.split import SplitEngine, WithoutPlaces, by_engine
from vpr.retrieval.verification.kept import KeptKeypoints, write_matches
from vpr.runs.descriptors_file import SplitDescriptors, model_recipe
from vpr.runs.hloc import HlocFiles, is_hloc, write_hloc_files
from vpr.runs.model import LoadedModel
from vpr.search.approximate import IndexSearch, build_index, faiss_name, looks_at_all
from vpr.search.exact import Search
from vpr.search.protocols import sequences_of
from vpr.search.sequences import require_order

RATE = 0.05  # of false answers, of which a calibration says what it costs


@dataclass(frozen=True)
class Subject:
    """What is tested: the model on its device, the images, how they are read, and what is asked of the queries."""

    options: argparse.Namespace
    loaded: LoadedModel
    images: PlaceImages
    read: Reading
    ask: Ask
    descriptors: SplitDescriptors
    keypoints: KeptKeypoints | None = None  # by which hits are verified

    def engine(self, find: Search, name: str, approximate: str) -> SplitEngine:
        """A search of the database; see `SplitEngine`."""
        return SplitEngine(self.descriptors.database, self.images.places, find, name, approximate)

    def measure(self, engine: SplitEngine | WithoutPlaces | None = None) -> Iterator[tuple[Evaluation, QueryResults]]:
        """See `measure_each`."""
        values = self.options.recallValues
        index = index_file(self.loaded, self.images, Path(self.options.root), self.read.size)
        recipe = model_recipe(self.loaded.model, self.read.size)
        means = load_means(means_file(index), recipe, self.loaded.model.dim) if self.ask.conditions == "stored" else {}
        model, keypoints = self.loaded.model, self.keypoints
        return measure_each(self.descriptors, model, self.images, values, self.ask, engine, means, keypoints)

    def write_matches(self) -> None:
        """Of the pairs, where that is asked for."""
        if self.keypoints and self.options.hlocMatches and Path(self.options.pairs).is_file():
            matches, pairs, root = map(Path, (self.options.hlocMatches, self.options.pairs, self.options.root))
            write_matches(matches, pairs, self.keypoints, root, self.images.base)

    def judged(self, answers: QueryResults, engine: SplitEngine | None = None) -> Judged:
        """How sure answers of an engine are: by a calibration of the model, unless it made no descriptors."""
        recipe = answer_recipe(self.loaded.model, self.read.size, answers.ranking.order)
        folder = None if self.descriptors.made_by else self.loaded.folder
        learn, others = self.options.calibrate, None
        if learn and not (self.ask.sequence or self.ask.exclusion):
            engine = engine or SplitEngine(self.descriptors.database, self.images.places)
            *_, (_, without) = self.measure(WithoutPlaces(engine, answers.positives))
            others = without.ranking.answers
        return judge_answers(self.images, answers, folder, recipe, learn, self.options.minConfidence, others)


def run(options: argparse.Namespace) -> None:
    """Test the run of --resume, or without it the off-the-shelf model."""
    images = load_places(places_spec(options), options.split)
    if options.heldOutRegion:
        images = without_region(images, Region(*options.heldOutRegion))
    require_queries(images)
    for flag, typed in (("explain", options.explain), ("calibrate", options.calibrate)):
        if typed and options.loadDescriptors and is_hloc(Path(options.loadDescriptors)):
            raise UserError(f"--{flag} needs the model that made {options.loadDescriptors}: drop one of the two")
    hloc = hloc_files(options)
    hloc.check(images, Path(options.root))
    device = device_of(options)
    loaded, read, how = model_of(options, device), reading(options, device), reranking_rule(options)
    model = computing(loaded.model, options, device, len(images.files))
    if options.explain:
        from vpr.evaluation.explanation import opened_at_pooling

        opened_at_pooling(model)  # now, not after all images are described
    if options.calibrate:
        require_queries_to_learn_from(len(images.query_files))
    ask = ask_of(options)
    if ask.sequence:
        require_order(sequences_of(images.places), ask.sequence)
    verifies = (how or options.hlocMatches) and processes.is_main()
    keypoints = keypoints_of(options, read, None, len(images.files)) if verifies else None  # now: see above
    descriptors = descriptors_of(options, loaded, images, read, how)
    if processes.is_main():
        _measure(Subject(options, loaded, images, read, ask, descriptors, keypoints), hloc)


def _measure(subject: Subject, hloc: HlocFiles) -> None:
    """Search, count, and write all that was asked for."""
    options, loaded, images, descriptors = subject.options, subject.loaded, subject.images, subject.descriptors
    engine = _engine(subject)
    measured = measure_all(subject, engine)
    (exact, first), (evaluation, answers) = measured[0], measured[-1]
    judged = subject.judged(answers, engine)
    evaluation = replace(evaluation, certainty=judged.certainty.figures())
    results = [*(each for each, _ in measured[:-1]), evaluation]
    result = "\n\n".join([judged.certainty.lines(), *(each.lines() for each in results)])
    folder, source = results_folder(loaded, options), loaded.source
    if descriptors.made_by:  # no result of the model
        folder, source = Path(options.runsPath), {"descriptors": options.loadDescriptors}

    def write_results() -> None:
        for each in results:
            record(folder / RESULTS_FILE, each, source)

    def draw() -> None:
        if options.panels:
            pictures = folder / f"test_{options.split}_{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
            explain = explainer(loaded.model, images, subject.read.size) if options.explain else None
            flags, compare, certainty = flags_of(options), answers.ranking.compare, judged.certainty
            write_pictures(pictures, evaluation, answers, images, flags, options.panels, explain, compare, certainty)

    def search_by_index() -> None:
        nonlocal result
        if options.index:
            index = build_index(options.index, descriptors.database, options.seed, options.nprobe)
            # Its hits as it orders them: no engine measures them anew here.
            approximate = measure_index(descriptors, images, results[0], first.positives, options.index, index)
            result += f"\n\n{approximate.lines()}\n{lost_line(exact, approximate)}"
            record(folder / RESULTS_FILE, approximate, source)
            if options.calibrate and not (subject.ask.sequence or subject.ask.exclusion or looks_at_all(index)):
                _calibrate(subject, index)

    interchange = hloc, images, Path(options.root), descriptors.database, descriptors.queries
    try:
        all_of(
            write_results,
            lambda: _keep(judged, loaded, options.maxFalseRate),
            lambda: write_hloc_files(*interchange),
            subject.write_matches,
            draw,
            search_by_index,
        )
    finally:
        say(result)  # last, and also where something could not be written


def measure_all(subject: Subject, engine: SplitEngine | None) -> list[tuple[Evaluation, QueryResults]]:
    """Recalls of single images, by the engine that the flags name, by sequences and after re-ranking, as asked for."""
    if engine is None:
        return list(subject.measure())
    exact, others = next(subject.measure()), list(subject.measure(engine))
    say(f"{engine.name}: {lost_line(exact[0], others[0][0])}")
    return [exact, *others]


def lost_line(exact: Evaluation, approximate: Evaluation) -> str:
    """What an approximate search loses."""
    lost = {n: recall - approximate.recalls[n] for n, recall in exact.recalls.items()}
    return f"lost against exact search: {recall_line(lost)}"


def _engine(subject: Subject) -> SplitEngine | None:
    """The engine that the flags name, filled with the database; None: the exact search.
    Raises a UserError: it cannot be reached, or does not serve what else is asked for."""
    wanted, images = engine_wanted(subject.options), subject.images
    if not wanted.address.target:
        return None
    if subject.ask.sequence or subject.ask.exclusion or subject.descriptors.made_by:
        raise UserError(
            "--engine=milvus has descriptors of images that we described, without their order: drop --engine"
        )
    database = database_of(subject.options, subject.loaded, images, subject.read)
    engine = fill_engine(wanted, database, subject.descriptors.database, None)
    return subject.engine(by_engine(engine, images.places.database_names), engine.name, engine.approximate)


def _calibrate(subject: Subject, index: faiss.Index) -> None:
    """Learn the probabilities of what an approximate index finds, which misses some of what an exact search finds."""
    name = faiss_name(subject.options.index, index)
    engine = subject.engine(IndexSearch(index, subject.descriptors.database), name, name)
    *_, (_, answers) = subject.measure(engine)
    judged = subject.judged(answers, engine)
    say(f"{name}: {judged.certainty.lines()}")
    _keep(judged, subject.loaded, subject.options.maxFalseRate)


def _keep(judged: Judged, loaded: LoadedModel, rate: float | None) -> None:
    """Write the calibration that was learnt. Raises a UserError: one was to be learnt or read, and could not be."""
    if judged.failure:
        raise judged.failure
    if judged.learnt:
        if judged.learnt.guarantee:
            say(judged.learnt.promise(RATE if rate is None else rate))
        path = save_calibration(loaded.folder, judged.learnt)
        say(f"wrote {path}: {judged.learnt.label}; from {', '.join(judged.learnt.calibration.names)}")


def all_of(*steps: Callable[[], None]) -> None:
    """Run all steps, though some fail, since what has been measured took long.
    Raises a UserError: the first that a step raised."""
    failures = []
    for step in steps:
        try:
            step()
        except UserError as error:
            failures.append(error)
    if failures:
        raise failures[0]
