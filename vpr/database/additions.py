"""What may go into an index beside what it has: images of other names, with metres of one UTM zone."""

from dataclasses import replace

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.positions.coordinates import Position, is_place, may_be_utm
from vpr.data.positions.zones import FARTHEST, moved
from vpr.database.engine import Engine
from vpr.database.folder import FolderNow
from vpr.database.records import Records, joined


def in_zone_of(now: FolderNow, kept: Records, index: str) -> FolderNow:
    """The images of a folder with their metres in the zone of those beside which they go.
    `kept`: images that the index keeps, of other folders. `index`: what messages call it.
    Raises a UserError: the zone of either is unknown, so that their metres cannot be compared, or they lie far apart.
    """
    theirs, own = (values[np.isfinite(values).all(axis=1)] for values in (kept.positions, now.positions))
    if not len(theirs) or not len(own) or now.zone == kept.zone:
        return now
    folder = now.files[0].parent
    if now.zone is None:
        local = next((each for each in own if not may_be_utm(Position(each[0], each[1]))), None)
        if local is None:
            return replace(now, zone=kept.zone)
        raise UserError(
            f"images of {folder} have local metres, such as {local[0]:g} {local[1]:g}, those of {index} metres of UTM "
            f"zone {kept.zone}: make an index of each"
        )
    if kept.zone is None:
        raise UserError(
            f"the images of {folder} lie in UTM zone {now.zone}, the zone of the metres of {index} is unknown: name it "
            "with --utmZone, or make an index of each"
        )
    values = moved(now.positions, now.zone, kept.zone, np.median(theirs, axis=0))
    if values is None:
        raise UserError(
            f"the images of {folder} lie in UTM zone {now.zone}, those of {index} in {kept.zone}, over "
            f"{FARTHEST // 1000:,} km apart: make an index of each"
        )
    say(f"the images of {folder} lie in UTM zone {now.zone}: their metres become those of {kept.zone}, as of {index}")
    return replace(now, positions=values, zone=kept.zone)


def beside_others(now: FolderNow, engine: Engine, label: str) -> FolderNow:
    """The images of an engine's own folder with their metres in the zone of those that it has of other folders.

    Messages call the engine `label`. Raises a UserError as of `in_zone_of`, or the metres are local where the index has
    those of a zone.
    """
    records, lacking = engine.records, engine.lacking
    folders = list(records.folders)
    others = records.only([row for row in engine.rows() if folders[row]])
    now = in_zone_of(now, joined(others, lacking), f"{label} that are of other folders")
    known = now.positions[np.isfinite(now.positions).all(axis=1)]
    zone = records.zone
    if now.zone is None and zone and not all(is_place(Position(east, north, zone)) for east, north in known):
        raise UserError(
            f"{label} has metres of UTM zone {zone}, the images of its folder now have local ones: remove that "
            "file, so that it is made anew, or name another with --indexFile"
        )
    return now


def refuse_other_zone(stored: str | None, named: str | None, index: str) -> None:
    """Raise a UserError where --utmZone names another zone than an index has."""
    if stored and named and stored != named:
        raise UserError(
            f"--utmZone={named}: {index} has metres of zone {stored}; drop --utmZone, or where {stored} is wrong, give "
            "it to a plain --mode=index"
        )


def refuse_other_folders(engine: Engine, added: FolderNow, label: str) -> None:
    """Raise a UserError where images that are added would take the place of others of their names."""
    records, lacking = engine.records, engine.lacking
    folders = dict(zip(lacking.names, lacking.folders, strict=True))
    folders |= {name: records.folders[row] for name, row in engine.row_of.items()}
    for name, folder in zip(added.names, added.folders, strict=True):
        if folders.get(name, folder) != folder:
            raise UserError(
                f"{label} already has an image {name}, from another folder: rename the folder that is added"
            )
