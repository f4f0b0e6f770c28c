"""The vocabulary: k-means centres of local descriptors, in a file that says what made them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import open_hdf5, write_hdf5
from vpr.data.layouts.folders import folder_hash
from vpr.data.places import PlaceImages, PlacesSpec, has_split, is_plain_folder, training_set
from vpr.data.reader import ImageReader, Reading, size_text
from vpr.descriptors.vocabulary import IMAGES, cluster, sample_local_descriptors
from vpr.models.normalization import normalization_of
from vpr.models.place_model import PlaceModel
from vpr.models.poolings.base import ClusterPooling
from vpr.models.spec import DEFAULT_SEED
from vpr.models.weights import weights_hash, weights_label

ENDING = ".hdf5"


class MissingCentroids(UserError):
    """There are no centroids for a model; `path` is where they were sought."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"no centroids at {path}: make them with --mode=cluster")
        self.path = path


@dataclass(frozen=True)
class Recipe:
    """What centroids are made from. Two files with equal recipes hold centroids for the same model and images."""

    arch: str
    weights: str
    weights_hash: str  # of the backbone's values, so that a file and a name of the same weights are the same
    normalization: str
    num_clusters: int
    dataset: str  # name of the training spec
    dataset_hash: str  # of the names and positions in it
    image_size: str  # `H W` in pixels that images were resized to, or `own`
    seed: int


@dataclass(frozen=True)
class OwnImages:
    """A database whose own images the clusters are learnt of where there are none."""

    images: PlaceImages
    read: Reading
    batch_size: int | None  # images at once; 0: as many as memory holds
    prepare: Callable[..., object]  # brings a model to where it shall describe so many `images`

    def learn(self, model: PlaceModel, recipe: "Recipe", path: Path) -> None:
        """Learn clusters, and write them."""
        files, name = self.images.database_files, self.images.places.name
        say(f"no clusters yet: learning {recipe.num_clusters} from {min(len(files), IMAGES)} images of {name} (once)")
        self.prepare(model, images=min(len(files), IMAGES))
        descriptors = sample_local_descriptors(
            model, self.read.of(files), recipe.seed, self.batch_size, recipe.num_clusters
        )
        if processes.is_main():
            write_centroids(path, recipe, cluster(descriptors, recipe.num_clusters, recipe.seed), descriptors)
        processes.barrier()


# What has to agree, and the flag that the message names. Names of weights may differ where values agree.
MODEL_FIELDS = {
    "arch": "arch", "num_clusters": "num_clusters", "weights_hash": "weights", "normalization": "normalization",
}  # fmt: skip
IMAGE_FIELDS = {"dataset": "dataset", "dataset_hash": "root", "image_size": "imageSize", "seed": "seed"}


def recipe_for(model: PlaceModel, dataset: str, dataset_hash: str, image_size: tuple[int, ...] | None) -> Recipe:
    """The recipe of centroids for a model. `dataset` and `dataset_hash`: of the training places, as of `training_set`.
    `image_size`: (height, width) in pixels that images are resized to; None is their own."""
    spec = model.spec
    return Recipe(
        arch=spec.backbone_name,
        weights=weights_label(spec.arch, spec.weights),
        weights_hash=weights_hash(model.backbone),
        normalization=normalization_of(spec.arch, spec.weights, spec.normalization)[0],
        num_clusters=spec.clusters,
        dataset=dataset,
        dataset_hash=dataset_hash,
        image_size=size_text(image_size),
        seed=spec.seed,
    )


def centroids_path(where: Path, recipe: Recipe) -> Path:
    """Where centroids of a recipe lie: `where` itself if that names a file, else in it by a name that tells them apart.

    The default seed is not in the name.
    """
    if _names_a_file(where):
        return where
    seed = "" if recipe.seed == DEFAULT_SEED else f"_seed{recipe.seed}"
    return where / f"{_name(recipe)}{seed}{ENDING}"


def _name(recipe: Recipe) -> str:
    weights = f"{recipe.weights}-{recipe.weights_hash[:6]}"
    images = f"{recipe.dataset}-{recipe.dataset_hash[:6]}-{recipe.image_size.replace(' ', 'x')}"
    return f"{recipe.arch}_{weights}_{recipe.num_clusters}_{images}"


def write_centroids(path: Path, recipe: Recipe, centroids: np.ndarray, descriptors: np.ndarray) -> None:
    """Write centroids [K, D], the descriptors [N, D] they were made from, and their recipe as attributes."""
    write_hdf5(path, {"centroids": centroids, "descriptors": descriptors}, asdict(recipe))


def read_centroids(path: Path, wanted: Recipe, any_images: bool) -> tuple[np.ndarray, np.ndarray]:
    """Read centroids [K, D] and descriptors [N, D] that were made by `wanted`; with `any_images` also of other images
    or sizes: the user named this very file. Raises a UserError: the file is damaged, or made for something else."""
    with open_hdf5(path, "centroids", "run --mode=cluster again") as file:
        found = dict(file.attrs)
        centroids, descriptors = file["centroids"][:], file["descriptors"][:]
        if centroids.ndim != 2 or descriptors.shape[1:] != centroids.shape[1:] or len(descriptors) < len(centroids):
            raise ValueError(f"centroids {centroids.shape}, descriptors {descriptors.shape}")
    fields = MODEL_FIELDS if any_images else {**MODEL_FIELDS, **IMAGE_FIELDS}
    for name, flag in fields.items():
        value = getattr(wanted, name)
        if str(found.get(name)) != str(value):
            raise UserError(
                f"{path} was made with {name}={found.get(name)}, wanted {name}={value}: "
                f"change --{flag}, or run --mode=cluster with the same flags"
            )
    if len(centroids) != wanted.num_clusters:
        raise UserError(
            f"{path} holds {len(centroids)} centroids, wanted {wanted.num_clusters}: run --mode=cluster again"
        )
    return centroids, descriptors


def init_pooling(
    model: PlaceModel, where: Path, places: PlacesSpec, image_size: tuple[int, ...] | None, own: OwnImages | None = None
) -> str:
    """Start a pooling by clusters from the training set's centroids; other poolings have nothing to start.
    Raises a MissingCentroids: there are none; a UserError: they were made for something else.

    Args:
        where: the folder of centroids files, or one file, whatever images it was made from.
        image_size: (height, width) in pixels that images are resized to; None is their own.
        own: images of which clusters are learnt and kept where there are none of the training set.

    Returns:
        the centroids file's name, or 'none'.
    """
    if not isinstance(model.pool, ClusterPooling):
        return "none"
    own = None if _names_a_file(where) else own
    wanted = recipe_for(model, *_training_set(where, places, own), image_size)
    path = _existing(where, wanted)
    if own is not None and not path.is_file():
        if own.images.split != "train":  # whose clusters are those of the training set
            wanted = recipe_for(model, own.images.places.name, folder_hash(places.root), image_size)
            path = centroids_path(where, wanted)
        if not path.is_file():
            own.learn(model, wanted, path)
    if not path.is_file():
        raise MissingCentroids(path)
    centroids, descriptors = read_centroids(path, wanted, any_images=_names_a_file(where))
    if centroids.shape[1] != model.pool.centroids.shape[1]:
        raise UserError(f"{path} holds {centroids.shape[1]}-D centroids, --arch={model.spec.arch} gives "
                        f"{model.pool.centroids.shape[1]}-D descriptors: run --mode=cluster again")  # fmt: skip
    device = model.pool.centroids.device  # where the model learnt them, if it did
    model.pool.init_from(torch.from_numpy(centroids).to(device), torch.from_numpy(descriptors).to(device))
    say(f"centroids: {path}")
    return path.name


def init_map(model: PlaceModel, reader: ImageReader, seed: int, batch_size: int | None) -> None:
    """Start the map of --clusterDim that a trained model is given, from local descriptors as it has them now."""
    assert isinstance(model.pool, ClusterPooling)  # others have no such map
    descriptors = processes.broadcast(sample_local_descriptors(model, reader, seed, batch_size))
    model.pool.init_map(torch.from_numpy(descriptors).to(model.device))


def _existing(where: Path, wanted: Recipe) -> Path:
    """Where `wanted` lies; earlier versions had no seed in the name, and such a file may be of this seed."""
    path = centroids_path(where, wanted)
    earlier = path.with_name(f"{_name(wanted)}{ENDING}")
    if path.is_file() or path == where or not earlier.is_file():
        return path
    with open_hdf5(earlier, "centroids", "run --mode=cluster again") as file:
        return earlier if str(file.attrs.get("seed")) == str(wanted.seed) else path


def _names_a_file(where: Path) -> bool:
    return where.suffix == ENDING


def _training_set(where: Path, places: PlacesSpec, own: OwnImages | None) -> tuple[str, str]:
    """Name and hash of the training places; unknown where a file is named, of whatever images, or there are none."""
    if _names_a_file(where) or (own is not None and not (is_plain_folder(places) or has_split(places, "train"))):
        return "unknown", "unknown"
    return training_set(places)
