"""Describe images with a trained model, and keep the descriptors as a NumPy file.

    python examples/describe.py runs/RUN descriptors.npy one.jpg two.jpg
    python examples/describe.py runs/RUN/model_best.onnx descriptors.npy one.jpg two.jpg

Row i belongs to image i. Descriptors have length 1: `descriptors @ descriptors.T` are cosines, largest for the most
similar images.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Describe images with a trained model.")
    parser.add_argument("model", help="a run's folder, or an exported FILE.onnx")
    parser.add_argument("out", type=Path, help="file to write: float32 [images, dimension], .npy")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    # Elsewhere: torch.hub.load("OWNER/REPOSITORY", "netvlad", checkpoint=...).
    model = torch.hub.load(
        str(REPOSITORY), "netvlad", source="local", checkpoint=arguments.model, device=arguments.device
    )
    descriptors = model.describe_files(arguments.images)
    np.save(arguments.out, descriptors)
    print(f"{model.name}\nwrote {arguments.out}: {len(descriptors)} descriptors of {model.dimension} dimensions")
    if len(descriptors) > 1:
        cosines = descriptors @ descriptors.T
        np.fill_diagonal(cosines, -1)
        for image, nearest in zip(arguments.images, cosines.argmax(axis=1), strict=True):
            print(f"{image} looks most like {arguments.images[nearest]}")


if __name__ == "__main__":
    main()
