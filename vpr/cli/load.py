"""Options -> the model that they name, ready to be described with."""

import argparse
import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vpr.cli.flags import CLUSTER_FLAGS
from vpr.cli.options import command_line
from vpr.cli.specs import model_spec, places_spec, reading
from vpr.common.device import Device
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages
from vpr.data.positions.zones import zone_of
from vpr.data.reader import Reading
from vpr.database.open import Database
from vpr.models.describer import Describer
from vpr.models.spec import HUB
from vpr.retrieval.rules import KEYPOINTS, Reranking
from vpr.retrieval.verification.kept import KeptKeypoints, keypoints_file
from vpr.retrieval.verification.keypoints import downloaded, load_network
from vpr.runs.model import LoadedModel, WhiteningChoice
from vpr.runs.stored import load_model


def model_of(
    options: argparse.Namespace, device: Device, whitened: bool = True, database: PlaceImages | None = None
) -> LoadedModel:
    """The model of --resume, or the off-the-shelf one; with its whitening if it has one, unless --noWhiten.

    It comes on the CPU.
    `device`: that on which it will compute. `database`: whose images clusters are learnt of where the off-the-shelf
    model has none.
    Raises a UserError: checkpoint, centroids or whitening are missing, damaged or of something else.
    """
    whitened, choice = whitened and not options.noWhiten, whitening_choice(options, device)
    if options.run:
        return load_model(options.run, options.ckpt, whitened, choice, options.savePath)
    if (options.model or "").startswith(HUB):
        from vpr.models.hub_model import HubModel

        return LoadedModel(HubModel(options.model, options.trustRepo), {"model": options.model}, Path(options.dataPath))
    from vpr.runs.pytorch_model import OwnImages, off_the_shelf

    own = None
    if database is not None:
        prepare = partial(computing, options=options, device=device)
        own = OwnImages(database, choice.reading, options.cacheBatchSize, prepare)
    with cluster_command(options):
        return off_the_shelf(model_spec(options), Path(options.dataPath), choice, whitened, own)


def computing(model: Describer, options: argparse.Namespace, device: Device, images: int) -> Describer:
    """The model where, in which number format and by which program the flags want it to describe so many images."""
    model.to_device(device, options.precision)
    model.infer_by(options.backend, images)
    return model


def whitening_choice(options: argparse.Namespace, device: Device) -> WhiteningChoice:
    """The whitening that the flags want."""
    return WhiteningChoice(reading(options, device), options.precision, places_spec(options), options.pcaDim)


def keypoints_of(
    options: argparse.Namespace, read: Reading, index: Path | None = None, images: int = 1
) -> KeptKeypoints | None:
    """What verifies hits by keypoints of so many images, kept beside an index or in memory; None: no network is there.
    Raises a UserError: a network is wanted by name, and cannot be had, or shall verify nothing."""
    if options.rerankBy == KEYPOINTS and not options.verify:
        raise UserError("--rerankBy=xfeat orders by what --verify=0 leaves out: drop one of the two")
    wanted = options.keypointWeights is not None or options.rerankBy == KEYPOINTS or options.hlocMatches is not None
    is_known = wanted or downloaded() is not None
    if not is_known or not (options.hlocMatches or Reranking(1, options.rerankBy, options.verify).takes_keypoints):
        return None
    try:
        network = load_network(options.keypointWeights or "")
    except UserError as error:
        if wanted:
            raise
        say(f"hits are not verified by keypoints: {error}")
        return None
    from vpr.retrieval.verification.layers import by_engine

    by_engine(network.layers, options.backend, images)
    return KeptKeypoints(network, read, index and keypoints_file(index))


@contextlib.contextmanager
def cluster_command(options: argparse.Namespace) -> Iterator[None]:
    """Where centroids are missing, the message says by which command they are made."""
    from vpr.runs.centroids import MissingCentroids

    try:
        yield
    except MissingCentroids as error:
        command = command_line(options, "cluster", CLUSTER_FLAGS)
        raise UserError(f"no centroids at {error.path}: make them with   {command}") from error


def database_of(options: argparse.Namespace, loaded: LoadedModel, images: PlaceImages, read: Reading) -> Database:
    """The database that an index or an engine is of."""
    places = places_spec(options)
    zone = zone_of(images.places, places.dataset, places.utm_zone)
    return Database(loaded, images, places.root, read, zone, options.cacheBatchSize)


def results_folder(loaded: LoadedModel, options: argparse.Namespace) -> Path:
    """Where results of a model go: its run, beside its exported file, or for the off-the-shelf model --runsPath."""
    return loaded.results or Path(options.runsPath)
