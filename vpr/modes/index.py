"""--mode=index: a database described once, for --mode=locate, hloc and COLMAP, which follows its folder."""

import argparse
from pathlib import Path

from vpr.cli.load import computing, database_of, keypoints_of, model_of
from vpr.cli.locating import database_images, index_wanted
from vpr.cli.specs import device_of, engine_wanted, hloc_files, places_spec, reading
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.image_files import find_images
from vpr.data.reader import Reading
from vpr.database.folder import folder_to_add
from vpr.database.location import file_to_write
from vpr.database.open import edit_engine, update_engine
from vpr.descriptors.describe import describe
from vpr.retrieval.conditions.centring import LEAST
from vpr.retrieval.conditions.means_file import load_means, means_file, save_means
from vpr.retrieval.verification.kept import write_matches
from vpr.runs.descriptors_file import model_recipe
from vpr.runs.hloc import write_hloc_files
from vpr.runs.model import LoadedModel


def run(options: argparse.Namespace) -> None:
    """Bring the index of the database of --split to what its folder holds; write the files of hloc and COLMAP."""
    places = places_spec(options)
    images = database_images(options)
    hloc = hloc_files(options)
    hloc.check(images, places.root)
    device = device_of(options)
    loaded = model_of(options, device, database=images)
    computing(loaded.model, options, device, len(images.database_files))
    read = reading(options, device)
    path = Path(options.indexFile) if options.indexFile else file_to_write(loaded, images, places.root, read.size)
    database = database_of(options, loaded, images, read)
    if options.condition:
        learn_condition(options, loaded, read, path)
        return
    wanted = index_wanted(options, images, loaded)
    if options.add or options.remove:
        added = folder_to_add(Path(options.add), images.base, options.skipBroken) if options.add else None
        edit_engine(engine_wanted(options), path, database, added, options.remove or [], wanted)
        return
    engine = update_engine(engine_wanted(options), path, database, wanted)
    keypoints = keypoints_of(options, read, path, len(images.database_files)) if processes.is_main() else None
    if keypoints:
        keypoints.prepare(engine.records, images.base)
    if processes.is_main() and (hloc.features or hloc.pairs):
        rows = [engine.row_of[name] for name in database.now().names]
        write_hloc_files(hloc, images, places.root, engine.descriptors(rows))
        if keypoints and options.hlocMatches:
            write_matches(Path(options.hlocMatches), Path(options.pairs), keypoints, places.root, images.base)


def learn_condition(options: argparse.Namespace, loaded: LoadedModel, read: Reading, index: Path) -> None:
    """Keep the mean of a folder's images, as that of a condition, beside an index.
    Raises a UserError: no folder is named, or it has too few images."""
    files = find_images(Path(options.add), options.skipBroken) if options.add else []
    if len(files) < LEAST:
        raise UserError(
            f"--condition={options.condition}: found {len(files)} images, wanted {LEAST} at least: name their folder "
            "with --add DIR"
        )
    descriptors, _ = describe(loaded.model, read.of(files), range(len(files)), options.cacheBatchSize, "images")
    path, recipe = means_file(index), model_recipe(loaded.model, read.size)
    means = load_means(path, recipe, loaded.model.dim)
    means[options.condition] = descriptors.mean(axis=0, dtype="float32")
    save_means(path, means, recipe)
    say(f"wrote {path}: the means of {', '.join(sorted(means))}; {options.condition} of {len(files)} images")
