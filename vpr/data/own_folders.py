"""Folders of own images that nobody has sorted into splits: what in them serves, and how they are told."""

from pathlib import Path

from vpr.data.catalogue import DATASETS, MAT, OWN, splits_of
from vpr.data.image_files import holds_an_image
from vpr.data.layouts.folders import has_database
from vpr.data.places import PlaceImages, load_database, load_places
from vpr.data.settings import PlacesSpec


def vocabulary_images(spec: PlacesSpec) -> PlaceImages:
    """The images of which clusters are learnt, which need no positions: the training split's database.

    Of a folder of own images without that it is the database of its first other split, or else all its images.
    Raises a UserError as of `load_places`.
    """
    if DATASETS[spec.dataset].layout != OWN:
        return load_places(spec, "train")
    return load_database(
        spec, next((split for split in splits_of(DATASETS[spec.dataset]) if has_database(spec.root, split)), "train")
    )


def holds_own_images(root: Path, dataset: str, plain: bool) -> bool:
    """Whether a folder has images (`plain`: that lie in it in any way; else those of splits alone), and not the specs
    that a data set with specs wants there."""
    if DATASETS[dataset].layout != MAT or any((root / "datasets").glob("*.mat")):
        return False
    if plain:
        return holds_an_image(root)
    return any(has_database(root, split) for split in splits_of(DATASETS["folder"]))
