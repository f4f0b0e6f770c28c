"""What the rest asks of a model, whether PyTorch or ONNX Runtime runs it."""

from typing import Any, Protocol

import torch

from vpr.common.device import Device
from vpr.models.local_projection import LocalProjection
from vpr.models.poolings.base import Pooling
from vpr.models.whitening import Whitening


class Describer(Protocol):
    """Images uint8 [B, 3, H, W] -> descriptors float32 [B, dim] of length 1.

    Attributes:
        name: backbone, weights, pooling, dimension and number format in words, with which results are labelled.
        dim: length of a descriptor.
        pooled_dim: length of a descriptor before whitening.
        dtype: number format of the backbone's arithmetic.
        device: where images are wanted and descriptors come out.
        runs_on: where it computes, if a file is run by another program that moves them.
        parameter_count: numbers that it stores, whitening included.
        megabytes: in which they are stored.
        smallest_side: pixels that an image must have in height and width.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def pooled_dim(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> Device: ...
    @property
    def runs_on(self) -> Device: ...
    @property
    def parameter_count(self) -> int: ...
    @property
    def megabytes(self) -> float: ...
    @property
    def smallest_side(self) -> int: ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Describe images on the model's device. Raises a UserError if they are too small."""

    def describe_features(self, features: torch.Tensor) -> torch.Tensor:
        """Describe what the model's own frozen layers made of images [B, C, h, w]; see trunk_cache.py."""

    def with_local(
        self, images: torch.Tensor, projection: LocalProjection | None, frozen: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Descriptors [B, dim] of images, and their projected local descriptors [B, d, h, w], each of length 1.

        Args:
            images: uint8 [B, 3, H, W]; if `frozen` what the model's own frozen layers made of them.
            projection: None takes that which the model brings; UserError if it has none, or images are too small.
        """

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

    def state_dict(self) -> dict[str, Any]:
        """What tells the model from others."""


class HasLocalDescriptors(Protocol):
    """A model that shows what it pools; an exported one does not.

    Attributes:
        pool: [B, D, h, w] -> [B, pooled_dim].
        whitening: [B, pooled_dim] -> [B, dim], or None.
    """

    pool: Pooling
    whitening: Whitening | None

    def local_descriptors(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, 3, H, W] -> local descriptors [B, D, h, w]."""

    def pooled(self, local_descriptors: torch.Tensor) -> torch.Tensor:
        """Local descriptors [B, D, h, w] -> descriptors [B, dim]."""
