"""--mode=spec: a folder's positions as dbStruct .mat specs, or the positions of photos of specs as a table."""

import argparse
import csv
import os
from pathlib import Path

from pittsburgh import write_places
from vpr.catalogue import DATASETS
from vpr.errors import UserError
from vpr.files import replacing
from vpr.find_files import find_files
from vpr.folders import read_folder
from vpr.places import has_split, read_spec, spec_path
from vpr.positions import TABLE
from vpr.progress import say


def run(options: argparse.Namespace) -> None:
    """Write a spec for each split of a folder; or of any other dataset one table of all its photos."""
    root = Path(options.root)
    if options.dataset == "folder":
        splits = [split for split in ("train", "val", "test") if has_split(options, split)]
        if not splits:
            raise UserError(f"{root} has no folder train, val or test: name the folder that has with --root")
        for split in splits:
            places, _ = read_folder(root, split, options.skipBroken)
            path = root / "datasets" / f"{places.name}.mat"
            with replacing(path) as temporary:
                write_places(temporary, places)
            say(f"wrote {path}: {len(places.database_names)} database photos, {len(places.query_names)} queries")
        return
    # Some splits have two names.
    splits = {
        spec_path(options, split): split for split in DATASETS[options.dataset].specs if has_split(options, split)
    }
    if not splits:
        raise UserError(f"{root / 'datasets'} has no spec of --dataset={options.dataset}: put the .mat files there")
    path, positions = root / TABLE, {}
    for spec, split in sorted(splits.items()):
        add_positions(positions, options, split, spec)
    write_table(path, positions)
    say(f"wrote {path}: {len(positions)} photos of {', '.join(spec.stem for spec in sorted(splits))}")


def add_positions(positions: dict[str, list[float]], options: argparse.Namespace, split: str, spec: Path) -> None:
    """Add easting and northing of a split's photos by their path under the root, as of `find_files`.

    Raises:
        UserError: a photo has two positions.
    """
    root, places = Path(options.root), read_spec(options, split)
    database, queries = find_files(root, places, DATASETS[options.dataset])
    taken = [*places.database_positions.tolist(), *places.query_positions.tolist()]
    for file, position in zip([*database, *queries], taken, strict=True):
        earlier = positions.setdefault(Path(os.path.relpath(file, root)).as_posix(), position)
        if earlier != position:
            raise UserError(f"{file} has two positions, {earlier} and in {spec} {position}: get the specs again")


def write_table(path: Path, positions: dict[str, list[float]]) -> None:
    """Write image,easting,northing of photos."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "easting", "northing"])
        writer.writerows([name, repr(east), repr(north)] for name, (east, north) in positions.items())
