"""--mode=locate: where were these images taken? The nearest of a database, their places, and how sure that is."""

import argparse
import contextlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from vpr.cli.load import results_folder
from vpr.cli.locating import ask_of, database_images, locator_of
from vpr.cli.specs import max_pixels, reranking_rule
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.frames import find_sequences
from vpr.data.image_files import USUAL, find_images
from vpr.data.reader import decodable
from vpr.data.videos import frames_of, is_video
from vpr.database.engine import Engine
from vpr.database.filters import why_nothing
from vpr.descriptors.local_file import require_dim
from vpr.report.located import draw_panels
from vpr.retrieval.ask import DEPTH, Ask
from vpr.retrieval.calibration_file import NO_PROMISE
from vpr.retrieval.conditions.centring import HOW, LEAST
from vpr.retrieval.locator import Locator
from vpr.retrieval.model_pass import Described
from vpr.retrieval.ranking import Ranking
from vpr.retrieval.rules import KEYPOINTS
from vpr.search.sequences import require_order

KEEP = "--mode=index --localDescriptors"


def run(options: argparse.Namespace) -> None:
    """Locate all images that were named; print and draw the matches."""
    with tempfile.TemporaryDirectory(prefix="netvlad-") as folder:  # of frames of videos
        _locate(options, Path(folder))


def _locate(options: argparse.Namespace, folder: Path) -> None:
    with _apart_from_json(options):
        files, ask = images_named(options, folder), ask_of(options)
        names = [str(file.relative_to(folder) if folder in file.parents else file) for file in files]
        database = database_images(options)
        if ask.sequence:
            require_order((find_sequences(database.places.database_names), find_sequences(names)), ask.sequence)
        locator, path = locator_of(options, database)
        engine = locator.engine
        require_reranking(engine, path, options)
        described = locator.describe_files(files, ask)
        ranking = ranked(locator, described, ask, names, usual=options.conditions is None)
        for step in ranking.steps:
            if step.startswith("conditions"):
                say(f"{step}; --conditions=off takes each image by itself")
                if HOW["stored"] in step:
                    say(f"conditions: {locator.conditions.choices(described.descriptors)}")
        if engine.is_shared:
            say(f"searched in {engine.name}")
        if ask.filter and (ranking.answers.found < 0).all():
            say(why_nothing(ask.filter, engine.records.only(engine.rows())))
        answers = locator.answers(ranking, ask)
        say(f"{locator.model_name}; {engine.count()} images of {database.places.name}")
        say(f"confidence: {answers[0].confidence_kind}")
        if ask.false_rate is not None:
            stored = locator.calibration(ranking)
            say(stored.promise(ask.false_rate) if stored else NO_PROMISE)
    told = zip(names, answers, strict=True)
    if options.json:
        say(json.dumps([answer.as_json(name) for name, answer in told], indent=2))
    else:
        say("\n".join(answer.lines(name) for name, answer in told))
    with _apart_from_json(options):  # behind the matches, which stand though a panel cannot be drawn
        draw_panels(results_folder(locator.loaded, options), files, answers, ranking, options.panels)


def ranked(locator: Locator, described: Described, ask: Ask, names: list[str], usual: bool) -> Ranking:
    """What was found for all images that were named.
    `usual`: whether their condition is taken into account though nobody asked for it: of so many images by their own
    mean, of few by those that were learnt; unless only answers without it have been calibrated."""
    if usual and locator.engine.measures:
        conditions = "session" if len(names) >= LEAST else "stored"
        ranking = locator.rank(described, replace(ask, conditions=conditions), names)
        plain = replace(ranking, steps=tuple(step for step in ranking.steps if not step.startswith("conditions")))
        if plain.steps == ranking.steps or locator.calibration(ranking) or not locator.calibration(plain):
            return ranking
        say("without the mean of the images' condition, since only such answers are calibrated; --conditions says more")
    if ask.conditions == "off":
        locator.conditions.warn_of_shift(described.descriptors)
    return locator.rank(described, ask, names)


def _apart_from_json(options: argparse.Namespace) -> contextlib.AbstractContextManager:
    """With --json nothing else goes to where the JSON goes."""
    return contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()


def require_reranking(engine: Engine, path: Path, options: argparse.Namespace) -> None:
    """Say why an engine re-ranks nothing by itself.
    Raises a UserError: re-ranking is wanted of an engine that does not serve it."""
    serves = engine.measures and (engine.local is not None or options.rerankBy == KEYPOINTS)
    how = reranking_rule(options, DEPTH if serves else 0)
    if how and not engine.measures:
        raise UserError(
            f"--rerank needs descriptor distances, which {path} does not measure: drop --rerank, or make the index "
            "anew with another --index"
        )
    if how and how.takes_local and engine.local:
        require_dim(path, engine.local, engine.projection, options.given.get("localDim"))
    if options.rerank is None and not engine.measures:
        say("the index does not measure descriptor distances: no re-ranking")
    elif options.rerank is None and not serves:
        say(f"the index has no local descriptors: no re-ranking; --rerank K computes them, {KEEP} keeps them")


def images_named(options: argparse.Namespace, folder: Path) -> list[Path]:
    """Images, those in folders, and frames of videos, in the order given; within a folder by name.

    With --skipBroken what can be decoded. Frames are written below `folder`. Raises a UserError: there are none.
    """
    if not options.inputs:
        raise UserError("--mode=locate wants images or folders: as in --mode=locate --resume=runs/RUN IMAGE.jpg")
    files = []
    for path in map(Path, options.inputs):
        found = find_images(path, options.skipBroken) if path.is_dir() else [path] if path.is_file() else None
        if found and is_video(path):
            found = frames_of(path, folder, options.videoStep)
        if found is None and path.is_symlink():
            raise UserError(f"{path} is a link to {path.readlink()}, which is not there: fetch it, or mount its disk")
        if found is None:
            raise UserError(f"{path} does not exist: name images or folders of images")
        if not found:
            raise UserError(f"the folder {path} has no images ({USUAL}): name another")
        files += found
    if options.skipBroken:
        files = [files[index] for index in decodable(files, options.threads, "--mode=locate", max_pixels(options))]
    if not files:
        raise UserError("no image that was named can be decoded: name others")
    return files
