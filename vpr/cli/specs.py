"""Options -> specs: the one place where flags become what the parts below the command line take."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vpr.common.errors import UserError
from vpr.common.settings import values_of
from vpr.data.names import is_text, shown
from vpr.data.settings import MAX_PIXELS, PlacesSpec
from vpr.models.spec import ModelSpec
from vpr.retrieval.rules import Reranking
from vpr.search.rules import RecentFrames, SequenceRule
from vpr.training.rules import TrainingRules

if TYPE_CHECKING:
    import torch

    from vpr.data.reader import Reading
    from vpr.database.filters import SearchFilter
    from vpr.database.open import WantedEngine
    from vpr.runs.hloc import HlocFiles


def model_spec(options: argparse.Namespace) -> ModelSpec:
    """The model that the flags describe."""
    return ModelSpec.from_flags(vars(options))


def places_spec(options: argparse.Namespace) -> PlacesSpec:
    """The places that the flags name.

    Raises:
        UserError: the folder's name is not UTF-8.
    """
    root = Path(options.root)
    if not is_text(str(root.resolve())):
        raise UserError(
            f"--root {shown(root.resolve())} is not of UTF-8: rename its folders (convmv -f latin1 -t utf8)"
        )
    return PlacesSpec(**{**values_of(PlacesSpec, vars(options)), "root": root, "max_pixels": max_pixels(options)})


def max_pixels(options: argparse.Namespace) -> int:
    """Of an image file that is read. A server's flag is of the images that are sent to it."""
    typed = MAX_PIXELS if options.maxPixels is None else int(1e6 * options.maxPixels)
    return max(typed, MAX_PIXELS) if options.mode == "serve" else typed


def reading(options: argparse.Namespace, device: "torch.device") -> "Reading":
    """How the flags want images read, for a model on `device`."""
    from vpr.data.reader import Reading

    size = tuple(options.imageSize) if options.imageSize else None
    return Reading(size, options.threads, device, max_pixels(options))


def second_look(options: argparse.Namespace, default: int = 0) -> Reranking | None:
    """How the flags want hits ordered anew; None: not.

    Args:
        default: how many hits where the flags do not say.

    Raises:
        UserError: --rerankBy without --rerank.
    """
    depth = default if options.rerank is None else options.rerank
    if not depth and "rerankBy" in options.given:
        raise UserError("--rerankBy has no effect without --rerank K: give that too, or drop it")
    return Reranking(depth, options.rerankBy) if depth else None


def sequence_rule(options: argparse.Namespace) -> SequenceRule | None:
    """How the flags want similarities of frames combined; None: not.

    Raises:
        UserError: --causal or --speeds without what they are about.
    """
    if options.sequence:
        return SequenceRule(**values_of(SequenceRule, vars(options)))
    for flag in ("causal", "speeds"):
        if flag in options.given and not (flag == "causal" and options.excludeRecent is not None):
            raise UserError(f"--{flag} has no effect without --sequence L: give that too, or drop it")
    return None


def search_filter(options: argparse.Namespace) -> "SearchFilter | None":
    """Which part of the database the flags want searched; None: all."""
    from vpr.database.filters import SearchFilter

    if not (options.near or options.box or options.where):
        return None
    return SearchFilter(options.near, options.box, tuple(options.where or ()))


def engine_wanted(options: argparse.Namespace) -> "WantedEngine":
    """The engine that the flags name.

    Raises:
        UserError: flags of FAISS are given with Milvus, or the other way round.
    """
    from vpr.database.engines import engine_address
    from vpr.database.open import WantedEngine

    address = engine_address(options.engine)
    if not address.target and options.collection:
        raise UserError("--collection has no effect with --engine=faiss: drop it, or name milvus:FILE.db")
    if address.target:
        without = [name for name in ("indexFile", "localDescriptors", "onDisk") if getattr(options, name, None)]
        if without:
            raise UserError(f"--{without[0]} is of --engine=faiss, found --engine={options.engine}: drop one of them")
    return WantedEngine(address, options.collection)


def recent_frames(options: argparse.Namespace) -> RecentFrames | None:
    """Which frames of a query's own walk may not be found; None: all may.

    Raises:
        UserError: they are to be left out of an approximate search.
    """
    if options.excludeRecent is None:
        return None
    if options.index:
        raise UserError("--excludeRecent searches exactly: drop --index or --excludeRecent")
    return RecentFrames(options.excludeRecent, options.causal)


def hloc_files(options: argparse.Namespace) -> "HlocFiles":
    """The files of hloc and COLMAP that the flags want."""
    from vpr.runs.hloc import HlocFiles

    features, pairs = (Path(name) if name else None for name in (options.hlocFeatures, options.pairs))
    return HlocFiles(features, options.hlocHalf, pairs, options.pairsTop)


def training_rules(options: argparse.Namespace) -> TrainingRules:
    """The rules that the flags describe."""
    return TrainingRules(**values_of(TrainingRules, vars(options)), seed=options.seed)
