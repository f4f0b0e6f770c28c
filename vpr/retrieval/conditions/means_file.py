"""The means of conditions that were learnt for a map, in a file beside its index."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vpr.common.provenance import open_hdf5, write_hdf5
from vpr.database.location import beside

REMEDY = "delete it, and learn the conditions anew by --mode=index --condition NAME --add DIR"


def means_file(index: Path) -> Path:
    """Where the means for an index lie or shall lie."""
    return beside(index, "conditions.h5")


def load_means(path: Path, recipe: Mapping[str, str], dim: int) -> dict[str, np.ndarray]:
    """The means by name, float32 [dim]; none where there is no file.

    The recipe is of the descriptors, see `vpr.runs.descriptors_file.model_recipe`; number formats may differ.
    Raises a UserError: the file is damaged, or of another model.
    """
    if not path.exists():
        return {}
    with open_hdf5(path, "means of conditions", REMEDY) as file:
        other = [name for name in recipe if name != "precision" and str(file.attrs[name]) != recipe[name]]
        if other:
            raise ValueError(f"of another model: {other[0]} is {file.attrs[other[0]]}, wanted {recipe[other[0]]}")
        means = {name: np.asarray(file[name][:], np.float32) for name in file}
        if any(mean.shape != (dim,) or not np.isfinite(mean).all() for mean in means.values()):
            raise ValueError(f"wanted finite means of {dim} numbers")
    return means


def save_means(path: Path, means: Mapping[str, np.ndarray], recipe: Mapping[str, str]) -> None:
    """Write means, whole or not at all."""
    write_hdf5(path, dict(means), recipe)
