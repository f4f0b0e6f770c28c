"""Views by name, and an image's views by a seed. The command line reads the table, and does not wait for NumPy."""

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vpr.common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

VERSION = 1  # raised when a view changes, so that caches of the earlier one are made again
_AUGMENTATIONS = ("homography", "boxes", "colour", "blur", "erasing", "randaugment")
VIEWS = {
    **{name: f"vpr.training.views.conditions:{name}" for name in ("night", "night_grey", "rain", "season")},
    **{name: f"vpr.training.views.augmentations:{name}" for name in _AUGMENTATIONS},
}


def styled(names: Sequence[str], seed: int) -> "Callable[[np.ndarray, int, int], np.ndarray]":
    """A function `view(image, number, at)`: image `number` as it is at 0, else in the view `names[at - 1]`.

    What is random depends on (seed, number, at) alone. Raises a UserError: there is no such view.
    """
    import numpy as np

    views: list[Callable[[np.ndarray, np.random.Generator], np.ndarray]] = []
    for name in names:
        if name not in VIEWS:
            raise UserError(f"there is no view {name!r} of images: choose from {', '.join(VIEWS)}")
        module, _, function = VIEWS[name].partition(":")
        views.append(getattr(importlib.import_module(module), function))

    def view(image: np.ndarray, number: int, at: int) -> np.ndarray:
        return views[at - 1](image, np.random.default_rng([seed, number, at])) if at else image

    return view
