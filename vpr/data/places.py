"""Stage 1, places: which spec belongs to a dataset's split, and where its images lie."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pittsburgh import Places, SpecError, read_places
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.catalogue import DATASETS, MAT, OTHER_TIME, OWN, PLAIN, QUERIES_IN_DATABASE, Dataset
from vpr.data.layouts import folders
from vpr.data.layouts.readers import has_layout, read_layout
from vpr.data.layouts.spec_files import find_files, listing, queries_are_database_images
from vpr.data.reader import ImageReader, Reading, decodable
from vpr.data.settings import PlacesSpec


@dataclass(frozen=True)
class PlaceImages:
    """A split and its image files, in the spec's order."""

    places: Places
    split: str
    database_files: list[Path]
    query_files: list[Path]
    query_longest_side: int | None = None  # pixels, to which larger queries are shrunk unless all images get one size
    dataset: str = ""  # a key of `vpr.data.catalogue.DATASETS`; empty if it is none of these
    direction: str = QUERIES_IN_DATABASE  # which images are looked up in which
    left_out: str = ""  # what of the split was left out on purpose, in words

    @property
    def files(self) -> list[Path]:
        """Database images, then queries: indices of queries are offset by the database's size."""
        return self.database_files + self.query_files

    @property
    def base(self) -> Path:
        """The folder that names of database images are paths below."""
        return self.database_files[0].parents[len(PurePosixPath(self.places.database_names[0]).parts) - 1]

    def only(self, database: Sequence[int] | None = None, queries: Sequence[int] | None = None) -> "PlaceImages":
        """The same split with these database images and queries alone, by index; None: all."""
        return dataclasses.replace(
            self,
            places=self.places.only(database, queries),
            database_files=self.database_files if database is None else [self.database_files[row] for row in database],
            query_files=self.query_files if queries is None else [self.query_files[row] for row in queries],
        )

    def reader(self, reading: Reading) -> ImageReader:
        """A reader of `files`."""
        longest = self.query_longest_side
        if longest is None or reading.size:
            return reading.of(self.files)
        return reading.of(self.files, dict.fromkeys(range(len(self.database_files), len(self.files)), longest))


def spec_path(spec: PlacesSpec, split: str) -> Path:
    """The .mat file of a split of a data set that is no folder; UserError where it has no such split."""
    files = DATASETS[spec.dataset].specs
    if split not in files:
        raise UserError(f"--dataset={spec.dataset} has no split {split}: choose from {', '.join(files)}")
    return spec.root / "datasets" / f"{files[split]}.mat"


def read_spec(spec: PlacesSpec, split: str) -> Places:
    """Read the spec of a split of a data set, which is not a folder, with the data set's protocol.
    Raises a UserError: the dataset has no such split, or its spec is missing or not usable."""
    path = spec_path(spec, split)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: put the specs of netvlad_v100_datasets.tar.gz into {path.parent}, name their "
            "folder's parent with --root, or try --dataset=toy, which needs no data; images of your own want splits "
            "for this: docs/own-images.md"
        )
    try:
        places = read_places(path)
    except SpecError as error:
        raise UserError(str(error)) from error
    protocol = DATASETS[spec.dataset].protocol
    if protocol == OTHER_TIME != places.protocol:
        raise UserError(f"{path} has no time stamps, which --dataset={spec.dataset} goes by: get the spec again")
    return dataclasses.replace(places, protocol=protocol) if places.protocol == PLAIN else places


def load_places(spec: PlacesSpec, split: str, positions_required: bool = True) -> PlaceImages:
    """Read a split's spec, find its images and check that they are all there; with `skip_broken` also decode them. In a
    folder of own images positions may be NaN where they are not required.
    Raises a UserError: the spec or images are missing, or the spec is not usable."""
    dataset = DATASETS[spec.dataset]
    places, base, direction = _read_split(spec, split, positions_required)
    if base is not None:
        images = dataclasses.replace(_images_in(places, split, base, spec.dataset), direction=direction)
    else:
        longest_side = None if queries_are_database_images(places) else dataset.query_longest_side
        images = PlaceImages(places, split, *find_files(spec.root, places, dataset), longest_side, spec.dataset)
    if dataset.layout != OWN:
        _refuse_missing(images, spec.root, dataset)
    if dataset.layout == MAT:
        _refuse_database_images_as_queries(images)
    return _without_broken(images, spec)


def _read_split(spec: PlacesSpec, split: str, positions_required: bool = True) -> tuple[Places, Path | None, str]:
    """Places of a split, the folder that names are relative to (None: `find_files` knows), and the direction."""
    layout = DATASETS[spec.dataset].layout
    if layout == OWN:
        return (*folders.read_folder(spec.root, split, spec.skip_broken, positions_required), QUERIES_IN_DATABASE)
    if layout != MAT:
        return read_layout(spec.root, spec.dataset, split, spec.skip_broken)
    if spec.dataset == "toy":
        draw_toy_city(spec.root)
    return read_spec(spec, split), None, QUERIES_IN_DATABASE


def _images_in(places: Places, split: str, base: Path, dataset: str) -> PlaceImages:
    database, queries = ([base / name for name in names] for names in (places.database_names, places.query_names))
    return PlaceImages(places, split, database, queries, dataset=dataset)


def _without_broken(images: PlaceImages, spec: PlacesSpec) -> PlaceImages:
    """A split, with `skip_broken` without the images that cannot be decoded or are larger than `max_pixels`.
    Raises a UserError: no database image is left."""
    if not spec.skip_broken or not images.database_files:
        return images
    count = len(images.database_files)
    whole = decodable(images.files, spec.workers, images.places.name, spec.max_pixels)
    database = [index for index in whole if index < count]
    if not database:
        raise UserError(f"no database image of {images.places.name} can be decoded: get the images again")
    return images.only(database, [index - count for index in whole if index >= count])


def load_database(spec: PlacesSpec, split: str, split_required: bool = False) -> PlaceImages:
    """The database images of a split alone; positions may be NaN in a folder of own images.

    A folder that has no such split is refused if it is required; else all images under it are taken.
    Raises a UserError as of `load_places`, or a folder lacks the split that is required.
    """
    if DATASETS[spec.dataset].layout != OWN:
        return load_places(spec, split).only(queries=[])
    if split_required and not folders.has_database(spec.root, split):
        there = "folder" if folders.base_of_database(spec.root, split) is None else "images in"
        raise UserError(
            f"--split={split}: {spec.root} has no {there} {split}/database; drop --split to take all images under "
            "--root"
        )
    places, base = folders.read_database(spec.root, split, spec.skip_broken)
    return _without_broken(_images_in(places, split, base, spec.dataset), spec)


def has_split(spec: PlacesSpec, split: str) -> bool:
    """Whether a split's .mat file, or its folder, is there."""
    dataset = DATASETS[spec.dataset]
    if dataset.layout == OWN:
        return folders.base_of_split(spec.root, split) is not None
    if dataset.layout != MAT:
        return has_layout(spec.root, spec.dataset, split)
    return split in dataset.specs and spec_path(spec, split).is_file()


def training_set(spec: PlacesSpec) -> tuple[str, str]:
    """Name and hash of the places of the training split, without looking for the images of a spec.

    Of a folder of own images without such a split they are the folder's own: it may get more images.
    """
    if is_plain_folder(spec):
        return spec.root.resolve().name, folders.folder_hash(spec.root)
    if DATASETS[spec.dataset].layout == OWN:
        found, _ = folders.read_folder(spec.root, "train", spec.skip_broken, positions_required=False)
        return found.name, found.fingerprint()
    places, _, _ = _read_split(spec, "train")
    return places.name, places.fingerprint()


def is_plain_folder(spec: PlacesSpec) -> bool:
    """Whether places are a folder of own images that has no training split."""
    return DATASETS[spec.dataset].layout == OWN and not folders.has_database(spec.root, "train")


def require_queries(images: PlaceImages) -> None:
    """Raises UserError where a split without queries is to be trained on or tested."""
    if not images.query_files:
        own = images.dataset in DATASETS and DATASETS[images.dataset].layout == OWN
        remedy = folders.queries_wanted(images.base / images.split) if own else "use a spec that lists some"
        raise UserError(f"{images.places.name} has no queries: nothing can be looked up; {remedy}")
    if not images.database_files:
        raise UserError(f"{images.places.name} has no database images: there is nothing to find; get the spec again")


def draw_toy_city(root: Path) -> None:
    """Draw the toy city into `root` unless it is there already.

    Of several processes the first draws; then the first of each other machine to which `root` is another folder.
    """
    import toycity
    from vpr.common.progress import track

    for machine_draws in (processes.is_main(), processes.local_rank() == 0):
        if machine_draws and not toycity.is_current(root, toycity.SEED):
            say(f"drawing the toy city into {root} (once)")
            toycity.make_toy_city(
                root, progress=lambda items, total, description: track(items, description, total, "places")
            )
        processes.barrier()


def _refuse_missing(images: PlaceImages, root: Path, dataset: Dataset) -> None:
    names_in = {folder: listing(folder) for folder in {file.parent for file in images.files}}
    missing = [file for file in images.files if file.name not in names_in[file.parent]]
    if not missing:
        return
    spec, first = images.places.name, ", ".join(str(file) for file in missing[:5])
    if dataset.layout == MAT and missing == images.query_files:
        usual, *others = dataset.query_folders
        raise UserError(
            f"{root / usual} is missing: none of the {len(missing)} queries of {spec} is there (nor in "
            f"{', '.join(others)}), first {first}: put them there or name the right folder with --root"
        )
    remedy = "put them there" if dataset.layout == MAT else "unpack all archives of the data set there,"
    raise UserError(
        f"{len(missing)} of the {len(images.files)} images of {spec} are missing under {root}, first {first}: "
        f"{remedy} or name the right folder with --root"
    )


def _refuse_database_images_as_queries(images: PlaceImages) -> None:
    """Refuse queries that are read from the database's folders, be it by a link, where they are no database images."""
    places = images.places
    if not images.database_files or not images.query_files:
        return
    base, real = images.base, functools.cache(os.path.realpath)
    database = [(real(file.parent), file.name) for file in images.database_files]
    position = dict(zip(database, places.database_positions.tolist(), strict=True))
    shared = {folder for folder, _ in database} | {real((base / name).parent) for name in places.query_names}
    wrong = [
        file
        for file, own in zip(images.query_files, places.query_positions.tolist(), strict=True)
        if real(file.parent) in shared and position.get((real(file.parent), file.name)) != own
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} of the {len(places.query_names)} queries of {places.name} would be read from the database's "
            f"folders, first {wrong[0]}, whose images are of other places: put the queries' own into queries_real"
        )
