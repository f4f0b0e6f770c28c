"""Options -> what is asked of images, and the locator that answers it."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from vpr.cli.load import computing, database_of, keypoints_of, model_of
from vpr.cli.specs import device_of, engine_wanted, places_spec, reading
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.settings import values_of
from vpr.data.catalogue import DATASETS, OWN
from vpr.data.places import PlaceImages, load_database
from vpr.data.reader import Reading
from vpr.database.engine import Engine, WantedIndex
from vpr.database.filters import SearchFilter
from vpr.database.location import index_file
from vpr.database.open import load_engine
from vpr.retrieval.ask import Ask
from vpr.retrieval.calibration_file import calibrated_orders, calibrations_of
from vpr.retrieval.conditions.means_file import load_means, means_file
from vpr.retrieval.locator import AT_ONCE, Locator
from vpr.retrieval.rules import SECOND_LOOK
from vpr.runs.descriptors_file import model_recipe
from vpr.runs.model import LoadedModel
from vpr.search.rules import RecentFrames, SequenceRule

FEW = 5000  # images, whose local descriptors take 160 MB with the model `fast`


def ask_of(options: argparse.Namespace) -> Ask:
    """What the flags ask of images.
    Raises a UserError: a flag has no effect without another, or recent frames are left out of an approximate search."""
    recent = options.excludeRecent is not None
    for flag, user in (("causal", options.sequence or recent), ("speeds", options.sequence)):
        if flag in options.given and not user:
            raise UserError(f"--{flag} has no effect without --sequence L: give that too, or drop it")
    if recent and options.index:
        raise UserError("--excludeRecent searches exactly: drop --index or --excludeRecent")
    limited = options.near or options.box or options.where
    return Ask(
        top=options.top,
        filter=SearchFilter(options.near, options.box, tuple(options.where or ())) if limited else None,
        rerank=options.rerank,
        rerank_by=options.rerankBy,
        verify=options.verify,
        conditions=options.conditions or "off",
        sequence=SequenceRule(**values_of(SequenceRule, vars(options))) if options.sequence else None,
        exclusion=RecentFrames(options.excludeRecent, options.causal) if recent else None,
        least=options.minConfidence,
        false_rate=options.maxFalseRate,
    )


def locator_of(options: argparse.Namespace, images: PlaceImages) -> tuple[Locator, Path]:
    """The model and the database of images that the flags name, and where an index in files lies.
    Raises a UserError: the model is missing, or the index damaged or of another model."""
    device = device_of(options)
    loaded, read = model_of(options, device, database=images), reading(options, device)
    loaded.model.to_device(device, options.precision)  # its number format tells its index from others
    path = Path(options.indexFile) if options.indexFile else index_file(loaded, images, Path(options.root), read.size)
    computing(loaded.model, options, device, 1 if path.exists() else len(images.database_files))
    wanted = index_wanted(options, images, loaded)
    engine = load_engine(engine_wanted(options), path, database_of(options, loaded, images, read), wanted)
    return opened_locator(options, loaded, read, images, engine, path, options.cacheBatchSize), path


def opened_locator(
    options: argparse.Namespace,
    loaded: LoadedModel,
    read: Reading,
    images: PlaceImages,
    engine: Engine,
    path: Path,
    batch_size: int | None = AT_ONCE,
) -> Locator:
    """The locator of a database that is open, with what was learnt for it: calibrations and conditions' means."""
    calibrations = calibrations_of(loaded, read.size, images)
    if options.minConfidence and not np.isfinite(engine.records.positions).any():
        say(
            f"--minConfidence={options.minConfidence} refuses all images: the database has no positions, without which "
            "nothing is known of how sure an answer is; drop it"
        )
    means = load_means(means_file(path), model_recipe(loaded.model, read.size), loaded.model.dim)
    usual = replace(ask_of(options), conditions=options.conditions or "stored")
    count = 1 if options.mode == "locate" and path.exists() else len(images.database_files)
    dim, seed, keypoints = options.localDim, options.seed, keypoints_of(options, read, path, count)
    return Locator(loaded, engine, read, images.base, calibrations, usual, dim, seed, batch_size, means, keypoints)


def index_wanted(options: argparse.Namespace, images: PlaceImages, loaded: LoadedModel) -> WantedIndex:
    """The index that the flags want. A new one of not too many images of one's own keeps local descriptors by itself.

    It does not where only answers that are not re-ranked have been calibrated.
    """
    few = DATASETS[options.dataset].layout == OWN and len(images.database_files) <= FEW and not options.index
    by_itself = few and not options.localDescriptors and hasattr(loaded.model, "local_descriptors")
    if by_itself and (orders := calibrated_orders(loaded)):
        by_itself = any(SECOND_LOOK in order for order in orders)
    local_dim = options.localDim if options.localDescriptors or by_itself else 0
    return WantedIndex(options.index, options.given.get("nprobe"), options.seed, local_dim, options.onDisk, by_itself)


def database_images(options: argparse.Namespace) -> PlaceImages:
    """The database images that the flags name; a folder need not have splits unless --split is typed."""
    return load_database(places_spec(options), options.split, split_required="split" in options.given)
