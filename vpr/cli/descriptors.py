"""Options -> the descriptors of a split, read from a file or made, and kept if that is wanted."""

import argparse
import contextlib
from pathlib import Path

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages
from vpr.data.reader import Reading
from vpr.descriptors.describe import LocalDescribing
from vpr.descriptors.local_file import local_file, require_dim
from vpr.descriptors.local_maps import MemorySink
from vpr.evaluation.evaluate import describe_split
from vpr.retrieval.rules import Reranking
from vpr.runs.descriptors_file import SplitDescriptors, load_descriptors, recipe_of, save_descriptors
from vpr.runs.hloc import is_hloc, load_hloc
from vpr.runs.local_projection import projection_for
from vpr.runs.model import LoadedModel


def descriptors_of(
    options: argparse.Namespace, loaded: LoadedModel, images: PlaceImages, read: Reading, reranked: Reranking | None
) -> SplitDescriptors:
    """Those of --loadDescriptors, or of the images; with local ones for re-ranking.
    Raises a UserError: the file is damaged, or of another model or other images, or an image cannot be decoded."""
    reranked = reranked if reranked and reranked.takes_local else None
    model, path = loaded.model, Path(options.loadDescriptors or options.saveDescriptors or "")
    if options.loadDescriptors and is_hloc(path):
        if reranked:
            raise UserError(
                f"{path} has no local descriptors: --rerank needs the images described anew, or drop --rerank"
            )
        return load_hloc(path, images, Path(options.root))
    recipe = recipe_of(model, images, read.size)
    if options.loadDescriptors:
        descriptors = load_descriptors(path, recipe, images)
        if reranked and not descriptors.local:
            raise UserError(f"{path} has no local descriptors: make it anew with --rerank, or drop --rerank")
        if reranked and (kept := descriptors.local):
            require_dim(path, kept.maps, kept.projection, options.given.get("localDim"))
        return descriptors
    # Local descriptors go into a file beside those of --saveDescriptors, else into memory.
    saves = options.saveDescriptors and processes.is_main()
    with local_file(path) if saves and reranked else contextlib.nullcontext(MemorySink(len(images.files))) as sink:
        local = None
        if reranked:
            database = read.of(images.database_files)
            projection = projection_for(loaded, database, options.seed, options.localDim, options.cacheBatchSize)
            local = LocalDescribing(projection, sink)
        descriptors = describe_split(model, images, images.reader(read), options.cacheBatchSize, local)
        if saves:
            save_descriptors(path, descriptors, recipe)
            say(f"wrote {path}")
    return descriptors
