"""The database as it is searched: descriptors, or a FAISS index of them, in a file with what made them."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import faiss
import h5py
import numpy as np
import torch

from vpr.approximate import build_index
from vpr.descriptors import describe
from vpr.errors import UserError
from vpr.files import replacing
from vpr.finished_model import FinishedModel
from vpr.images import PhotoReader
from vpr.places import PlacePhotos
from vpr.progress import say
from vpr.search import descriptor_distances, nearest, tiles
from vpr.stored_descriptors import model_recipe

PHOTO_FIELDS = ("photos", "photos_hash")


@dataclass(frozen=True)
class DatabaseIndex:
    """Descriptors float16 [N, dim] for the exact search, or a FAISS index for an approximate one."""

    descriptors: torch.Tensor | None = None
    approximate: faiss.Index | None = None

    def search(self, queries: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of the database.

        Args:
            queries: [M, dim].

        Returns:
            indices int64 [M, c], -1 where there are not so many, and descriptor distances float32 [M, c].
        """
        if self.descriptors is not None:
            found = nearest(self.descriptors, queries, count)
            return found, descriptor_distances(self.descriptors, queries, found)
        count = min(count, self.approximate.ntotal)
        parts = [self.approximate.search(queries[rows].float().numpy(), count) for rows in tiles(*queries.shape)]
        squared, found = (np.concatenate(values) for values in zip(*parts, strict=True))
        return found, np.sqrt(np.maximum(squared, 0))


def index_file(finished: FinishedModel, photos: PlacePhotos, options: argparse.Namespace) -> Path:
    """Where the index of a split's database lies: --indexFile, or beside the model."""
    return Path(options.indexFile) if options.indexFile else finished.folder / f"database_{photos.places.name}.h5"


def index_recipe(finished: FinishedModel, photos: PlacePhotos, options: argparse.Namespace) -> dict[str, str]:
    """What an index depends on."""
    return {
        **model_recipe(finished.model, options), "photos": photos.places.name,
        "photos_hash": photos.places.fingerprint(),
    }  # fmt: skip


def make_index(
    path: Path, finished: FinishedModel, photos: PlacePhotos, options: argparse.Namespace, device: torch.device
) -> DatabaseIndex:
    """Describe the database and write its descriptors, or with --index a FAISS index of them, whole or not at all."""
    reader = PhotoReader(photos.database_files, options.imageSize, options.threads, device)
    descriptors, _ = describe(finished.model, reader, range(len(reader.files)), options, device, "database")
    if options.index:
        index = DatabaseIndex(approximate=build_index(options.index, descriptors, options.seed, options.nprobe))
        name, values = "faiss", faiss.serialize_index(index.approximate)
    else:
        index = DatabaseIndex(descriptors)
        name, values = "descriptors", descriptors.numpy()
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset(name, data=values)
        file.attrs.update(index_recipe(finished, photos, options))
    say(f"wrote {path}: {len(reader.files)} photos, {path.stat().st_size / 1e6:.1f} MB")
    return index


def load_index(
    path: Path, finished: FinishedModel, photos: PlacePhotos, options: argparse.Namespace
) -> DatabaseIndex | None:
    """Read an index; None where there is none, or where it is of other photos than there are now.

    Raises:
        UserError: the file is damaged or foreign, or another model made it.
    """
    if not path.is_file():
        return None
    try:
        with h5py.File(path) as file:
            found = dict(file.attrs)
            for name, value in index_recipe(finished, photos, options).items():
                if name not in PHOTO_FIELDS and found.get(name) != value:
                    raise UserError(
                        f"{path} was made by another model ({name}={found.get(name)}, wanted {value}): make it anew "
                        "with --mode=index, or name another with --indexFile"
                    )
            if found.get("photos_hash") != photos.places.fingerprint():
                say(f"{path} is of other photos or places than there are now: making it anew")
                return None
            if "faiss" in file:
                return DatabaseIndex(approximate=faiss.deserialize_index(file["faiss"][:]))
            return DatabaseIndex(torch.from_numpy(file["descriptors"][:]))
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as an index ({error}): make it with --mode=index") from error
