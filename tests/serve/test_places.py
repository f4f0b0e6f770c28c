"""The positions of a database's images, as a map is given them."""

import json

import engine_data
import numpy as np
import pytest

from vpr.database.records import no_records, record_id
from vpr.serve.image_routes import map_json

POSITIONS = [[500_000.0, 4_649_776.224], [np.nan, np.nan], [585_000.126, 4_477_000.0], [1.0, 2.0]]


def records(zone):
    names = ["a.jpg", "nowhere.jpg", "<b>.jpg", ""]  # the last was removed
    return engine_data.images(4, names=names, positions=np.array(POSITIONS), zone=zone)


def test_places_are_in_metres_and_in_degrees_where_the_zone_is_known():
    told = json.loads(json.dumps(map_json(records("17N")), allow_nan=False))
    assert told["images"] == 3 and told["zone"] == "17N" and told["names"] == ["a.jpg", "<b>.jpg"]
    assert told["ids"] == [str(record_id("a.jpg")), str(record_id("<b>.jpg"))]
    assert told["easting"] == [500_000.0, 585_000.13] and told["northing"] == [4_649_776.22, 4_477_000.0]
    # On the central meridian of zone 17; 4649776.224 m is 42 degrees north on the ellipsoid of WGS 84.
    assert (told["latitude"][0], told["longitude"][0]) == (pytest.approx(42.0, abs=1e-6), -81.0)


def test_without_a_zone_there_are_no_degrees():
    told = map_json(records(None))
    assert told["latitude"] is None and told["longitude"] is None and told["easting"] == [500_000.0, 585_000.13]
    assert map_json(no_records())["ids"] == map_json(no_records("17N"))["latitude"] == []
