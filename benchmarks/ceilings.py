"""What the machine can do at best, measured in the same run: products, convolutions, copies."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from benchmarks.measure import time_of


@dataclass(frozen=True)
class Ceilings:
    """Rates of a machine in one number format.

    Attributes:
        product: of matrices [2048, 4096] x [4096, 2048], GFLOP/s (a multiplication and an addition are 2 FLOP).
        convolution: of VGG16's conv4_2 at 640x480 pixels ([1, 512, 60, 80], 3x3, to 512), channels last, GFLOP/s.
        copy: of 512 MiB in memory, read and written bytes, GB/s.
    """

    product: float
    convolution: float
    copy: float

    def line(self) -> str:
        """For the report."""
        return (
            f"matrix product {self.product:.0f} GFLOP/s, convolution {self.convolution:.0f} GFLOP/s, "
            f"copy {self.copy:.1f} GB/s (read + written)"
        )

    def rounded(self) -> dict:
        """For JSON."""
        return {name: round(value, 1) for name, value in asdict(self).items()}


@torch.no_grad()
def measure_ceilings(device: torch.device, dtype: torch.dtype, synchronize) -> Ceilings:
    """Measure a device."""
    left, right = (torch.randn(shape, device=device, dtype=dtype) for shape in ((2048, 4096), (4096, 2048)))
    features = torch.randn(1, 512, 60, 80, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weights = torch.randn(512, 512, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    source = torch.zeros(128 << 20, device=device)
    target = torch.empty_like(source)
    target.zero_()  # so that the first copy need not ask the kernel for pages
    product = time_of(lambda: left @ right, synchronize=synchronize)
    convolution = time_of(lambda: F.conv2d(features, weights, padding=1), synchronize=synchronize)
    copy = time_of(lambda: target.copy_(source), synchronize=synchronize)
    return Ceilings(
        product=2 * 2048 * 4096 * 2048 / product.low / 1e9,
        convolution=2 * 512 * 512 * 9 * 60 * 80 / convolution.low / 1e9,
        copy=2 * source.nbytes / copy.low / 1e9,
    )
