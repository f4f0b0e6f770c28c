"""The layers of XFeat by an inference engine, in half of PyTorch's time; the few steps after them stay PyTorch's."""

from typing import Any

import kornia
import torch
from torch import nn

from vpr.models.engines import Network, engine_for
from vpr.retrieval.verification.keypoints import DIM, STEP

PARTS = (DIM, 65, 1)  # channels of descriptors, of the 8 x 8 pixels of a cell with that of none, and of reliability


class _Joined(nn.Module):
    """Images uint8 [B, H, W, 3], whose sides are multiples of STEP -> all PARTS, float32 [B, 130, H / 8, W / 8]."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = layers
        layers._unfold2d = lambda cells, ws: nn.functional.pixel_unshuffle(cells, ws)  # the same, which can be exported

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.layers(images.permute(0, 3, 1, 2).float() / 255), dim=1)


def by_engine(layers: Any, backend: str, images: int) -> None:
    """Have the engine of --backend compute the layers for so many images; see `engine_for`."""
    network = Network(_Joined(layers).eval(), "xfeat", {"kornia": kornia.__version__}, "fp32", STEP, False, STEP)
    if engine := engine_for(network, backend, images):
        layers.forward = lambda pixels: torch.from_numpy(engine((255 * pixels).round().byte().numpy())).split(PARTS, 1)
