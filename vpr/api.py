"""Finished models for other people's code: image files in, NumPy descriptors out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vpr.artifacts.model import load_finished
from vpr.cli.options import parse_options
from vpr.common.device import choose_device
from vpr.common.errors import UserError
from vpr.data.reader import PhotoReader
from vpr.descriptors.describe import describe


class PhotoDescriber(nn.Module):
    """A finished model that describes photos.

    Attributes:
        name: backbone, weights, pooling, dimension and precision in words.
        dimension: of a descriptor.
    """

    def __init__(self, model: nn.Module, name: str, device: torch.device, options: argparse.Namespace):
        super().__init__()
        self.model, self.name, self.dimension = model.eval(), name, model.dim
        self._device, self._options = device, options

    @torch.no_grad()
    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Photos uint8 [B, 3, H, W], RGB, values 0 to 255 -> descriptors float32 [B, dimension] of length 1.

        Raises:
            UserError: the photos are of another type or shape, or too small for the model.
        """
        if photos.dtype != torch.uint8 or photos.dim() != 4 or photos.shape[1] != 3:
            raise UserError(
                f"photos are {str(photos.dtype).removeprefix('torch.')} {list(photos.shape)}, wanted uint8 "
                "[B, 3, H, W] with values 0 to 255: hand them over as they are decoded, neither scaled nor normalised"
            )
        return self.model(photos.to(self._device)).float()

    def describe_files(
        self, files: Sequence[str | Path], image_size: tuple[int, int] | None = None, workers: int = 0
    ) -> np.ndarray:
        """Descriptors float32 [N, dimension] of image files, in their order.

        Args:
            image_size: (height, width) in pixels to resize to; None takes what the model was trained with, which
                may be each photo's own.
            workers: processes that decode; 0 decodes in this one.

        Raises:
            UserError: a photo cannot be decoded or is too small.
        """
        size = image_size or self._options.imageSize
        reader = PhotoReader([Path(file) for file in files], size, workers, self._device)
        if not reader.files:
            return np.empty((0, self.dimension), np.float32)
        rows, _ = describe(self.model, reader, range(len(reader.files)), self._options.cacheBatchSize, "photos")
        return rows.float().numpy()


def load_describer(checkpoint: str | Path, whitened: bool = True, device: str = "auto") -> PhotoDescriber:
    """A finished model.

    Args:
        checkpoint: a run, whose best model is taken, or an exported FILE.onnx.
        whitened: with the run's whitening, if it has one.
        device: as --device.

    Raises:
        UserError: the run or file is missing, damaged or of another program.
    """
    flags = ["--mode=test", f"--resume={checkpoint}", f"--device={device}"]
    plain = not whitened and Path(checkpoint).suffix != ".onnx"
    options = parse_options([*flags, "--noWhiten"] if plain else flags)
    device = choose_device(options.device)
    finished = load_finished(options)
    model = finished.model.to_device(device, options.precision)
    if not whitened and model.dim != model.pooled_dim:
        raise UserError(f"{checkpoint} holds its whitening inside: export the run with --noWhiten, or name the run")
    name = model.name
    return PhotoDescriber(model, name, device, options)
