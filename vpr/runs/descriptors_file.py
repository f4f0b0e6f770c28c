"""Descriptors of a split in an HDF5 file that says what made them: --saveDescriptors, --loadDescriptors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import files_digest, open_hdf5, write_hdf5
from vpr.data.places import PlaceImages
from vpr.data.reader import size_text
from vpr.descriptors.local_file import described, read_local, remove_local
from vpr.descriptors.local_maps import LocalMaps
from vpr.models.describer import Describer
from vpr.models.local_projection import LocalProjection

REMEDY = "drop --loadDescriptors, or name a file that this model made of these images with --saveDescriptors"


@dataclass(frozen=True)
class SplitDescriptors:
    """Descriptors of a split."""

    database: np.ndarray  # float16 [N, dim]
    queries: np.ndarray  # float16 [M, dim]
    image_sizes: set[tuple[int, int]]  # the (height, width) in pixels that its images had
    resized: bool = False  # whether all were resized to that
    made_by: str = ""  # what made them, where that is not the model at hand; empty where it is
    local: "SplitLocal | None" = None  # local descriptors, where they were kept


@dataclass(frozen=True)
class SplitLocal:
    """Local descriptors of a split."""

    maps: LocalMaps  # of the database's images, then of the queries
    database_images: int  # how many there are of the first
    projection: LocalProjection | None  # what projected them; None where the model did

    @property
    def database(self) -> LocalMaps:
        """Those of the database."""
        return self.maps.part(0, self.database_images)

    @property
    def queries(self) -> LocalMaps:
        """Those of the queries."""
        return self.maps.part(self.database_images, len(self.maps.grids))


def model_recipe(model: Describer, image_size: Sequence[int] | None) -> dict[str, str]:
    """What a descriptor depends on beside the image; `image_size`: (height, width) in pixels, None: its own."""
    return {**model.recipe, "image_size": size_text(image_size)}


def recipe_of(model: Describer, images: PlaceImages, image_size: Sequence[int] | None) -> dict[str, str]:
    """What a split's descriptors depend on; arguments as of `model_recipe`."""
    places = images.places
    recipe = {
        **model_recipe(model, image_size), "spec": places.name, "spec_hash": places.fingerprint(),
        "files_hash": files_digest(places.database_names + places.query_names, images.files),
    }  # fmt: skip
    if images.query_longest_side and not image_size:
        recipe["image_size"] += f", queries at most {images.query_longest_side}"
    return recipe


def save_descriptors(path: Path, descriptors: SplitDescriptors, recipe: dict[str, str]) -> None:
    """Write both sets with their recipe, whole or not at all."""
    values = {"database": descriptors.database, "queries": descriptors.queries}
    values["photo_sizes"] = np.array(sorted(descriptors.image_sizes))
    kept: dict[str, str] = {}
    if descriptors.local:
        arrays, kept = described(descriptors.local.maps, descriptors.local.projection)
        values |= arrays
    write_hdf5(path, values, {**recipe, **kept})
    if not descriptors.local:
        remove_local(path)


def load_descriptors(path: Path, wanted: dict[str, str], images: PlaceImages) -> SplitDescriptors:
    """Read what `save_descriptors` wrote.
    `wanted`: the recipe that the file has to have. `images`: of which there has to be a descriptor each.
    Raises a UserError: the file is missing, damaged or foreign, or another model or other images made it."""
    count, dim = len(images.database_files), int(wanted["dimension"])
    with open_hdf5(path, "descriptors", REMEDY) as file:
        found = dict(file.attrs)
        if "files_hash" not in found:
            say(f"{path} was written by an earlier version: whether image files have changed since cannot be told")
            found["files_hash"] = wanted["files_hash"]
        for name, value in wanted.items():
            if found.get(name) == value:
                continue
            if name == "files_hash":
                raise UserError(f"{path} was made of other image files (size or time of an image differs): {REMEDY}")
            raise UserError(f"{path} was made with {name}={found.get(name)}, wanted {name}={value}: {REMEDY}")
        database = _read(file["database"], (count, dim))
        queries = _read(file["queries"], (len(images.query_files), dim))
        sizes = {(int(height), int(width)) for height, width in file["photo_sizes"]}
        stored = read_local(file, path)
        local = SplitLocal(stored[0], count, stored[1]) if stored else None
    return SplitDescriptors(
        database, queries, sizes, not wanted["image_size"].startswith(("own", "longest")), local=local
    )


def _read(dataset: h5py.Dataset, shape: tuple[int, int]) -> np.ndarray:
    if dataset.shape != shape or dataset.dtype != np.float16:
        raise ValueError(f"found {dataset.dtype} {dataset.shape}, wanted float16 {shape}")
    return dataset[:]
