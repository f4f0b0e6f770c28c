"""A reader of images that gives their views too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vpr.common.errors import UserError
from vpr.data.reader import ImageReader
from vpr.training.views.choices import VERSION, styled


@dataclass(frozen=True)
class ViewedReader(ImageReader):
    """N views of each image: index i is image i // N in its view i % N, which at 0 is the image as it is."""

    views: Sequence[str] = ()  # of 1 .. N - 1, by their names; a name may come twice
    seed: int = 0

    @classmethod
    def of(cls, plain: ImageReader, views: Sequence[str], seed: int) -> "ViewedReader":
        """Views of a reader's images. Raises a UserError: there is no such view."""
        styled(views, seed)  # which refuses names before images are read
        seen = range(len(views) + 1)
        sides = {image * len(seen) + at: side for image, side in plain.longest_sides.items() for at in seen}
        files = [file for file in plain.files for _ in seen]
        return cls(files, plain.size, plain.workers, plain.device, sides, plain.max_pixels, tuple(views), seed)

    @property
    def applied(self) -> dict:
        """See `ImageReader`."""
        return {"views": list(self.views), "views_seed": self.seed, "views_version": VERSION} if self.views else {}

    def __getitem__(self, index: int) -> np.ndarray | UserError:
        """See `ImageReader`; views are made at the size that the image is given out at."""
        image = super().__getitem__(index)
        if isinstance(image, UserError):
            return image
        number, at = divmod(index, len(self.views) + 1)
        return styled(self.views, self.seed)(image.transpose(1, 2, 0), number, at).transpose(2, 0, 1)
