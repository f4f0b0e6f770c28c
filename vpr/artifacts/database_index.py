"""The database as it is searched: descriptors, or a FAISS index of them, in a file with what made them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import h5py
import torch

from vpr.artifacts.descriptors_file import model_recipe
from vpr.artifacts.model import LoadedModel
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import files_digest, open_hdf5, write_hdf5
from vpr.data.places import PlaceImages
from vpr.data.reader import Reading
from vpr.descriptors.describe import describe
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
        seed: of what the index is trained on.
    """

    factory: str | None = None
    nprobe: int | None = None
    seed: int = DEFAULT_SEED


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
    descriptors, _ = describe(loaded.model, reader, range(len(reader.files)), batch_size, "database")
    if wanted.factory:
        built = build_index(wanted.factory, descriptors, wanted.seed, wanted.nprobe or NPROBE)
        index, values = DatabaseIndex(approximate=built), {"faiss": faiss.serialize_index(built)}
    else:
        index, values = DatabaseIndex(descriptors), {"descriptors": descriptors.numpy()}
    write_hdf5(path, values, {**recipe, "index": wanted.factory or EXACT, "folder_hash": _folder_hash(root)})
    say(f"wrote {path}: {len(reader.files)} images, {path.stat().st_size / 1e6:.1f} MB")
    if also:
        also(descriptors)
    return index


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
                return _read(file, len(images.database_files), loaded.model.dim, wanted.nprobe)
        wanted = replace(wanted, factory=None if kind == EXACT else kind)
        say(f"{path} {changed}: making it anew")
    return make_index(path, loaded, images, root, reading, wanted, batch_size)


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
