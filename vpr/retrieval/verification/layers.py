"""The layers of XFeat by an inference engine, in half of PyTorch's time; the few steps after them stay PyTorch's."""

from typing import Any

import kornia
import torch
from torch import nn

from vpr.models.engines import Network, engine_for

PARTS = (64, 65, 1)  # channels of descriptors, of the 8 x 8 pixels of a cell with that of none, and of reliability


class PlainXFeat(nn.Module):
    """Images uint8 [B, H, W, 3], whose sides are multiples of 32 -> all PARTS, float32 [B, 130, H / 8, W / 8]."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        net._unfold2d = lambda cells, ws: nn.functional.pixel_unshuffle(cells, ws)  # the same, which can be exported

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As the class says."""
        return torch.cat(self.net(images.permute(0, 3, 1, 2).float() / 255), dim=1)


def by_engine(net: Any, step: int, backend: str, images: int) -> None:
    """Have the engine of --backend compute a network for so many images, whose sides are multiples of `step`."""
    network = Network(PlainXFeat(net).eval(), "xfeat", {"kornia": kornia.__version__}, "fp32", step, False, step)
    if engine := engine_for(network, backend, images):

        def forward(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.from_numpy(engine((255 * pixels).round().byte().numpy())).split(PARTS, dim=1)

        net.forward = forward
