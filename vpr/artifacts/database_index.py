"""The database as it is searched: descriptors, or a FAISS index of them, in a file with what made them."""

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path

import faiss
import h5py
import torch

from vpr.artifacts.descriptors_file import model_recipe
from vpr.artifacts.model import LoadedModel
from vpr.cli.specs import reading
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import files_digest, open_hdf5, write_hdf5
from vpr.data.places import PlacePhotos
from vpr.descriptors.describe import describe
from vpr.search.approximate import build_index
from vpr.search.database import DatabaseIndex

REMEDY = "make it anew with --mode=index, or name another with --indexFile"
PHOTO_FIELDS = ("photos", "photos_hash", "files_hash")
EXACT = "none"  # in place of a FAISS index's factory string


def index_recipe(finished: LoadedModel, photos: PlacePhotos, options: argparse.Namespace) -> dict[str, str]:
    """What an index depends on. The photos' folder is no part of it: an index may travel with its photos."""
    return {
        **model_recipe(finished.model, options), "photos": photos.places.name,
        "photos_hash": photos.places.fingerprint(),
        "files_hash": files_digest(photos.places.database_names, photos.database_files),
    }  # fmt: skip


def index_file(finished: LoadedModel, photos: PlacePhotos, options: argparse.Namespace) -> Path:
    """Where the index of a split's database lies or shall lie: --indexFile, or beside the model.

    Photo folders with the same last name get a file each: the second one's name has a hash of the whole path. A
    file of the same photos in another folder has travelled with them and is taken.

    Raises:
        UserError: the file that is there is damaged or no index, so that it cannot be told whose it is.
    """
    if options.indexFile:
        return Path(options.indexFile)
    path = _usual_file(finished, photos)
    if not path.is_file():
        return path
    with open_hdf5(path, "an index", REMEDY) as file:
        found = dict(file.attrs)
    mine, theirs = _folder_hash(options), found.get("folder_hash")
    travelled = found.get("files_hash") == files_digest(photos.places.database_names, photos.database_files)
    return path if theirs in (None, mine) or travelled else path.with_stem(f"{path.stem}_{mine}")


def file_to_write(finished: LoadedModel, photos: PlacePhotos, options: argparse.Namespace) -> Path:
    """As `index_file`, for --mode=index, which replaces a damaged file."""
    try:
        return index_file(finished, photos, options)
    except UserError as error:
        say(f"replaced: {error}")
        return _usual_file(finished, photos)


def _usual_file(finished: LoadedModel, photos: PlacePhotos) -> Path:
    return finished.folder / f"database_{photos.places.name}.h5"


def _folder_hash(options: argparse.Namespace) -> str:
    return hashlib.sha256(str(Path(options.root).resolve()).encode()).hexdigest()[:8]


def make_index(
    path: Path,
    finished: LoadedModel,
    photos: PlacePhotos,
    options: argparse.Namespace,
    device: torch.device,
    factory: str | None,
) -> DatabaseIndex:
    """Describe the database and write its descriptors, or a FAISS index of them, whole or not at all.

    Args:
        factory: FAISS's string for the index; None keeps the descriptors.
    """
    recipe = index_recipe(finished, photos, options)  # before, so that a photo that changes meanwhile is noticed
    reader = reading(options, device).of(photos.database_files)
    descriptors, _ = describe(finished.model, reader, range(len(reader.files)), options.cacheBatchSize, "database")
    if factory:
        index = DatabaseIndex(approximate=build_index(factory, descriptors, options.seed, options.nprobe))
        values = {"faiss": faiss.serialize_index(index.approximate)}
    else:
        index = DatabaseIndex(descriptors)
        values = {"descriptors": descriptors.numpy()}
    write_hdf5(path, values, {**recipe, "index": factory or EXACT, "folder_hash": _folder_hash(options)})
    say(f"wrote {path}: {len(reader.files)} photos, {path.stat().st_size / 1e6:.1f} MB")
    return index


def load_or_make_index(
    finished: LoadedModel, photos: PlacePhotos, options: argparse.Namespace, device: torch.device
) -> DatabaseIndex:
    """The index of a split's database, made anew where there is none or photos are others than when it was made.

    Raises:
        UserError: the file is damaged or foreign, another model made it, or --index contradicts it.
    """
    path, factory = index_file(finished, photos, options), options.index
    if path.is_file():
        recipe = index_recipe(finished, photos, options)
        with open_hdf5(path, "an index", REMEDY) as file:
            found = dict(file.attrs)
            _refuse_other_models(path, found, recipe)
            kind = found.get("index", factory or EXACT)
            if factory and kind != factory:
                raise UserError(f"{path} is made with --index={kind}, found --index={factory}: drop that, or {REMEDY}")
            factory = None if kind == EXACT else kind
            changed = _what_changed(found, recipe)
            if not changed:
                return _read(file, len(photos.database_files), finished.model.dim, options)
        say(f"{path} {changed}: making it anew")
    return make_index(path, finished, photos, options, device, factory)


def _refuse_other_models(path: Path, found: Mapping[str, object], recipe: dict[str, str]) -> None:
    for name, value in recipe.items():
        if name not in PHOTO_FIELDS and found.get(name) != value:
            raise UserError(f"{path} was made by another model ({name}={found.get(name)}, wanted {value}): {REMEDY}")


def _what_changed(found: Mapping[str, object], recipe: dict[str, str]) -> str | None:
    """Why an index cannot serve these photos, or None where it can."""
    if found.get("photos_hash") != recipe["photos_hash"]:
        return "is of other photos or places than there are now"
    if "files_hash" not in found:
        return "was written by an earlier version, which did not say of which photo files"
    if found["files_hash"] != recipe["files_hash"]:
        return "is of other photo files (size or time of a photo differs)"
    return None


def _read(file: h5py.File, count: int, dim: int, options: argparse.Namespace) -> DatabaseIndex:
    """An index that `open_hdf5` has found whole: FAISS is given nothing else, since it trusts what it reads."""
    if "faiss" in file:
        index = faiss.deserialize_index(file["faiss"][:])
        shape, kind = (index.ntotal, index.d), "an index"
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None and "nprobe" in options.given:
            lists.nprobe = options.nprobe
        found = DatabaseIndex(approximate=index)
    else:
        values = torch.from_numpy(file["descriptors"][:])
        shape, kind, found = tuple(values.shape), str(values.dtype), DatabaseIndex(values)
    if shape != (count, dim):
        raise ValueError(f"found {kind} of {shape}, wanted {(count, dim)}")
    return found
