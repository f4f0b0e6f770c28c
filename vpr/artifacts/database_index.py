"""The database as it is searched: descriptors, or a FAISS index of them, in a file with what made them."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import h5py
import numpy as np
import torch

from vpr.artifacts.descriptors_file import model_recipe
from vpr.artifacts.local_file import described, local_file, read_local, remove_local
from vpr.artifacts.local_projection import projection_for
from vpr.artifacts.model import LoadedModel
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import files_digest, open_hdf5, write_hdf5
from vpr.data.places import PlaceImages
from vpr.data.reader import Reading
from vpr.descriptors.describe import LocalDescribing, describe
from vpr.models.local_maps import LocalMaps
from vpr.models.spec import DEFAULT_SEED
from vpr.search.approximate import NPROBE, build_index
from vpr.search.database import DatabaseIndex

REMEDY = "make it anew with --mode=index, or name another with --indexFile"
IMAGE_FIELDS = ("photos", "photos_hash", "files_hash")
EXACT = "none"  # in place of a FAISS index's factory string


@dataclass(frozen=True)
class WantedIndex:
    """The index that is wanted of a database.

    Attributes:
        factory: FAISS's string; None takes what is stored, or keeps descriptors.
        nprobe: lists that an inverted-file index looks through; None takes what is stored, or NPROBE.
        seed: of what the index, and the projection of local descriptors, are trained on.
        local_dim: dimensions of local descriptors that are kept for a second look; 0: they are not.
    """

    factory: str | None = None
    nprobe: int | None = None
    seed: int = DEFAULT_SEED
    local_dim: int = 0


def index_recipe(loaded: LoadedModel, images: PlaceImages, image_size: Sequence[int] | None) -> dict[str, str]:
    """What an index depends on. The images' folder is no part of it: an index may travel with its images."""
    return {
        **model_recipe(loaded.model, loaded.spec, image_size), "photos": images.places.name,
        "photos_hash": images.places.fingerprint(),
        "files_hash": files_digest(images.places.database_names, images.database_files),
    }  # fmt: skip


def index_file(loaded: LoadedModel, images: PlaceImages, root: Path) -> Path:
    """Where the index of a split's database lies or shall lie, beside the model.

    Image folders with the same last name get a file each: the second one's name has a hash of the whole path. A
    file of the same images in another folder has travelled with them and is taken.

    Args:
        root: the images' folder.

    Raises:
        UserError: the file that is there is damaged or no index, so that it cannot be told whose it is.
    """
    path = _usual_file(loaded, images)
    if not path.is_file():
        return path
    with open_hdf5(path, "an index", REMEDY) as file:
        found = dict(file.attrs)
    own, theirs = _folder_hash(root), found.get("folder_hash")
    travelled = found.get("files_hash") == files_digest(images.places.database_names, images.database_files)
    return path if theirs in (None, own) or travelled else path.with_stem(f"{path.stem}_{own}")


def file_to_write(loaded: LoadedModel, images: PlaceImages, root: Path) -> Path:
    """As `index_file`, to write an index anew, which replaces a damaged file."""
    try:
        return index_file(loaded, images, root)
    except UserError as error:
        say(f"replaced: {error}")
        return _usual_file(loaded, images)


def _usual_file(loaded: LoadedModel, images: PlaceImages) -> Path:
    return loaded.folder / f"database_{images.places.name}.h5"


def _folder_hash(root: Path) -> str:
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]


def make_index(
    path: Path,
    loaded: LoadedModel,
    images: PlaceImages,
    root: Path,
    reading: Reading,
    wanted: WantedIndex,
    batch_size: int = 24,
    also: Callable[[torch.Tensor], None] | None = None,
) -> DatabaseIndex:
    """Describe the database and write its descriptors, or a FAISS index of them, whole or not at all.

    Args:
        root: the images' folder.
        reading: how images are read.
        batch_size: images described at once; 0: as many as memory holds.
        also: what else is done with the descriptors, once the index is written.
    """
    recipe = index_recipe(loaded, images, reading.size)  # before, so that an image that changes meanwhile is noticed
    reader = reading.of(images.database_files)
    every, values, kept = range(len(reader.files)), dict[str, np.ndarray](), dict[str, str]()
    local: LocalMaps | None = None
    projection = projection_for(loaded, reader, wanted.seed, wanted.local_dim, batch_size) if wanted.local_dim else None
    with local_file(path) if wanted.local_dim else contextlib.nullcontext() as sink:
        keeping = LocalDescribing(projection, sink) if sink else None
        descriptors, _ = describe(loaded.model, reader, every, batch_size, "database", keeping)
        if sink:
            local = sink.finished()
            values, kept = described(local, projection)
        index, searched = _searchable(descriptors, wanted)
        index, values = replace(index, local=local, projection=projection), {**values, **searched}
        made = {**recipe, **kept, "index": wanted.factory or EXACT, "folder_hash": _folder_hash(root)}
        write_hdf5(path, values, made)  # within: an index that fails leaves an earlier one with its local descriptors
    if local is None:
        remove_local(path)
    megabytes = path.stat().st_size / 1e6
    beside = f", and {local.bytes_per_image:.0f} bytes per image of local descriptors" if local else ""
    say(f"wrote {path}: {len(reader.files)} images, {megabytes:.1f} MB{beside}")
    if also:
        also(descriptors)
    return index


def _searchable(descriptors: torch.Tensor, wanted: WantedIndex) -> tuple[DatabaseIndex, dict[str, np.ndarray]]:
    """Descriptors, or a FAISS index of them, as they are searched and as a file holds them."""
    if not wanted.factory:
        return DatabaseIndex(descriptors), {"descriptors": descriptors.numpy()}
    built = build_index(wanted.factory, descriptors, wanted.seed, wanted.nprobe or NPROBE)
    return DatabaseIndex(approximate=built), {"faiss": faiss.serialize_index(built)}


def load_or_make_index(
    path: Path,
    loaded: LoadedModel,
    images: PlaceImages,
    root: Path,
    reading: Reading,
    wanted: WantedIndex,
    batch_size: int = 24,
) -> DatabaseIndex:
    """The index of a split's database, made anew where there is none or images are others than when it was made.

    Raises:
        UserError: the file is damaged or foreign, another model made it, or it is another index than is wanted.
    """
    if path.is_file():
        recipe = index_recipe(loaded, images, reading.size)
        with open_hdf5(path, "an index", REMEDY) as file:
            found = dict(file.attrs)
            _refuse_other_models(path, found, recipe)
            factory = wanted.factory
            kind = found.get("index", factory or EXACT)
            if factory and kind != factory:
                raise UserError(f"{path} is made with --index={kind}, found --index={factory}: drop that, or {REMEDY}")
            changed = _what_changed(found, recipe)
            if not changed:
                index = _read(file, len(images.database_files), loaded.model.dim, wanted.nprobe)
                return _with_local(index, file, path)
            wanted = replace(wanted, local_dim=int(found.get("local_dim", wanted.local_dim)))
        wanted = replace(wanted, factory=None if kind == EXACT else kind)
        say(f"{path} {changed}: making it anew")
    return make_index(path, loaded, images, root, reading, wanted, batch_size)


def _with_local(index: DatabaseIndex, file: h5py.File, path: Path) -> DatabaseIndex:
    """An index with the local descriptors beside it, if it was made with them."""
    stored = read_local(file, path)
    return replace(index, local=stored[0], projection=stored[1]) if stored else index


def _refuse_other_models(path: Path, found: Mapping[str, object], recipe: dict[str, str]) -> None:
    for name, value in recipe.items():
        if name not in IMAGE_FIELDS and found.get(name) != value:
            raise UserError(f"{path} was made by another model ({name}={found.get(name)}, wanted {value}): {REMEDY}")


def _what_changed(found: Mapping[str, object], recipe: dict[str, str]) -> str | None:
    """Why an index cannot serve these images, or None where it can."""
    if found.get("photos_hash") != recipe["photos_hash"]:
        return "is of other images or places than there are now"
    if "files_hash" not in found:
        return "was written by an earlier version, which did not say of which image files"
    if found["files_hash"] != recipe["files_hash"]:
        return "is of other image files (size or time of an image differs)"
    return None


def _read(file: h5py.File, count: int, dim: int, nprobe: int | None) -> DatabaseIndex:
    """An index that `open_hdf5` has found whole: FAISS is given nothing else, since it trusts what it reads."""
    if "faiss" in file:
        index = faiss.deserialize_index(file["faiss"][:])
        shape: tuple[int, ...] = (index.ntotal, index.d)
        kind = "an index"
        lists = faiss.try_extract_index_ivf(index)
        if lists is not None and nprobe is not None:
            lists.nprobe = nprobe
        found = DatabaseIndex(approximate=index)
    else:
        values = torch.from_numpy(file["descriptors"][:])
        shape, kind, found = tuple(values.shape), str(values.dtype), DatabaseIndex(values)
    if shape != (count, dim):
        raise ValueError(f"found {kind} of {shape}, wanted {(count, dim)}")
    return found
