"""--mode=spec: a folder's positions as dbStruct .mat specs, or the specs' as a table, for other programs."""

import argparse
import csv
from pathlib import Path

from pittsburgh import Places, read_places, write_places
from vpr.errors import UserError
from vpr.files import replacing
from vpr.folders import TABLE, read_folder
from vpr.places import SPECS, has_split, spec_path
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
            write_places(path, places)
            say(f"wrote {path}: {len(places.database_names)} database photos, {len(places.query_names)} queries")
        return
    specs = sorted({spec_path(options, split) for split in SPECS[options.dataset] if has_split(options, split)})
    if not specs:
        raise UserError(f"{root / 'datasets'} has no spec of --dataset={options.dataset}: put the .mat files there")
    path = root / TABLE
    count = write_table(path, [read_places(spec) for spec in specs])
    say(f"wrote {path}: {count} photos of {', '.join(spec.stem for spec in specs)}")


def write_table(path: Path, sets: list[Places]) -> int:
    """Write image,easting,northing of all photos of some places, each once; returns how many there are."""
    lines = {}
    for places in sets:
        lines.update(zip(places.database_names, places.database_positions.tolist(), strict=True))
        lines.update(zip(places.query_names, places.query_positions.tolist(), strict=True))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "easting", "northing"])
        writer.writerows([name, repr(east), repr(north)] for name, (east, north) in lines.items())
    return len(lines)
