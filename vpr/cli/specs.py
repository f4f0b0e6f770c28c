"""Options -> specs: the one place where flags become what the parts below the command line take."""

import argparse
from pathlib import Path

from vpr.common.device import Device, choose_device, device_line
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.settings import values_of
from vpr.data.names import is_text, shown
from vpr.data.reader import Reading
from vpr.data.settings import MAX_PIXELS, PlacesSpec
from vpr.database.engines import engine_address
from vpr.database.open import WantedEngine
from vpr.models.spec import ModelSpec
from vpr.retrieval.rules import Reranking
from vpr.runs.hloc import HlocFiles
from vpr.training.rules import TrainingRules


def device_of(options: argparse.Namespace) -> Device:
    """The device that --device names, which is said; errors as of `choose_device`."""
    device = choose_device(options.device)
    say(device_line(device))
    return device


def model_spec(options: argparse.Namespace) -> ModelSpec:
    """The model that the flags describe."""
    return ModelSpec.from_flags(vars(options))


def training_rules(options: argparse.Namespace) -> TrainingRules:
    """The rules of training that the flags describe."""
    return TrainingRules(**values_of(TrainingRules, vars(options)), seed=options.seed)


def places_spec(options: argparse.Namespace) -> PlacesSpec:
    """The places that the flags name; raises a UserError where the folder is not there or its name is not UTF-8."""
    root = Path(options.root)
    if not is_text(whole := str(root.resolve())):
        raise UserError(f"--root {shown(whole)} is not of UTF-8: rename its folders (convmv -f latin1 -t utf8)")
    if "root" in options.given and not root.is_dir():
        raise UserError(f"--root {root} does not exist, or is no folder: name the folder of the images")
    return PlacesSpec(**{**values_of(PlacesSpec, vars(options)), "root": root, "max_pixels": max_pixels(options)})


def max_pixels(options: argparse.Namespace) -> int:
    """Of an image file that is read. A server's flag is of the images that are sent to it."""
    typed = MAX_PIXELS if options.maxPixels is None else int(1e6 * options.maxPixels)
    return max(typed, MAX_PIXELS) if options.mode == "serve" else typed


def reading(options: argparse.Namespace, device: Device) -> Reading:
    """How the flags want images read, for a model on `device`."""
    size = (options.longSide,) if options.longSide else options.imageSize and tuple(options.imageSize)
    return Reading(size, options.threads, device, max_pixels(options))


def reranking_rule(options: argparse.Namespace, default: int = 0) -> Reranking | None:
    """How the flags want hits re-ranked, `default` of them where they do not say how many; None: not.
    Raises a UserError: --rerankBy without --rerank."""
    depth = default if options.rerank is None else options.rerank
    if not depth and "rerankBy" in options.given:
        raise UserError("--rerankBy has no effect without --rerank K: give that too, or drop it")
    return Reranking(depth, options.rerankBy) if depth else None


def engine_wanted(options: argparse.Namespace) -> WantedEngine:
    """The engine that the flags name. Raises a UserError where flags of FAISS are given with Milvus, or vice versa."""
    address = engine_address(options.engine)
    if not address.target and options.collection:
        raise UserError("--collection has no effect with --engine=faiss: drop it, or name milvus:FILE.db")
    for name in ("indexFile", "localDescriptors", "onDisk"):
        if address.target and getattr(options, name):
            raise UserError(f"--{name} is of --engine=faiss, found --engine={options.engine}: drop one of them")
    return WantedEngine(address, options.collection)


def hloc_files(options: argparse.Namespace) -> HlocFiles:
    """The files of hloc and COLMAP that the flags want."""
    features, pairs = (name and Path(name) for name in (options.hlocFeatures, options.pairs))
    return HlocFiles(features, options.hlocHalf, pairs, options.pairsTop)
