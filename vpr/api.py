"""Finished models for other people's code: image files in; NumPy descriptors, or where they were taken, out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vpr.cli.flags import checked_flags
from vpr.cli.locating import database_images, locator_of
from vpr.cli.options import settle
from vpr.common.device import find_device
from vpr.common.errors import UserError
from vpr.data.reader import Reading
from vpr.descriptors.describe import describe
from vpr.models.describer import Describer
from vpr.models.onnx_model import OnnxModel
from vpr.retrieval.locator import Locator
from vpr.runs.model import stored_choice
from vpr.runs.run import CHECKPOINT_FILES
from vpr.runs.stored import load_model


class ImageDescriber(nn.Module):
    """A finished model that describes images."""

    name: str  # backbone, weights, pooling, dimension and precision in words
    dimension: int  # of a descriptor

    def __init__(self, model: Describer, image_size: tuple[int, ...] | None = None) -> None:
        """A model on its device, and the (height, width) in pixels of the images it was trained with."""
        super().__init__()
        self.model: Any = model.eval()
        self.name, self.dimension, self.image_size = model.name, model.dim, image_size

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, 3, H, W], RGB, values 0 to 255 -> descriptors float32 [B, dimension] of length 1.
        Raises a UserError: the images are of another type or shape, or too small for the model."""
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise UserError(
                f"images are {str(images.dtype).removeprefix('torch.')} {list(images.shape)}, wanted uint8 "
                "[B, 3, H, W] with values 0 to 255: hand them over as they are decoded, neither scaled nor normalised"
            )
        if isinstance(self.model, OnnxModel):
            return torch.from_numpy(self.model(images.cpu().numpy()))
        return self.model(images.to(self.model.device)).float()

    def describe_files(
        self, files: Sequence[str | Path], image_size: tuple[int, ...] | None = None, workers: int = 0
    ) -> np.ndarray:
        """Descriptors float32 [N, dimension] of image files, in their order.
        Raises a UserError: an image cannot be decoded or is too small.

        Args:
            image_size: (height, width) in pixels to resize to; None: as in training, which may be each image's own.
            workers: processes that decode; 0 decodes in this one.
        """
        reading = Reading((image_size[0], image_size[1]) if image_size else self.image_size, workers, self.model.device)
        reader = reading.of([Path(file) for file in files])
        if not reader.files:
            return np.empty((0, self.dimension), np.float32)
        rows, _ = describe(self.model, reader, range(len(reader.files)), label="images")
        return rows.astype(np.float32)


def load_describer(checkpoint: str | Path, whitened: bool = True, device: str = "auto") -> ImageDescriber:
    """A finished model.
    Raises a UserError: the run or file is missing, damaged or of another program.

    Args:
        checkpoint: a run, whose best model is taken, or an exported FILE.onnx.
        whitened: with the run's whitening, if it has one.
        device: as --device.
    """
    path, on = Path(checkpoint), find_device(device)
    choice = stored_choice(checked_flags(path))
    loaded = load_model(path, whitened=whitened, choice=replace(choice, reading=replace(choice.reading, device=on)))
    return ImageDescriber(loaded.model.to_device(on, choice.precision), choice.reading.size)


def load_locator(checkpoint: str | Path | None = None, root: str | Path | None = None, **flags: Any) -> Locator:
    """Finds where images were taken; `load_locator(root="photos").locate(["a.jpg"])` gives an answer for each.

    An index of the database beside the model is used and brought up to date, as of --mode=locate, and made where there
    is none.
    Raises a UserError: model or database are missing or damaged, or a flag is none of --mode=locate.

    Args:
        checkpoint: a run, whose best model is taken, one of its checkpoints, or an exported FILE.onnx; None: the model
            that `flags` name, else the one that index, locate or serve described the folder by.
        root: folder of the database's images; None: that which the model was trained on.
        flags: of --mode=locate by their names, such as device="cpu", dataset="folder" or precision="fp32".
    """
    typed = dict(flags)
    if checkpoint is not None:
        path = Path(checkpoint)
        which = {file: name for name, file in CHECKPOINT_FILES.items()}.get(path.name)
        if which:
            path, typed = path.parents[1], {"ckpt": which, "savePath": path.parent.name, **typed}
        typed["resume"] = str(path)
    if root is not None:
        typed["root"] = str(root)
    options = settle({**typed, "mode": "locate"})
    return locator_of(options, database_images(options))[0]
