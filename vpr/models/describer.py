"""What the rest asks of a model, whether PyTorch or ONNX Runtime runs it."""

from typing import Any, Protocol

import numpy as np

from vpr.common.device import Device
from vpr.common.errors import UserError
from vpr.models.local_projection import LocalProjection


class Describer(Protocol):
    """Images uint8 [B, 3, H, W] -> descriptors float16 [B, dim] of length 1, in main memory both.

    Rounding to float16 moves a squared distance between descriptors by some 1e-6 and halves their memory.
    """

    @property
    def name(self) -> str: ...  # with which results are labelled: backbone, weights, pooling, dimension, number format
    @property
    def dim(self) -> int: ...  # length of a descriptor
    @property
    def pooled_dim(self) -> int: ...  # length of a descriptor before whitening
    @property
    def device(self) -> Device: ...  # whose memory counts: the CPU's, if a file is run by another program
    @property
    def runs_on(self) -> Device: ...  # where it computes
    @property
    def parameter_count(self) -> int: ...  # numbers that it stores, whitening included
    @property
    def megabytes(self) -> float: ...  # in which they are stored
    @property
    def smallest_side(self) -> int: ...  # pixels that an image must have in height and width
    @property  # by name, what an image's descriptor depends on beside the image: what tells the model from others
    def recipe(self) -> dict[str, str]: ...

    def describe(self, images: np.ndarray, frozen: bool = False) -> np.ndarray:
        """Describe images; if `frozen`, what the model's own frozen layers made of them [B, C, h, w].
        Raises a UserError if they are too small."""

    def describe_with_local(
        self, images: np.ndarray, projection: LocalProjection | None, frozen: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `describe`, and projected local descriptors float32 [B, d, h, w], each of length 1.
        `projection`: None takes that which the model brings; UserError if it has none, or images are too small."""

    def gflop(self, height: int, width: int) -> float:
        """Arithmetic for one image, in 10^9 operations of which a multiplication with an addition is two."""

    def bytes_per_image(self, height: int, width: int) -> int | None:
        """Memory that an image takes inside the model, None where that is not known; UserError if it is too small."""

    def to_device(self, device: Device, precision: str) -> "Describer":
        """Move to a device and compute there as --precision says."""

    def infer_by(self, backend: str, images: int) -> None:
        """Let an inference engine compute what it can where no gradients are wanted, for so many images (--backend)."""

    def eval(self) -> Any:
        """Describe as in a test from here on."""


def require_size(height: int, width: int, smallest_side: int) -> None:
    """Raise a UserError if images are too small to leave a single local descriptor."""
    if min(height, width) < smallest_side:
        raise UserError(
            f"an image is {width}x{height} pixels, the backbone needs at least {smallest_side} each way: "
            "leave it out or give a larger --imageSize"
        )
