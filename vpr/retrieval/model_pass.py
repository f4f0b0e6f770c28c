"""One pass of the model for images that are in memory already."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vpr.common.errors import UserError
from vpr.common.memory import available_bytes, free_gpu_bytes
from vpr.data.reader import SizeGroup, group_by_size
from vpr.descriptors.batches import cut
from vpr.descriptors.describe import describe_batch, describe_batch_with_local, require_finite
from vpr.descriptors.local_maps import LocalMaps, QuantizedMap, joined
from vpr.models.describer import Describer
from vpr.models.local_projection import LocalProjection
from vpr.retrieval.ask import NotServed, Refusal, TooLarge, TooSmall
from vpr.retrieval.verification.keypoints import Keypoints

SIZES = 256  # whose memory is remembered
WITHOUT_LOCAL = "the model has no local descriptors, which rerank and agreement need"


@dataclass(frozen=True)
class Described:
    """Images as they are searched with: descriptors float16 [B, dim], and what else is wanted of them."""

    descriptors: np.ndarray
    local: LocalMaps | None = None
    keypoints: list[Keypoints] | None = None

    def only(self, numbers: Sequence[int]) -> "Described":
        """Some of them."""
        maps = self.maps()
        return Described(
            self.descriptors[list(numbers)],
            joined([maps[number] for number in numbers]) if maps else None,
            [self.keypoints[number] for number in numbers] if self.keypoints is not None else None,
        )

    def maps(self) -> list[QuantizedMap] | None:
        """The local descriptors of each."""
        return None if self.local is None else list(map(self.local.map, range(len(self.local.grids))))


class ModelPass:
    """Describes images of any sizes, and says which the model or the memory beside it cannot take."""

    def __init__(self, model: Describer) -> None:
        self._model = model.eval()
        # Memory that an image of (height, width) pixels takes in the model: to work it out takes milliseconds.
        self._bytes = functools.lru_cache(SIZES)(model.bytes_per_image)

    def describe(self, images: Sequence[np.ndarray]) -> Described:
        """Descriptors of images uint8 [3, H, W] without a `refusal`, one pass for those of a size."""
        return self._described(describe_batch(self._model, self._groups(images)), None)

    def describe_with_local(self, images: Sequence[np.ndarray], projection: LocalProjection | None) -> Described:
        """As `describe`, with projected local descriptors. Raises a NotServed: the model has none."""
        groups = self._groups(images)
        try:
            return self._described(*describe_batch_with_local(self._model, groups, projection))
        except UserError as error:
            raise NotServed(str(error), WITHOUT_LOCAL) from error

    def refusal(self, image: np.ndarray) -> Refusal | None:
        """Why an image uint8 [3, H, W] cannot be described: it is too small, or larger than memory holds."""
        least, (height, width) = self._model.smallest_side, image.shape[1:]
        if min(height, width) < least:
            return TooSmall(f"the image has {width}x{height} pixels, the model wants at least {least} each way")
        if self._that_fit((height, width)) == 0:
            return TooLarge(f"an image of {width}x{height} pixels takes more memory than the server has free")
        return None

    def _described(self, descriptors: np.ndarray, local: list[QuantizedMap] | None) -> Described:
        require_finite(descriptors)
        return Described(descriptors, None if local is None else joined(local))

    def _groups(self, images: Sequence[np.ndarray]) -> list[SizeGroup]:
        """The images by size, in parts that half of the free memory holds."""
        groups = group_by_size(list(images), [(image.shape[1], image.shape[2]) for image in images])
        most = [self._that_fit(group.image_size) for group in groups]
        return [
            part
            for group, count in zip(groups, most, strict=True)
            for part in cut(group, len(group.values) if count is None else max(1, count))
        ]

    def _that_fit(self, size: tuple[int, int]) -> int | None:
        """How many images of (height, width) pixels half of the free memory holds, or of the GPU's; None: not known."""
        each, device = self._bytes(*size), self._model.device
        if each is None or device.type not in ("cpu", "cuda"):
            return None
        return (available_bytes() if device.type == "cpu" else free_gpu_bytes(device)) // 2 // each
