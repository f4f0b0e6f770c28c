"""The places of a database's images, for a map."""

from typing import Any

import numpy as np

from vpr.data.records import Records

MOST_PLACES = 20_000


def map_json(records: Records) -> dict[str, Any]:
    """The places of images, column by column: latitude and longitude where known, else easting and northing in metres.

    Of more than MOST_PLACES one for each cell of a grid is taken.
    """
    there = np.array([bool(name) for name in records.names], bool)  # those of removed images are empty
    in_degrees = bool(records.zone)
    places = records.degrees if in_degrees else records.positions
    rows = np.flatnonzero(there & np.isfinite(places).all(axis=1))
    rows = rows[thinned(records.positions[rows])]
    first, second = places[rows].round(7 if in_degrees else 2).T.tolist() if len(rows) else ([], [])
    names = ("latitude", "longitude") if in_degrees else ("easting", "northing")
    return {
        "images": int(there.sum()),
        "zone": records.zone,
        "ids": [str(number) for number in records.ids[rows]],
        "names": [records.names[row] for row in rows],
        names[0]: first,
        names[1]: second,
    }


def thinned(positions: np.ndarray, most: int = MOST_PLACES) -> np.ndarray:
    """Which of positions [N, 2] in metres are shown: the first of each square of a grid, in rising order.

    All, or at most `most`: then the squares are as small as that allows, their side found to a tenth.
    """
    rows = np.arange(len(positions))
    if len(rows) <= most:
        return rows
    corner = positions.min(axis=0)
    side = max(float((positions.max(axis=0) - corner).max()) / most, 1e-3)  # on a line there are `most` of these
    while True:
        squares = ((positions - corner) // side).astype(np.int64)
        _, first = np.unique(squares[:, 0] * (squares[:, 1].max() + 1) + squares[:, 1], return_index=True)
        if len(first) <= most:
            return np.sort(first)
        side *= 1.1
