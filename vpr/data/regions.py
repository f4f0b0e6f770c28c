"""A region left out of the database: its queries ask for places that are not in the map."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from vpr.common.errors import UserError
from vpr.data.places import PlaceImages


@dataclass(frozen=True)
class Region:
    """All within some metres of a point, by UTM metres as the places have them."""

    easting: float
    northing: float
    metres: float


def without_region(images: PlaceImages, region: Region) -> PlaceImages:
    """A split whose database lacks the images of a region; queries stay.
    Raises a UserError: positions are not known, or no or every database image lies in the region."""
    positions, flag = images.places.database_positions, "--heldOutRegion"
    if not np.isfinite(positions).all():
        raise UserError(f"{flag}: positions of {images.places.name} are not known in metres; drop it")
    metres = np.linalg.norm(positions - (region.easting, region.northing), axis=1)
    inside = metres <= region.metres
    if not inside.any():
        nearest = positions[metres.argmin()] if len(positions) else (np.nan, np.nan)
        raise UserError(
            f"{flag}: no database image lies within {region.metres:g} m of {region.easting:g} E {region.northing:g} N, "
            f"the nearest is at {nearest[0]:.1f} E {nearest[1]:.1f} N: name a point of {images.places.name}"
        )
    if inside.all():
        raise UserError(f"{flag}: all {len(inside)} database images lie in that region: take fewer metres")
    left_out = (
        f"{int(inside.sum())} database images within {region.metres:g} m of {region.easting:.1f} E "
        f"{region.northing:.1f} N left out"
    )
    return dataclasses.replace(images.only(np.flatnonzero(~inside).tolist()), left_out=left_out)
