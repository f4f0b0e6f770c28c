"""What the frozen layers made of each image, as a source of images whose first layers are done."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from vpr.data.reader import SizeGroup, group_by_size


class FrozenFeatures:
    """The frozen layers' output for each image of a list of files; yields batches as `ImageReader` does.

    Attributes:
        files: the images.
        values: float16, all features one after the other; in memory or mapped from a file.
        offsets: int64 [N + 1], where each image's features begin.
        shapes: int64 [N, 3], their C, h, w.
        image_sizes: int64 [N, 2], height and width of the images in pixels.
        device: where the features are wanted.
        size: (height, width) in pixels to which all images were resized; None where each has its own.
        layout: how an image's features lie in `values`: [h, w, C] with channels last, else [C, h, w].
    """

    def __init__(
        self,
        files: Sequence[Path],
        image_sizes: np.ndarray,
        shapes: np.ndarray,
        layout: torch.memory_format,
        device: torch.device,
        size: Sequence[int] | None = None,
    ) -> None:
        self.files, self.image_sizes, self.shapes, self.layout = files, image_sizes, shapes, layout
        self.device, self.size = device, size
        self.offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])
        self.values = torch.empty(0, dtype=torch.float16)

    @property
    def stored_bytes(self) -> int:
        """Size of `values` in bytes."""
        return 2 * int(self.offsets[-1])

    def features(self, index: int) -> torch.Tensor:
        """Image `index`'s features as a view [C, h, w]."""
        channels, height, width = self.shapes[index].tolist()
        flat = self.values[self.offsets[index] : self.offsets[index + 1]]
        if self.layout == torch.contiguous_format:
            return flat.view(channels, height, width)
        return flat.view(height, width, channels).permute(2, 0, 1)

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """The features of each batch of indices, in order, read one batch ahead of the caller."""
        with ThreadPoolExecutor(1) as reader:
            upcoming = None
            for batch in batches:
                current, upcoming = upcoming, reader.submit(self._read, batch)
                if current is not None:
                    yield current.result()
            if upcoming is not None:
                yield upcoming.result()

    def _read(self, batch: Sequence[int]) -> list[SizeGroup]:
        features = [self.features(index) for index in batch]
        groups = group_by_size(features, [tuple(self.image_sizes[index].tolist()) for index in batch])
        groups = [group._replace(frozen=True) for group in groups]
        if self.device.type != "cuda":
            return groups
        return [group._replace(values=group.values.pin_memory()) for group in groups]
