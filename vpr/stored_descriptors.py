"""Descriptors of a split in an HDF5 file that says what made them: --saveDescriptors, --loadDescriptors."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from vpr.encoder import normalization_of, weights_hash
from vpr.errors import UserError
from vpr.files import replacing
from vpr.model import PlaceModel
from vpr.places import PlacePhotos
from vpr.precision import precision_name


@dataclass(frozen=True)
class SplitDescriptors:
    """Descriptors of a split, float16 [N, dim] and [M, dim], and the (height, width) in pixels its photos had."""

    database: torch.Tensor
    queries: torch.Tensor
    photo_sizes: set[tuple[int, int]]


def model_recipe(model: PlaceModel, options: argparse.Namespace) -> dict[str, str]:
    """What a photo's descriptor depends on beside the photo."""
    return {
        "arch": options.arch,
        "pooling": options.pooling,
        "dimension": str(model.descriptor_dim),
        "weights_hash": weights_hash(model),
        "normalization": normalization_of(options.arch, options.weights, options.normalization)[0],
        "precision": precision_name(model.dtype),
        "image_size": " ".join(map(str, options.imageSize)) if options.imageSize else "own",
    }


def recipe_of(model: PlaceModel, photos: PlacePhotos, options: argparse.Namespace) -> dict[str, str]:
    """What a split's descriptors depend on."""
    recipe = {**model_recipe(model, options), "spec": photos.places.name, "spec_hash": photos.places.fingerprint()}
    if photos.query_longest_side and not options.imageSize:
        recipe["image_size"] += f", queries at most {photos.query_longest_side}"
    return recipe


def save_descriptors(path: Path, descriptors: SplitDescriptors, recipe: dict[str, str]) -> None:
    """Write both sets with their recipe, whole or not at all."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.create_dataset("database", data=descriptors.database.numpy())
        file.create_dataset("queries", data=descriptors.queries.numpy())
        file.create_dataset("photo_sizes", data=np.array(sorted(descriptors.photo_sizes)))
        file.attrs.update(recipe)


def load_descriptors(path: Path, wanted: dict[str, str]) -> SplitDescriptors:
    """Read what `save_descriptors` wrote.

    Raises:
        UserError: the file is missing, damaged or foreign, or another model or other photos made it.
    """
    try:
        with h5py.File(path) as file:
            found = dict(file.attrs)
            for name, value in wanted.items():
                if found.get(name) != value:
                    raise UserError(
                        f"{path} was made with {name}={found.get(name)}, wanted {name}={value}: "
                        "drop --loadDescriptors, or name a file that this model made of these photos"
                    )
            database, queries = _read(file["database"]), _read(file["queries"])
            sizes = {(int(height), int(width)) for height, width in file["photo_sizes"]}
    except (OSError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} cannot be read as descriptors ({error}): make it with --saveDescriptors") from error
    return SplitDescriptors(database, queries, sizes)


def _read(dataset: h5py.Dataset) -> torch.Tensor:
    values = torch.empty(dataset.shape, dtype=torch.float16)
    if dataset.size:
        dataset.read_direct(values.numpy())
    return values
