"""Stage 1, places: which spec belongs to a dataset's split, and where its images lie."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pittsburgh import Places, SpecError, read_places
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.catalogue import DATASETS, MAT, OTHER_TIME, OWN, PLAIN, Dataset
from vpr.data.images import MAX_PIXELS
from vpr.data.layouts.folders import has_database, has_folder, queries_wanted, read_database, read_folder
from vpr.data.layouts.readers import has_layout, read_layout
from vpr.data.layouts.spec_files import find_files, listing, queries_are_database_images
from vpr.data.reader import ImageReader, Reading, decodable
from vpr.data.settings import PlacesSpec


@dataclass(frozen=True)
class PlaceImages:
    """A split and its image files, in the spec's order.

    Attributes:
        query_longest_side: pixels, to which larger queries are shrunk unless all images get one size.
        dataset: a key of `vpr.data.catalogue.DATASETS`; empty if it is none of these.
        direction: which images are looked up in which.
        left_out: what of the split was left out on purpose, in words.
    """

    places: Places
    split: str
    database_files: list[Path]
    query_files: list[Path]
    query_longest_side: int | None = None
    dataset: str = ""
    direction: str = "queries in the database"
    left_out: str = ""

    @property
    def files(self) -> list[Path]:
        """Database images, then queries: indices of queries are offset by the database's size."""
        return self.database_files + self.query_files

    @property
    def base(self) -> Path:
        """The folder that names of database images are paths below."""
        return self.database_files[0].parents[len(PurePosixPath(self.places.database_names[0]).parts) - 1]

    def reader(self, reading: Reading) -> ImageReader:
        """A reader of `files`."""
        longest = self.query_longest_side
        if longest is None or reading.size:
            return reading.of(self.files)
        queries = range(len(self.database_files), len(self.files))
        return reading.of(self.files, dict.fromkeys(queries, longest))


def spec_path(spec: PlacesSpec, split: str) -> Path:
    """The .mat file of a split of a data set, which is not a folder.

    Raises:
        UserError: the dataset has no such split.
    """
    files = DATASETS[spec.dataset].specs
    if split not in files:
        raise UserError(f"--dataset={spec.dataset} has no split {split}: choose from {', '.join(files)}")
    return spec.root / "datasets" / f"{files[split]}.mat"


def read_spec(spec: PlacesSpec, split: str) -> Places:
    """Read the spec of a split of a data set, which is not a folder, with the data set's protocol.

    Raises:
        UserError: the dataset has no such split, or its spec is missing or not usable.
    """
    path = spec_path(spec, split)
    if not path.is_file():
        raise UserError(
            f"{path} is missing: put the specs of netvlad_v100_datasets.tar.gz into {path.parent}, name their "
            "folder's parent with --root, or try --dataset=toy, which needs no data"
        )
    try:
        places = read_places(path)
    except SpecError as error:
        raise UserError(str(error)) from error
    protocol = DATASETS[spec.dataset].protocol
    if protocol == OTHER_TIME != places.protocol:
        raise UserError(f"{path} has no time stamps, which --dataset={spec.dataset} goes by: get the spec again")
    return dataclasses.replace(places, protocol=protocol) if places.protocol == PLAIN else places


def load_places(spec: PlacesSpec, split: str) -> PlaceImages:
    """Read a split's spec, find its images and check that they are all there; with `skip_broken` also decode them.

    Raises:
        UserError: the spec or images are missing, or the spec is not usable.
    """
    root, layout = spec.root, DATASETS[spec.dataset].layout
    if layout == OWN:
        own, base = read_folder(root, split, spec.skip_broken)
        images = _images_in(own, split, base)
    elif layout != MAT:
        places, base, direction = read_layout(root, spec.dataset, split, spec.skip_broken)
        images = dataclasses.replace(_images_in(places, split, base), direction=direction)
        _check_images_exist(images)
    else:
        if spec.dataset == "toy":
            draw_toy_city(root)
        dataset, places = DATASETS[spec.dataset], read_spec(spec, split)
        longest_side = None if queries_are_database_images(places) else dataset.query_longest_side
        images = PlaceImages(places, split, *find_files(root, places, dataset), longest_side)
        _check_files_exist(images, root, dataset)
        _check_queries_are_no_database_images(images)
    images = dataclasses.replace(images, dataset=spec.dataset)
    return without_broken(images, spec.workers, spec.max_pixels) if spec.skip_broken else images


def _images_in(places: Places, split: str, base: Path) -> PlaceImages:
    database, queries = ([base / name for name in names] for names in (places.database_names, places.query_names))
    return PlaceImages(places, split, database, queries)


def without_broken(images: PlaceImages, workers: int, max_pixels: int = MAX_PIXELS) -> PlaceImages:
    """A split without the images that cannot be decoded, or are larger.

    Raises:
        UserError: no database image is left.
    """
    whole = decodable(images.files, workers, images.places.name, max_pixels)
    count = len(images.database_files)
    if len(whole) == len(images.files):
        return images
    database = [index for index in whole if index < count]
    queries = [index - count for index in whole if index >= count]
    if not database:
        raise UserError(f"no database image of {images.places.name} can be decoded: get the images again")
    return dataclasses.replace(
        images,
        places=images.places.only(database, queries),
        database_files=[images.database_files[index] for index in database],
        query_files=[images.query_files[index] for index in queries],
    )


def load_database(spec: PlacesSpec, split: str, split_required: bool = False) -> PlaceImages:
    """The database images of a split alone; positions may be NaN in a folder of own images.

    Args:
        split_required: refuse a folder that has no such split, instead of taking all images under it.

    Raises:
        UserError: as of `load_places`, or a folder lacks the split that is required.
    """
    if DATASETS[spec.dataset].layout != OWN:
        images = load_places(spec, split)
        places = images.places.only(list(range(len(images.places.database_names))), [])
        return dataclasses.replace(images, places=places, query_files=[])
    if split_required and not has_database(spec.root, split):
        raise UserError(
            f"--split={split}: {spec.root} has no folder {split}/database; drop --split to take all images under --root"
        )
    places, base = read_database(spec.root, split, spec.skip_broken)
    images = dataclasses.replace(_images_in(places, split, base), dataset=spec.dataset)
    return without_broken(images, spec.workers, spec.max_pixels) if spec.skip_broken else images


def has_split(spec: PlacesSpec, split: str) -> bool:
    """Whether a split's .mat file, or its folder, is there."""
    layout = DATASETS[spec.dataset].layout
    if layout != MAT:
        return has_folder(spec.root, split) if layout == OWN else has_layout(spec.root, spec.dataset, split)
    return split in DATASETS[spec.dataset].specs and spec_path(spec, split).is_file()


def training_set(spec: PlacesSpec) -> tuple[str, str]:
    """Name and hash of the places of the training split, without looking for the images of a spec."""
    places: Places
    layout = DATASETS[spec.dataset].layout
    if layout == OWN:
        places, _ = read_folder(spec.root, "train", spec.skip_broken)
    elif layout != MAT:
        places, _, _ = read_layout(spec.root, spec.dataset, "train", spec.skip_broken)
    else:
        if spec.dataset == "toy":
            draw_toy_city(spec.root)
        places = read_spec(spec, "train")
    return places.name, places.fingerprint()


def require_queries(images: PlaceImages) -> None:
    """Raises UserError where a split without queries is to be trained on or tested."""
    if not images.query_files:
        own = images.dataset in DATASETS and DATASETS[images.dataset].layout == OWN
        remedy = queries_wanted(images.base / images.split) if own else "use a spec that lists some"
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


def _check_images_exist(images: PlaceImages) -> None:
    """Refuse a split whose tables name images that are not there."""
    names_in = {folder: listing(folder) for folder in {file.parent for file in images.files}}
    missing = [file for file in images.files if file.name not in names_in[file.parent]]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images.files)} images of {images.places.name} are missing, first {missing[0]}: "
            "unpack all archives of the data set there, or name another folder with --root"
        )


def _check_files_exist(images: PlaceImages, root: Path, dataset: Dataset) -> None:
    names_in = {folder: listing(folder) for folder in {file.parent for file in images.files}}
    missing = [file for file in images.files if file.name not in names_in[file.parent]]
    if not missing:
        return
    spec, first = images.places.name, ", ".join(str(file) for file in missing[:5])
    if missing == images.query_files:
        usual, *others = dataset.query_folders
        raise UserError(
            f"{root / usual} is missing: none of the {len(missing)} queries of {spec} is there (nor in "
            f"{', '.join(others)}), first {first}: put them there or name the right folder with --root"
        )
    raise UserError(
        f"{len(missing)} of the {len(images.files)} images of {spec} are missing under {root}, first {first}: "
        "put them there or name the right folder with --root"
    )


def _check_queries_are_no_database_images(images: PlaceImages) -> None:
    """Refuse queries that are read from the database's folders, be it by a link, where they are no database images."""
    places = images.places
    if not images.database_files or not images.query_files:
        return
    base = images.base
    asked = {file.parent for file in images.files} | {(base / name).parent for name in places.query_names}
    real = {folder: os.path.realpath(folder) for folder in asked}
    database = [(real[file.parent], file.name) for file in images.database_files]
    position = dict(zip(database, places.database_positions.tolist(), strict=True))
    shared = {folder for folder, _ in database} | {real[(base / name).parent] for name in places.query_names}
    wrong = [
        file
        for file, own in zip(images.query_files, places.query_positions.tolist(), strict=True)
        if real[file.parent] in shared and position.get((real[file.parent], file.name)) != own
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} of the {len(places.query_names)} queries of {places.name} would be read from the database's "
            f"folders, first {wrong[0]}, whose images are of other places: put the queries' own into queries_real"
        )
