"""--mode=locate: where were these images taken? The nearest of a database, their places, and how sure that is."""

import argparse
import contextlib
import datetime
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from vpr.cli.load import database_of, model_of, results_folder
from vpr.cli.specs import engine_wanted, max_pixels, places_spec, reading, search_filter, second_look, sequence_rule
from vpr.common.device import choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.image_files import USUAL, find_images
from vpr.data.places import PlaceImages, load_database
from vpr.data.reader import Reading, decodable
from vpr.data.walks import Walks, find_walks
from vpr.database.database_index import index_file
from vpr.database.engines import AnyEngine, images_of, load_engine
from vpr.database.filters import SearchFilter, why_nothing
from vpr.database.living_index import LivingIndex
from vpr.database.merging import WantedIndex
from vpr.descriptors.describe import LocalDescribing, describe
from vpr.descriptors.local_file import require_dim
from vpr.evaluation.evaluate import how_ordered, look_text
from vpr.models.local_maps import MemorySink
from vpr.report.matches import Compare, Compared, comparer, picture_of_matches
from vpr.report.panels import NEUTRAL, cell, file_name, in_a_row, stacked, write_jpeg
from vpr.retrieval.answer import Confidence, Located, locate
from vpr.retrieval.answer_features import LOOKED_AT, Answers, limited, uncalibrated
from vpr.retrieval.calibration_file import answer_recipe, data_set, find_calibration
from vpr.retrieval.first_hits import describe_first_hits
from vpr.retrieval.rerank import SecondLook, answers_of, rerank, rerank_few
from vpr.runs.local_projection import projection_for
from vpr.runs.model import LoadedModel
from vpr.search.sequences import SequenceRule, frames_used, require_order

DEPTH = 50  # hits of a second look where --rerank does not say
KEEP = "--mode=index --localDescriptors"


def run(options: argparse.Namespace) -> None:
    """Locate all images that were named; print and draw the matches."""
    # With --json nothing else goes to where the JSON goes.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        files, places, rule = images_named(options), places_spec(options), sequence_rule(options)
        database = load_database(places, options.split, split_required="split" in options.given)
        if rule:
            require_order(walks_of(database, files), rule)
        device = choose_device(options.device)
        say(device_line(device))
        loaded, read = model_of(options, device), reading(options, device)
        model = loaded.model.to_device(device, options.precision)
        path = Path(options.indexFile) if options.indexFile else index_file(loaded, database, places.root)
        wanted = WantedIndex(options.index, options.given.get("nprobe"), options.seed)
        about = database_of(options, loaded, database, read)
        index = load_engine(engine_wanted(options), path, about, wanted)
        database = images_of(index, database)
        look = second_look_at(index, path, options)
        answers, how, compare = find(loaded, read, files, index, database, look, rule, options)
        if not isinstance(index, LivingIndex):
            say(f"searched in {index.name}")
        limit = search_filter(options)
        if limit and (answers.found < 0).all():
            say(why_nothing(limit, index.records.only(index.rows())))
        recipe = answer_recipe(loaded.model, loaded.spec, read.size, how)
        values, kind = how_sure(answers, loaded.folder, recipe, database, limit)
        say(f"{model.name}; {index.count()} images of {database.places.name}\nconfidence: {kind}")
        confidence = Confidence(values, kind, options.minConfidence)
        located = locate(answers, files, database, confidence, options.top, index.records.zone)
    if options.json:
        say(json.dumps([asdict(image) for image in located], indent=2))
    else:
        say("\n".join(image.lines() for image in located))
    # Behind the matches, which stand though a panel cannot be drawn.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        draw_panels(results_folder(loaded, options), located, answers.found, database, options.panels, compare)


def how_sure(
    answers: Answers, folder: Path, recipe: Mapping[str, str], database: PlaceImages, wanted: SearchFilter | None
) -> tuple[np.ndarray, str]:
    """How sure answers are [M], and what that is, in words: by a calibration that is in a folder, if one fits."""
    if wanted:
        return limited(answers)
    stored = find_calibration(folder, recipe, data_set(database))
    return (stored.calibration.probability(answers), stored.label) if stored else uncalibrated(answers)


def second_look_at(index: AnyEngine, path: Path, options: argparse.Namespace) -> SecondLook | None:
    """The second look that the flags want, or that an index with local descriptors has; a line says why there is none.

    Raises:
        UserError: it is wanted of an index that does not serve it.
    """
    look = second_look(options, DEPTH if index.local and index.measures else 0)
    if look and not index.measures:
        raise UserError(
            f"--rerank needs descriptor distances, which {path} does not measure: drop --rerank, or make the index "
            "anew with another --index"
        )
    if look and index.local:
        require_dim(path, index.local, index.projection, options.given.get("localDim"))
    if options.rerank is None and not index.measures:
        say("the index does not measure descriptor distances: no second look")
    elif options.rerank is None and index.local is None:
        say(f"the index has no local descriptors: no second look; --rerank K computes them, {KEEP} keeps them")
    return look


def find(
    loaded: LoadedModel,
    read: Reading,
    files: list[Path],
    index: AnyEngine,
    database: PlaceImages,
    look: SecondLook | None,
    rule: SequenceRule | None,
    options: argparse.Namespace,
) -> tuple[Answers, str, Compare | None]:
    """The hits of each image; by what they are ordered, in words; and what finds its matches with a hit, if any."""
    batch, every, positions = options.cacheBatchSize, range(len(files)), database.places.database_positions
    count, wanted = max(LOOKED_AT, options.top, look.depth if look else 0), search_filter(options)
    approximate = "" if rule else index.approximate  # sequences are searched exactly
    if not look:
        descriptors, _ = describe(loaded.model, read.of(files), every, batch, "images")
        found, distances, similarities = first_hits(index, descriptors, count, files, database, rule, wanted)
        sequence = similarities if rule else None
        return Answers(found, distances, positions, sequence=sequence), how_ordered(rule, None, approximate), None
    reader = read.of(database.database_files)
    projection = index.projection
    if index.local is None:
        projection = projection_for(loaded, reader, options.seed, options.localDim, batch)
    sink = MemorySink(len(files))
    descriptors, _ = describe(loaded.model, read.of(files), every, batch, "images", LocalDescribing(projection, sink))
    found, distances, similarities = first_hits(index, descriptors, count, files, database, rule, wanted)
    queries = sink.finished()
    if index.local is not None:
        again = rerank(found, similarities, queries, index.local, look)
        compare = comparer(queries, index.local, look)
    else:
        known, images = describe_first_hits(loaded.model, reader, found[:, : look.depth], projection, batch)
        again = rerank_few(found, similarities, queries, known, images, look)
        compare = comparer(queries, known, look, images)
    how = how_ordered(rule, look_text(look, queries.dim), approximate)
    return answers_of(again, distances, positions), how, compare


def first_hits(
    index: AnyEngine,
    descriptors: torch.Tensor,
    count: int,
    files: list[Path],
    database: PlaceImages,
    rule: SequenceRule | None,
    wanted: SearchFilter | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The hits of single images, or of sequences by a rule: indices, descriptor distances, cosines, all [M, c].

    Those of sequences are summed over the frames, so that each counts in a second look as that of one image does.

    Raises:
        UserError: sequences are wanted of another engine than FAISS, or of a part of the database.
    """
    if rule is None:
        hits = index.search(descriptors, count, wanted)
        rows = [index.row_of.get(name, -1) for name in hits.records.names]
        return np.array([*rows, -1], np.int64)[hits.rows], hits.distances, 1 - hits.distances**2 / 2
    if wanted or not isinstance(index, LivingIndex):
        raise UserError("--sequence searches whole walks by --engine=faiss: drop --near, --box, --where and --engine")
    walks = walks_of(database, files)
    found, distances, similarities = index.search_in_order(descriptors, count, walks, rule)
    return found, distances, similarities * frames_used(walks[1], rule)[:, None]


def walks_of(database: PlaceImages, files: list[Path]) -> tuple[Walks, Walks]:
    """The walks of the database and of the images that were named, by their names."""
    return find_walks(database.places.database_names), find_walks([str(file) for file in files])


def draw_panels(
    folder: Path,
    located: list[Located],
    hits: np.ndarray,
    database: PlaceImages,
    panels: int | str,
    compare: Compare | None = None,
) -> None:
    """A panel for each of the first images, in a folder of its own.

    Args:
        compare: finds the matches with the first hit, which are drawn too; None draws none.
    """
    count = len(located) if panels == "all" else min(int(panels), len(located))
    if not count:
        return
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = folder / f"locate_{stamp}"
    for number, image in enumerate(located[:count]):
        name = file_name(f"{number + 1}_{Path(image.photo).stem}", ".jpg")
        compared = compare(number, int(hits[number, 0])) if compare and image.matches else None
        draw(folder / name, image, hits[number], database, compared)
    say(f"wrote {count} panels into {folder}")


def images_named(options: argparse.Namespace) -> list[Path]:
    """Images and those in folders, in the order given; within a folder by name. With --skipBroken what can be decoded.

    Raises:
        UserError: there are none.
    """
    if not options.inputs:
        raise UserError("--mode=locate wants images or folders: as in --mode=locate --resume=runs/RUN IMAGE.jpg")
    files = []
    for path in map(Path, options.inputs):
        found = find_images(path, options.skipBroken) if path.is_dir() else [path] if path.is_file() else None
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


def draw(
    path: Path, located: Located, hits: np.ndarray, database: PlaceImages, compared: Compared | None = None
) -> None:
    """A panel: the image, then its matches; below what a second look found of the first."""
    file = Path(located.photo)
    cells = [cell(file, NEUTRAL, file.name, located.sure, "")]
    for hit, match in zip(hits, located.matches, strict=False):
        place = match.place() if match.latitude is None else f"{match.latitude:.6f}, {match.longitude:.6f}"
        image = database.database_files[hit]
        cells.append(cell(image, NEUTRAL, f"descriptor distance {match.distance_text()}", place, match.name))
    picture = in_a_row(cells, len(cells))
    if compared:
        picture = stacked([picture, picture_of_matches(file, database.database_files[hits[0]], compared)])
    write_jpeg(path, picture)
