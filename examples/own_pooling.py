"""Put a pooling of your own in the place of NetVLAD, on the backbone of a trained model.

    python examples/own_pooling.py runs/RUN one.jpg two.jpg

The pooling here keeps of each channel its mean and its standard deviation over all locations. A pooling that the
program shall train and test by --pooling=NAME gets a file in vpr/models/poolings/ instead.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[1]


class MeanAndDeviation(nn.Module):
    """Pools a map of local descriptors [B, D, H, W] into one descriptor [B, 2 * D] of length 1."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        locations = features.flatten(2)  # [B, D, H * W]
        deviation = locations.std(dim=2, correction=0)  # [B, D]
        return F.normalize(torch.cat([locations.mean(dim=2), deviation], dim=1), dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two images by a pooling of your own.")
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("images", nargs=2, type=Path)
    arguments = parser.parse_args()

    model = torch.hub.load(
        str(REPOSITORY), "netvlad", source="local", checkpoint=arguments.run, whitened=False, device="cpu"
    )
    model.model.pool = MeanAndDeviation()  # any module from [B, D, H, W] to [B, anything]
    descriptors = []
    for image in arguments.images:  # one by one: they may differ in size
        pixels = np.array(Image.open(image).convert("RGB"))  # [H, W, 3]
        descriptors.append(model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0])
    print(f"{len(descriptors[0])} dimensions, cosine {descriptors[0] @ descriptors[1]:.4f}")


if __name__ == "__main__":
    main()
