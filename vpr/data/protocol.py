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
    parts = [
        f"{images.dataset or 'no data set of the table'}, split {images.split} ({places.name})",
        f"{len(places.query_names)} queries, {len(places.database_names)} database images{_published(images)}",
        f"right: {tolerance(images)}",
        images.direction,
        {PANORAMA: "panoramas merged (only the first hit of each counts)"}.get(places.protocol, "panoramas not merged"),
    ]
    if places.protocol == OTHER_TIME:
        parts.append("hits and positives with the query's time stamp do not count")
    return "; ".join([*parts, *_left_out(images)])


def tolerance(images: PlaceImages) -> str:
    """Which database images are right for a query, in words."""
    places = images.places
    if isinstance(places, NumberedPlaces):
        if places.unit == "pairs":
            return "the image of the same pair"
        return f"within {places.tolerance} frames before and behind"
    return f"within {places.positive_radius:g} m"


def _published(images: PlaceImages) -> str:
    split = DATASETS[images.dataset].splits.get(images.split) if images.dataset else None
    found = len(images.places.database_names), len(images.places.query_names)
    if split is None or split.published in (None, found):
        return ""
    database, queries = split.published or found
    return f" (published: {queries} and {database})"


def _left_out(images: PlaceImages) -> list[str]:
    return [*_left_out_by_protocol(images), *([images.left_out] if images.left_out else [])]


def _left_out_by_protocol(images: PlaceImages) -> list[str]:
    if not isinstance(images.places, CityPlaces):
        return ["queries without a positive count as missed"]
    split = DATASETS[images.dataset].splits.get(images.split) if images.dataset else None
    chosen = "subtask all, queries without a positive left out" if split and split.official else "all queries"
    return [f"{chosen}, panoramic images left out" + (" where raw.csv names them" if images.split == "test" else "")]
