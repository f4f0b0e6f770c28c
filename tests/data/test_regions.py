"""A region left out of the database: what stays, what the label says, and points that make no sense."""

from pathlib import Path

import numpy as np
import pytest
from loading import hits, refusal

from pittsburgh import Places
from vpr.data.places import PlaceImages
from vpr.data.protocol import protocol_label
from vpr.data.regions import Region, without_region


@pytest.fixture
def images():
    """Six database images 30 m apart from west to east and three queries."""
    names = [f"{n}.jpg" for n in range(6)]
    database = np.stack([585_000.0 + 30 * np.arange(6), np.full(6, 4_477_000.0)], axis=1)
    queries = database[[0, 2, 5]] + (3.0, 4.0)
    places = Places("own_val", names, ["a", "b", "c"], database, queries, 25.0, 10.0)
    return PlaceImages(places, "val", [Path(n) for n in names], [Path(n) for n in "abc"], dataset="folder")


def test_images_within_the_region_are_left_out_and_their_queries_have_no_match(images):
    left = without_region(images, Region(585_060.0, 4_477_000.0, 30.0))
    assert left.places.database_names == ["0.jpg", "4.jpg", "5.jpg"]
    assert [file.name for file in left.database_files] == left.places.database_names
    assert left.places.query_names == ["a", "b", "c"] and left.query_files == images.query_files
    assert [*map(len, hits(images.places))] == [1, 1, 1] and [*map(len, hits(left.places))] == [1, 0, 1]
    assert left.places.fingerprint() != images.places.fingerprint(), "stored descriptors do not fit"


def test_the_protocol_says_so(images):
    label = protocol_label(without_region(images, Region(585_060.0, 4_477_000.0, 30.0)))
    assert label.endswith("3 database images within 30 m of 585060.0 E 4477000.0 N left out")
    assert "left out" not in protocol_label(images)


@pytest.mark.parametrize(
    ("region", "said"),
    [
        (Region(0.0, 0.0, 50.0), "the nearest is at 585000.0 E 4477000.0 N"),
        (Region(585_060.0, 4_477_000.0, 500.0), "all 6 database images"),
    ],
)
def test_regions_without_images_or_with_all_are_refused_in_a_line(images, region, said):
    assert said in refusal(without_region, images, region)


def test_places_without_positions_are_refused(images):
    images.places.database_positions[2] = np.nan
    assert "not known in metres" in refusal(without_region, images, Region(0.0, 0.0, 5.0))
