"""Files that hloc and COLMAP read: global descriptors by image name in HDF5, and lists of image pairs.

    FILE.h5/<image name>/global_descriptor      [dim], float32 or float16; slashes in a name make groups of groups
    FILE.h5/<image name>/image_size             [2], width and height in pixels, as hloc writes it; it is not read here
    FILE.txt                                    lines `query database`, each query's best first

Names are paths below --root with forward slashes, as hloc and COLMAP have them for the same image folder. The files
carry no checksum and no note of what made them: other programs append to them.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import Progress, say
from vpr.common.provenance import HDF5_SIGNATURE
from vpr.data.images import image_size
from vpr.data.places import PlaceImages
from vpr.runs.descriptors_file import SplitDescriptors
from vpr.search.exact import nearest
from vpr.search.floats import Descriptors

DESCRIPTOR, SIZE = "global_descriptor", "image_size"
REMEDY = "describe these images anew, or name another file with --loadDescriptors"
LENGTH_TOLERANCE = 0.01  # by which a descriptor's length may differ from 1


@dataclass(frozen=True)
class HlocFiles:
    """The files that are wanted."""

    features: Path | None = None  # HDF5 file of global descriptors; None is none
    half: bool = False  # whether its numbers are float16 instead of float32
    pairs: Path | None = None  # text file of image pairs; None is none
    top: int = 20  # pairs of each query

    def check(self, images: PlaceImages, root: Path) -> None:
        """Raises UserError where the names of images cannot stand in the files; before they are described."""
        names = image_names(images.files, root) if self.features or self.pairs else []
        if wrong := [name for name in names if self.pairs and len(name.split()) != 1]:
            raise UserError(
                f"--pairs: {len(wrong)} names of images have spaces, first {wrong[0]!r}, which the readers of such a "
                "list take for two names: rename these files"
            )


def image_names(files: Sequence[Path], root: Path) -> list[str]:
    """The names of images in hloc's and COLMAP's files: paths below `root`; UserError where one lies elsewhere."""
    try:
        return [file.relative_to(root).as_posix() for file in files]
    except ValueError as error:
        raise UserError(
            f"an image does not lie below --root {root}, by which hloc and COLMAP would name it ({error}): name a "
            "folder that holds all images with --root"
        ) from error


def write_hloc_files(
    wanted: HlocFiles, images: PlaceImages, root: Path, database: np.ndarray, queries: np.ndarray | None = None
) -> None:
    """Write those files that are wanted, each whole or not at all. Raises a UserError: a file cannot be written.

    Descriptors are float16, of the database [N, dim] and the queries [M, dim]; without these (None) the database is
    paired with itself.
    """
    names = image_names(images.database_files, root)
    query_names = names if queries is None else image_names(images.query_files, root)
    if wanted.features:
        parts = [(images.database_files, names, database)]
        parts += [] if queries is None else [(images.query_files, query_names, queries)]
        count = _write_features(wanted.features, parts, wanted.half)
        size = wanted.features.stat().st_size / 1e6
        say(f"wrote {wanted.features}: global descriptors of {count} images, {size:.1f} MB")
    if wanted.pairs:
        pairs = retrieval_pairs(database, database if queries is None else queries, names, query_names, wanted.top)
        count = _write_pairs(wanted.pairs, pairs)
        say(f"wrote {wanted.pairs}: {count} pairs of {len(query_names)} images")


def retrieval_pairs(
    database: Descriptors, queries: Descriptors, database_names: Sequence[str], query_names: Sequence[str], top: int
) -> Iterator[tuple[str, str]]:
    """Each query with its `top` nearest database images, best first, never with itself.
    `database`: [N, dim]; `queries`: [M, dim], which may be the database. `database_names` and `query_names`: of the
    images; equal names are the same image."""
    found = nearest(database, queries, top + 1)  # one more: the image itself may be among them
    for query, hits in zip(query_names, found, strict=True):
        others = [database_names[hit] for hit in hits if database_names[hit] != query]
        yield from ((query, other) for other in others[:top])


def _write_features(path: Path, parts: list[tuple[list[Path], list[str], np.ndarray]], half: bool) -> int:
    """Write descriptors image by image; an image that is in two parts is written once. Gives how many there are."""
    seen: set[str] = set()
    total = sum(len(names) for _, names, _ in parts)
    with (
        atomic_write(path) as temporary,
        h5py.File(temporary, "w", libver="latest", locking=False) as file,
        Progress("hloc", total) as progress,
    ):
        for files, names, descriptors in parts:
            for image, name, descriptor in zip(files, names, descriptors, strict=True):
                progress.advance(1)
                if name in seen:
                    continue
                seen.add(name)
                group = file.create_group(name)
                group.create_dataset(DESCRIPTOR, data=descriptor.astype(np.float16 if half else np.float32))
                height, width = image_size(image)
                group.create_dataset(SIZE, data=np.array([width, height]))
    return len(seen)


def _write_pairs(path: Path, pairs: Iterator[tuple[str, str]]) -> int:
    """Write `query database` lines, without a line break behind the last; gives how many there are."""
    count = 0
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for count, (query, other) in enumerate(pairs, start=1):
            file.write(f"{'' if count == 1 else chr(10)}{query} {other}")
    return count


def is_hloc(path: Path) -> bool:
    """Whether a file is HDF5 with a `global_descriptor` by image name, instead of one that --saveDescriptors wrote.

    A file with our checksum in front is not looked into: it may be damaged, and is read where the checksum is compared.
    """
    try:
        with open(path, "rb") as front:
            if front.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
                return False
        with h5py.File(path) as file:
            if {"database", "queries", "photo_sizes"} <= set(file) and isinstance(file["database"], h5py.Dataset):
                return False
            return bool(file.visit(lambda name: name.rpartition("/")[2] == DESCRIPTOR or None))
    except (OSError, RuntimeError, ValueError, KeyError):  # missing or damaged: the reader of our own files says so
        return False


def load_hloc(path: Path, images: PlaceImages, root: Path) -> SplitDescriptors:
    """The descriptors of a split's images by name from a file of hloc's kind, whoever made it. Raises a UserError: the
    file is damaged, or descriptors are missing, of several dimensions, not finite or of length 0."""
    names = image_names(images.files, root)
    try:
        with h5py.File(path) as file:
            names = [_name_in(file, name) for name in names]
            if missing := [name for name in names if f"{name}/{DESCRIPTOR}" not in file]:
                known = file.visit(lambda name: name if name.rpartition("/")[2] == DESCRIPTOR else None)
                raise UserError(
                    f"{path} has no descriptor of {len(missing)} of {len(names)} images, first {missing[0]} (it has "
                    f"{known.rpartition('/')[0]}, ...): names are paths below --root; {REMEDY}"
                )
            values = _read_rows(path, file, names)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as hloc's global descriptors ({error}): {REMEDY}") from error
    say(
        f"{path} holds global descriptors by image name: which model made them, of which pixels, cannot be told; the "
        "model that the flags name is not used"
    )
    count = len(images.database_files)
    return SplitDescriptors(values[:count], values[count:], set(), made_by=f"descriptors of {path}, made elsewhere")


def _name_in(file: h5py.File, name: str) -> str:
    """A name as the file has it, be it in another of Unicode's forms."""
    if name.isascii():
        return name
    forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    return next((form for form in forms if f"{form}/{DESCRIPTOR}" in file), name)


def _read_rows(path: Path, file: h5py.File, names: list[str]) -> np.ndarray:
    """Descriptors float16 [n, dim], read one by one."""
    dim = math.prod(getattr(file[f"{names[0]}/{DESCRIPTOR}"], "shape", ()))
    values, unlike = np.empty((len(names), dim), np.float16), 0
    for row, name in enumerate(names):
        stored = file[f"{name}/{DESCRIPTOR}"]
        if not isinstance(stored, h5py.Dataset) or stored.dtype.kind != "f" or stored.shape != (dim,):
            found = f"{stored.dtype} {stored.shape}" if isinstance(stored, h5py.Dataset) else "no data set"
            raise UserError(
                f"{path}: the descriptor of {name} is {found}, wanted {dim} floating-point numbers: {REMEDY}"
            )
        descriptor = stored[:].astype(np.float64)
        length = float(np.linalg.norm(descriptor))
        with np.errstate(over="ignore"):  # then it is not finite
            values[row] = descriptor
        if not np.isfinite(values[row]).all() or length == 0:
            raise UserError(f"{path}: the descriptor of {name} is not finite or all 0: {REMEDY}")
        unlike += abs(length - 1) > LENGTH_TOLERANCE
    if unlike:
        say(f"{unlike} descriptors of {path} are not of length 1: the nearest by distance are not those by product")
    return values
