"""Places to train on from positions: the images around chosen spots, with none of those in between."""

import numpy as np

from vpr.common.errors import UserError
from vpr.data.layouts.msls import CityPlaces
from vpr.data.places import PlaceImages
from vpr.training.places.place_set import PlaceSet, grouped

CITIES_APART = 1e8  # metres, in a third direction: those of different cities count from different meridians


def places_of(
    images: PlaceImages, distance: float = 25.0, radius: float = 10.0, views: np.ndarray | None = None
) -> PlaceSet:
    """Places of all images of a split, the database's and the queries'.

    The spot with the most images within `radius` metres becomes a centre, then the next that lies `distance` metres or
    more from all centres; of equals the western one. A place is the images within `radius` of its centre, if they are
    two at least. The order of the files changes nothing but the numbers of images. Images of neighbouring places lie
    at least `distance` - 2 `radius` apart, nearer than positives may be: `hard_batches` keeps such places apart.

    Of a place whose images differ in `views` [N], such as sectors of headings, each view is a place around the same
    centre, and what is of none (-1) is left out; without, what was taken to opposite sides of a spot is one place.
    Raises a UserError: images have no position, places would overlap, or no place has two images.
    """
    places = images.places
    positions = np.concatenate([places.database_positions, places.query_positions])
    if not 0 < 2 * radius <= distance:
        raise UserError(
            f"places of {radius:g} m radius, {distance:g} m apart: wanted a radius over 0 and two of it apart at least"
        )
    if unknown := int((~np.isfinite(positions).all(axis=1)).sum()):
        raise UserError(
            f"{places.name}: {unknown} of {len(positions)} images have no position: wanted one of each, see "
            "docs/own-images.md, or --walk where they are frames of one"
        )
    cities = np.zeros(len(positions))
    if isinstance(places, CityPlaces):
        cities = CITIES_APART * np.concatenate([places.database_cities, places.query_cities])
    labels, centres = _nearest_centres(np.column_stack([positions, cities]), distance, radius)
    if views is not None:
        _, kind = np.unique(views, return_inverse=True)
        labels = np.where((labels < 0) | (views < 0), -1, labels * len(kind) + kind)
    found = grouped(places.name, labels, centres[:, :2])  # the mean of images may lie nearer to another place's
    if not len(found):
        raise UserError(
            f"{places.name}: no two of its {len(positions)} images are of one place, wanted two within {radius:g} m of "
            "its centre: take a larger radius or add images"
        )
    return found


def _nearest_centres(where: np.ndarray, distance: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """int64 [N], which centre each image [N, 3] lies within `radius` of, numbered as they are chosen; -1: none. And the
    centre nearest to each [N, 3]."""
    from scipy.spatial import cKDTree  # scipy takes a while to import

    spots, counts = np.unique(where, axis=0, return_counts=True)  # panoramas have many images on a spot
    tree = cKDTree(spots)
    crowd = np.array([counts[near].sum() for near in tree.query_ball_point(spots, radius)])
    free, centres = np.ones(len(spots), bool), []
    for spot in np.argsort(-crowd, kind="stable"):
        if free[spot]:
            centres.append(spot)
            free[tree.query_ball_point(spots[spot], np.nextafter(distance, 0))] = False
    apart, nearest = cKDTree(spots[centres]).query(where)
    return np.where(apart <= radius, nearest, -1), spots[centres][nearest]
