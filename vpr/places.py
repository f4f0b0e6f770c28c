"""Stage 1, places: which spec belongs to a dataset's split, and where its photos lie."""

import argparse
import dataclasses
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pittsburgh import Places, read_places
from vpr import processes
from vpr.errors import UserError
from vpr.folders import has_folder, read_database, read_folder
from vpr.progress import say

_PITTS30K = {split: f"pitts30k_{split}" for split in ("train", "val", "test")}
_PITTS250K = {split: f"pitts250k_{split}" for split in ("train", "val", "test")}
_ALL_PITTS250K = {f"{split}250k": spec for split, spec in _PITTS250K.items()}

# Which spec in datasets/ a dataset's split is. Tokyo 24/7 is a test set; its training set is TokyoTM.
SPECS = {
    "pittsburgh": {**_PITTS30K, **_ALL_PITTS250K},
    "pitts250k": {**_PITTS250K, **_ALL_PITTS250K},
    "tokyo247": {"train": "tokyoTM_train", "val": "tokyoTM_val", "test": "tokyo247"},
    "tokyotm": {"train": "tokyoTM_train", "val": "tokyoTM_val"},
    "toy": {split: f"toy_{split}" for split in ("train", "val", "test")},
}
# Which UTM zone a dataset's metres are of: checked against the cities' latitude and longitude.
ZONES = {"pittsburgh": "17N", "pitts250k": "17N", "tokyo247": "54N", "tokyotm": "54N"}
UTM_WEST = 100_000  # metres; UTM eastings are larger, those of a local survey rarely are
# Pittsburgh's own folders, then those of the MATLAB release; in TokyoTM queries lie among the database.
DATABASE_FOLDERS = ("", "images")
QUERY_FOLDERS = ("queries_real", "queries", "query", "", "images")


@dataclass(frozen=True)
class PlacePhotos:
    """A split and its photo files, in the spec's order."""

    places: Places
    split: str
    database_files: list[Path]
    query_files: list[Path]

    @property
    def files(self) -> list[Path]:
        """Database photos, then queries: indices of queries are offset by the database's size."""
        return self.database_files + self.query_files


def spec_path(options: argparse.Namespace, split: str) -> Path:
    """The .mat file of a split of `--dataset`, which is not a folder.

    Raises:
        UserError: the dataset has no such split.
    """
    specs = SPECS[options.dataset]
    if split not in specs:
        raise UserError(f"--dataset={options.dataset} has no split {split}: choose from {', '.join(specs)}")
    return Path(options.root) / "datasets" / f"{specs[split]}.mat"


def load_places(options: argparse.Namespace, split: str) -> PlacePhotos:
    """Read a split's spec, find its photos and check that they are all there; with --skipBroken also decode them.

    Raises:
        UserError: the spec or photos are missing, or the spec is not usable.
    """
    root = Path(options.root)
    if options.dataset == "folder":
        places, base = read_folder(root, split, options.skipBroken)
        photos = _photos_in(places, split, base, base)
    else:
        if options.dataset == "toy":
            draw_toy_city(root)
        places = read_places(spec_path(options, split))
        database = _first_folder_with(root, DATABASE_FOLDERS, places.database_names)
        photos = _photos_in(places, split, database, _first_folder_with(root, QUERY_FOLDERS, places.query_names))
        _check_files_exist(photos.files, places.name, root)
    return without_broken(photos, options.threads) if options.skipBroken else photos


def _photos_in(places: Places, split: str, database: Path, queries: Path) -> PlacePhotos:
    return PlacePhotos(
        places,
        split,
        [database / name for name in places.database_names],
        [queries / name for name in places.query_names],
    )


def without_broken(photos: PlacePhotos, workers: int) -> PlacePhotos:
    """A split without the photos that cannot be decoded.

    Raises:
        UserError: no database photo is left.
    """
    from vpr.images import whole_photos  # torch takes seconds to import

    whole, count = whole_photos(photos.files, workers, photos.places.name), len(photos.database_files)
    if len(whole) == len(photos.files):
        return photos
    database = [index for index in whole if index < count]
    queries = [index - count for index in whole if index >= count]
    if not database:
        raise UserError(f"no database photo of {photos.places.name} can be decoded: get the photos again")
    return PlacePhotos(
        photos.places.only(database, queries),
        photos.split,
        [photos.database_files[index] for index in database],
        [photos.query_files[index] for index in queries],
    )


def load_database(options: argparse.Namespace) -> PlacePhotos:
    """The database photos of --split alone; positions may be NaN in a folder of own photos.

    Raises:
        UserError: as of `load_places`.
    """
    if options.dataset != "folder":
        photos = load_places(options, options.split)
        places = dataclasses.replace(photos.places, query_names=[], query_positions=np.empty((0, 2)))
        return dataclasses.replace(photos, places=places, query_files=[])
    places, base = read_database(Path(options.root), options.split)
    photos = _photos_in(places, options.split, base, base)
    return without_broken(photos, options.threads) if options.skipBroken else photos


def zone_of(places: Places, options: argparse.Namespace) -> str | None:
    """The UTM zone of positions: --utmZone, else what the photos say, else the dataset's; None if unknown."""
    plausible = np.isfinite(places.database_positions).any() and np.nanmin(places.database_positions[:, 0]) > UTM_WEST
    known = ZONES.get(options.dataset) if plausible else None
    return options.utmZone or getattr(places, "zone", None) or known


def has_split(options: argparse.Namespace, split: str) -> bool:
    """Whether a split's spec, or its folder, is there."""
    if options.dataset == "folder":
        return has_folder(Path(options.root), split)
    return split in SPECS[options.dataset] and spec_path(options, split).is_file()


def training_set(options: argparse.Namespace) -> tuple[str, str]:
    """Name and hash of the places of the training split, without looking for the photos of a spec."""
    root = Path(options.root)
    if options.dataset == "folder":
        places, _ = read_folder(root, "train", options.skipBroken)
    else:
        if options.dataset == "toy":
            draw_toy_city(root)
        places = read_places(spec_path(options, "train"))
    return places.name, places.fingerprint()


def require_queries(photos: PlacePhotos) -> None:
    """Raises UserError where a split without queries is to be trained on or tested."""
    if not photos.query_files:
        raise UserError(f"{photos.places.name} has no queries: nothing can be looked up; use a spec that lists some")
    if not photos.database_files:
        raise UserError(f"{photos.places.name} has no database photos: there is nothing to find; get the spec again")


def draw_toy_city(root: Path) -> None:
    """Draw the toy city into `root` unless it is there already.

    Of several processes the first draws; then the first of each other machine to which `root` is another folder.
    """
    from vpr import toycity
    from vpr.progress import track

    for machine_draws in (processes.is_main(), processes.local_rank() == 0):
        if machine_draws and not toycity.is_current(root, toycity.SEED):
            say(f"drawing the toy city into {root} (once)")
            toycity.make_toy_city(
                root, progress=lambda items, total, description: track(items, description, total, "places")
            )
        processes.wait_for_all()


def _first_folder_with(root: Path, folders: tuple[str, ...], names: list[str]) -> Path:
    """The first of `folders` that has the first of `names`; the usual one where none has."""
    for folder in folders:
        if names and (root / folder / names[0]).is_file():
            return root / folder
    return root / folders[0]


def _check_files_exist(files: list[Path], spec: str, root: Path) -> None:
    # One listing per folder instead of one look-up per file: 250,000 photos on a network disk.
    names_in = defaultdict(set)
    for folder in {file.parent for file in files}:
        if folder.is_dir():
            names_in[folder] = set(os.listdir(folder))
    missing = [file for file in files if file.name not in names_in[file.parent]]
    if missing:
        first = ", ".join(str(file) for file in missing[:5])
        raise UserError(
            f"{len(missing)} of the {len(files)} photos of {spec} are missing under {root}, first {first}: "
            "put them there or name the right folder with --root"
        )
