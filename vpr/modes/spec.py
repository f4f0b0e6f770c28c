"""--mode=spec: a folder's positions as dbStruct .mat specs, or the positions of images of specs as a table."""

import argparse
import csv
import os
from pathlib import Path

from pittsburgh import write_places
from vpr.cli.specs import places_spec
from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say
from vpr.data.catalogue import DATASETS, MAT, OWN
from vpr.data.layouts.folders import read_folder
from vpr.data.layouts.spec_files import find_files
from vpr.data.places import PlacesSpec, has_split, read_spec, spec_path
from vpr.data.positions.table import TABLE


def run(options: argparse.Namespace) -> None:
    """Write a spec for each split of a folder; or of any other dataset one table of all its images."""
    spec = places_spec(options)
    layout = DATASETS[spec.dataset].layout
    if layout == OWN:
        write_specs(spec)
    elif layout != MAT:
        raise UserError(
            f"--mode=spec reads folders of own images and .mat files, --dataset={spec.dataset} has neither: all modes "
            "read its images as they are, without a spec"
        )
    else:
        write_positions(spec)


def write_specs(spec: PlacesSpec) -> None:
    """A .mat file for each split of a folder of own images. Raises a UserError: the folder has no split."""
    splits = [split for split in ("train", "val", "test") if has_split(spec, split)]
    if not splits:
        raise UserError(f"{spec.root} has no folder train, val or test: name the folder that has with --root")
    for split in splits:
        places, _ = read_folder(spec.root, split, spec.skip_broken)
        path = spec.root / "datasets" / f"{places.name}.mat"
        with atomic_write(path) as temporary:
            write_places(temporary, places)
        say(f"wrote {path}: {len(places.database_names)} database images, {len(places.query_names)} queries")


def write_positions(spec: PlacesSpec) -> None:
    """The positions of all images of a data set's specs, as one table.
    Raises a UserError: there is no spec, or an image has two positions."""
    dataset = DATASETS[spec.dataset]
    splits = {spec_path(spec, split): split for split in dataset.specs if has_split(spec, split)}  # some have two names
    if not splits:
        raise UserError(f"{spec.root / 'datasets'} has no spec of --dataset={spec.dataset}: put the .mat files there")
    positions: dict[str, list[float]] = {}  # easting and northing by an image's path under the root
    for file, split in sorted(splits.items()):
        places = read_spec(spec, split)
        database, queries = find_files(spec.root, places, dataset)
        taken = [*places.database_positions.tolist(), *places.query_positions.tolist()]
        for image, position in zip([*database, *queries], taken, strict=True):
            earlier = positions.setdefault(Path(os.path.relpath(image, spec.root)).as_posix(), position)
            if earlier != position:
                raise UserError(f"{image} has two positions, {earlier} and in {file} {position}: get the specs again")
    path = spec.root / TABLE
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["image", "easting", "northing"])
        writer.writerows([name, repr(east), repr(north)] for name, (east, north) in positions.items())
    say(f"wrote {path}: {len(positions)} images of {', '.join(file.stem for file in sorted(splits))}")
