"""What the frozen layers made of each image, as a source of images whose first layers are done."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from vpr.common.device import Device
from vpr.data.reader import SizeGroup, group_by_size


@dataclass
class FrozenFeatures:
    """The frozen layers' output for each image of a list of files; yields batches as `ImageReader` does."""

    files: Sequence[Path]
    image_sizes: np.ndarray  # int64 [N, 2], height and width of the images in pixels
    shapes: np.ndarray  # int64 [N, 3], C, h, w of their features
    channels_last: bool  # whether an image's features are [h, w, C] in `values`, else [C, h, w]
    device: Device  # where the features are wanted
    # (height, width) in pixels to which all images were resized; None where each has its own.
    size: Sequence[int] | None = None
    # float16, all features one after the other; in memory or mapped from a file.
    values: np.ndarray = field(default_factory=lambda: np.empty(0, np.float16))

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each image's features begin in `values`, int64 [N + 1]."""
        return np.concatenate([[0], np.cumsum(self.shapes.prod(axis=1))])

    @property
    def stored_bytes(self) -> int:
        return 2 * int(self.offsets[-1])

    def features(self, index: int) -> np.ndarray:
        """Image `index`'s features as a view [C, h, w]."""
        channels, height, width = self.shapes[index].tolist()
        flat = self.values[self.offsets[index] : self.offsets[index + 1]]
        if self.channels_last:
            return flat.reshape(height, width, channels).transpose(2, 0, 1)
        return flat.reshape(channels, height, width)

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """The features of each batch of indices, in order, read one batch ahead of the caller."""
        with ThreadPoolExecutor(1) as reader:
            reading: Iterator[Future] = (reader.submit(self._read, batch) for batch in batches)
            for current, _ in pairwise(chain(reading, [Future()])):  # the next has been asked for
                yield current.result()

    def _read(self, batch: Sequence[int]) -> list[SizeGroup]:
        sizes = [tuple(self.image_sizes[index].tolist()) for index in batch]
        groups = group_by_size([self.features(index) for index in batch], sizes)
        if self.device.type == "cuda":
            import torch

            groups = [group._replace(values=torch.from_numpy(group.values).pin_memory().numpy()) for group in groups]
        return [group._replace(frozen=True) for group in groups]
