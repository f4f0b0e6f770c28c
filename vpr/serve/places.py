"""The places of a database's images, for a map."""

from typing import Any

import numpy as np

from vpr.database.records import Records
from vpr.report.interactive import thinned


def map_json(records: Records) -> dict[str, Any]:
    """The places of images, column by column: easting and northing in metres, and latitude and longitude where known.

    Of many a part is taken that covers all of them evenly.
    """
    there = np.array([bool(name) for name in records.names], bool)  # those of removed images are empty
    rows = np.flatnonzero(there & np.isfinite(records.positions).all(axis=1))
    rows = rows[thinned(records.positions[rows])]
    easting, northing = records.positions[rows].round(2).T.tolist()
    latitude, longitude = records.degrees[rows].round(7).T.tolist() if records.zone else (None, None)
    return {
        "images": int(there.sum()),
        "zone": records.zone,
        "ids": [str(number) for number in records.ids[rows]],
        "names": [records.names[row] for row in rows],
        "easting": easting,
        "northing": northing,
        "latitude": latitude,
        "longitude": longitude,
    }
