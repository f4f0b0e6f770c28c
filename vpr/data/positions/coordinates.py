"""Places on the Earth: UTM metres and WGS 84 degrees, from one into the other, and which numbers are no place."""

import math
from dataclasses import dataclass

import numpy as np

# Metres; what UTM has between them, a local survey rarely has.
UTM_WEST, UTM_EAST, UTM_NORTH = 100_000, 900_000, 10_000_000
# Metres that a zone may have: grids of whole countries (Norway, Sweden) go far into the zones beside their own, and the
# equator may be crossed, where northing is 0 in the north and 10,000 km in the south.
WESTMOST, EASTMOST = -200_000, 1_200_000
NORTHINGS = {"N": (-1_000_000, 9_400_000), "S": (1_000_000, 11_000_000)}
REACH = 9  # degrees from a zone's central meridian, and from the equator beyond it: as far as the zones beside it go
BANDS = "CDEFGHJKLMNPQRSTUVWX"  # of 8 degrees each from 80 south; the last has 12


@dataclass(frozen=True)
class Position:
    """UTM easting and northing in metres, and the zone, such as 17N, where it is known."""

    easting: float
    northing: float
    zone: str | None = None


def from_degrees(latitude: float, longitude: float) -> Position:
    """WGS84 degrees -> UTM metres. Raises ValueError: there is no such place, or none in UTM."""
    import utm

    try:
        easting, northing, number, letter = utm.from_latlon(latitude, longitude)
    except utm.OutOfRangeError as error:
        if max(abs(latitude), abs(longitude)) > 360:
            fault = "are no degrees; metres belong into columns called easting and northing"
        elif abs(latitude) > 90 and abs(longitude) <= 84 and abs(latitude) <= 180:
            fault = "are no place on the Earth, but the other way round they are: exchange latitude and longitude"
        elif abs(latitude) > 90 or abs(longitude) > 180:
            fault = "are no place on the Earth: wanted a latitude from -90 to 90 and a longitude from -180 to 180"
        else:
            fault = "lie beyond UTM, which ends at 80 degrees south and 84 degrees north"
        raise ValueError(f"latitude {latitude:.10g}, longitude {longitude:.10g} {fault}") from error
    return Position(float(easting), float(northing), zone_of_letter(number, letter))


def metres_in_zone(latitude: float, longitude: float, zone: str | None) -> Position:
    """WGS84 degrees -> UTM metres of a zone such as 17N; None: of the zone that they lie in. Raises a ValueError: there
    is no such place, or it lies farther off than in the next zone, where UTM errs by metres."""
    import utm

    position = from_degrees(latitude, longitude)
    if zone is None or position.zone == zone:
        return position
    middle = 6 * int(zone[:-1]) - 183  # degrees of longitude
    over = -latitude if zone[-1] == "N" else latitude  # degrees beyond the equator
    if abs((longitude - middle + 180) % 360 - 180) > REACH or over > REACH:
        raise ValueError(f"{latitude}, {longitude} lies outside the zones beside {zone}")
    easting, northing, *_ = utm.from_latlon(latitude, longitude, int(zone[:-1]), force_northern=zone[-1] == "N")
    return Position(float(easting), float(northing), zone)


def to_degrees(easting: float, northing: float, zone: str) -> tuple[float, float]:
    """UTM metres in a zone such as 17N -> WGS84 latitude and longitude."""
    import utm

    latitude, longitude = utm.to_latlon(easting, northing, int(zone[:-1]), northern=zone[-1] == "N", strict=False)
    return float(latitude), float(longitude)


def degrees_of(positions: np.ndarray, zone: str) -> np.ndarray:
    """UTM metres [N, 2] in a zone -> WGS84 latitude and longitude [N, 2]."""
    import utm

    eastings, northings = positions.T
    found = utm.to_latlon(eastings, northings, int(zone[:-1]), northern=zone[-1] == "N", strict=False)
    return np.stack(found, axis=1)


def zone_of_letter(number: int, letter: str) -> str:
    """Number and hemisphere: bands C to M are south of the equator, N to X north."""
    return f"{number}{'N' if letter.upper() >= 'N' else 'S'}"


def named_zone(number: str, letter: str, northing: float) -> str | None:
    """The zone that a number and a letter name; None if they name none.

    The letter is a latitude band, of which S is that from 32 to 40 degrees north. Where the northing is not that
    band's, S stands for south.
    """
    letter = letter.upper()
    if not number.isdecimal() or not 1 <= int(number) <= 60 or letter not in BANDS:
        return None
    if letter == "S" and not in_band_s(northing) and NORTHINGS["S"][0] <= northing <= UTM_NORTH:
        return f"{int(number)}S"
    return zone_of_letter(int(number), letter)


def in_band_s(northing: float) -> bool:
    """Whether metres north of the equator are those of 32 to 40 degrees, and a little more."""
    return 3_530_000 <= northing <= 4_440_000


def is_place(position: Position) -> bool:
    """Whether metres can be those of their zone: neither far outside it, nor local ones of a small map."""
    if not (math.isfinite(position.easting) and math.isfinite(position.northing)):
        return False
    if position.zone is None:
        return True
    south, north = NORTHINGS[position.zone[-1]]
    local = abs(position.easting) < UTM_WEST and abs(position.northing) < UTM_WEST
    return WESTMOST <= position.easting <= EASTMOST and south <= position.northing <= north and not local


def may_be_utm(position: Position) -> bool:
    """Whether metres of which no zone is known can be UTM's."""
    return UTM_WEST <= position.easting <= UTM_EAST and 0 <= position.northing <= UTM_NORTH
