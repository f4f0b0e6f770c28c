"""The protocol label: what a recall was measured on and by which rule, in one line that travels with it.

Most disputes about recalls of place recognition are about protocols: two figures with the same name of a data set may
have other queries, another tolerance or another direction.
"""

from vpr.data.catalogue import DATASETS, OTHER_TIME, PANORAMA
from vpr.data.layouts.msls import CityPlaces
from vpr.data.layouts.numbered import NumberedPlaces
from vpr.data.places import PlaceImages


def protocol_label(images: PlaceImages) -> str:
    """Set and split, counts, what is right, direction, which hits count, and what was left out."""
    places = images.places
    split = DATASETS[images.dataset].splits.get(images.split) if images.dataset else None
    database, queries = len(places.database_names), len(places.query_names)
    counts = f"{queries} queries, {database} database images"
    if split and split.published and split.published != (database, queries):
        counts += f" (published: {split.published[1]} and {split.published[0]})"
    parts = [
        f"{images.dataset or 'no data set of the table'}, split {images.split} ({places.name})",
        counts,
        f"right: {tolerance(images)}",
        images.direction,
        "panoramas merged (only the first hit of each counts)"
        if places.protocol == PANORAMA
        else "panoramas not merged",
    ]
    if places.protocol == OTHER_TIME:
        parts.append("hits and positives with the query's time stamp do not count")
    if isinstance(places, CityPlaces):
        chosen = "subtask all, queries without a positive left out" if split and split.official else "all queries"
        unknown = " where raw.csv names them" if images.split == "test" else ""
        parts.append(f"{chosen}, panoramic images left out{unknown}")
    else:
        parts.append("queries without a positive count as missed")
    return "; ".join([*parts, *([images.left_out] if images.left_out else [])])


def tolerance(images: PlaceImages) -> str:
    """Which database images are right for a query, in words."""
    places = images.places
    if not isinstance(places, NumberedPlaces):
        return f"within {places.positive_radius:g} m"
    if places.unit == "pairs":
        return "the image of the same pair"
    return f"within {places.tolerance} frames before and behind"
