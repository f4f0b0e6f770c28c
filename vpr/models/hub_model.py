"""Descriptor models of others, by torch.hub: one descriptor an image, beside this program's own models in one table.

    --model=hub:OWNER/REPOSITORY:ENTRY            from GitHub, as torch.hub.load has it
    --model=hub:FOLDER:ENTRY?dim=512&pretrained=true    a folder with a hubconf.py, and arguments of the entry

A model takes float32 [B, 3, H, W] and gives [B, dim]. It may say `mean` and `std` of its input, whose pixels are from 0
to 1, and `image_size`, (height, width) in pixels; else they are ImageNet's, and images keep the size that they have.
"""

import json
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from vpr.common.device import CPU, Device
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.models.backbones.base import IMAGENET
from vpr.models.flops import count_gflop
from vpr.models.local_projection import LocalProjection
from vpr.models.spec import HUB
from vpr.models.weights import weights_hash

PROBE = (224, 224)  # pixels of the image on which the dimension is found, where the model says no size


@dataclass(frozen=True)
class HubEntry:
    """What to load."""

    where: str  # OWNER/REPOSITORY, or a folder
    entry: str
    # Of the entry, numbers and truth values as JSON has them, else text.
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return Path(self.where).is_dir()


def read_entry(name: str) -> HubEntry:
    """What `hub:WHERE:ENTRY?ARGUMENTS` names. Raises a UserError where it names nothing."""
    where, _, rest = name.removeprefix(HUB).rpartition(":")
    entry, _, query = rest.partition("?")
    if not where or not entry.isidentifier():
        raise UserError(f"--model={name}: wanted hub:OWNER/REPOSITORY:ENTRY, or hub:FOLDER:ENTRY")
    return HubEntry(where, entry, {key: _value(text) for key, text in urllib.parse.parse_qsl(query)})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class HubModel:
    """A model of torch.hub. Answers the protocol `Describer`; it has no local descriptors."""

    smallest_side = 1

    def __init__(self, name: str, trusted: bool) -> None:
        """Load it by a name as of `read_entry`, which runs its code; `trusted` says that the user allows that.
        Raises a UserError: it is not trusted, cannot be loaded, or does not give one descriptor for an image."""
        self.called, entry = name, read_entry(name)
        if not trusted:
            raise UserError(f"--model={name} runs the code of {entry.where} on this machine: say --trustRepo if it may")
        say(f"running the code of {entry.where}, as --trustRepo allows")
        self.network, self.device, self.runs_on = self._loaded(entry), CPU, CPU
        said = getattr(self.network, "image_size", None)
        # (height, width) in pixels to which it wants images resized; None: any.
        self.size = tuple(map(int, said)) if said is not None else None
        mean, std = getattr(self.network, "mean", IMAGENET[0]), getattr(self.network, "std", IMAGENET[1])
        self._mean, self._std = (torch.tensor(tuple(each), dtype=torch.float32)[:, None, None] for each in (mean, std))
        self.dim = self.pooled_dim = len(self.describe(np.zeros((1, 3, *(self.size or PROBE)), np.uint8))[0])
        normalization = f"{json.dumps([list(mean), list(std)])}"
        self.recipe = {
            "arch": name, "pooling": "hub", "normalization": normalization, "precision": "fp32",
            "dimension": str(self.dim), "weights_hash": weights_hash(self.network),
        }  # fmt: skip

    @staticmethod
    def _loaded(entry: HubEntry) -> torch.nn.Module:
        source = "local" if entry.is_local else "github"
        try:
            found = torch.hub.load(entry.where, entry.entry, source=source, trust_repo=True, **entry.arguments)
        except Exception as error:  # whatever another's code raises
            raise UserError(
                f"{entry.where} gives no model {entry.entry} ({type(error).__name__}: {' '.join(str(error).split())}): "
                "look at its hubconf.py; without a network name a folder that holds it"
            ) from error
        if not isinstance(found, torch.nn.Module):
            raise UserError(f"{entry.where}: {entry.entry} gives a {type(found).__name__}, wanted a torch.nn.Module")
        return found.eval().requires_grad_(False)

    @property
    def name(self) -> str:
        size = f", images resized to {self.size[1]}x{self.size[0]} inside" if self.size else ""
        return f"{self.called}{size}, {self.dim}-D, fp32 by PyTorch"

    @property
    def parameter_count(self) -> int:
        return sum(value.numel() for value in self.network.parameters())

    @property
    def megabytes(self) -> float:
        return sum(value.numel() * value.element_size() for value in self.network.state_dict().values()) / 1e6

    @torch.no_grad()
    def describe(self, images: np.ndarray, frozen: bool = False) -> np.ndarray:
        """See `Describer`. Raises a UserError where the model gives anything but a vector for each image."""
        assert not frozen  # it has no layers whose output is kept
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self._mean.device).float() / 255
        if self.size and tuple(pixels.shape[2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=True)
        try:
            found = self.network((pixels - self._mean) / self._std)
        except Exception as error:  # whatever another's code raises
            raise UserError(
                f"{self.called} cannot describe images of {images.shape[3]}x{images.shape[2]} pixels "
                f"({' '.join(str(error).split())}): give the size that it wants by --imageSize H W"
            ) from error
        if isinstance(found, tuple | list) and found:  # some give more behind the descriptors, such as attention
            found = found[0]
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(images):
            raise UserError(f"{self.called} gives {shape} for {len(images)} images, wanted a vector for each")
        return F.normalize(found.float(), dim=1).cpu().numpy().astype(np.float16)

    def describe_with_local(
        self, images: np.ndarray, projection: LocalProjection | None, frozen: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """It has no local descriptors: raises a UserError."""
        raise UserError(f"{self.called} gives no local descriptors: drop --rerank and --localDescriptors")

    def gflop(self, height: int, width: int) -> float:
        return count_gflop(self.network, torch.empty(1, 3, height, width, device="meta"))

    def bytes_per_image(self, height: int, width: int) -> None:
        """What an image takes inside is not known."""
        return None

    def to_device(self, device: Device, precision: str) -> "HubModel":
        """Compute on a device, in float32: another's model may be right in no other format."""
        where = torch.device(str(device))
        self.network, self.device, self.runs_on = self.network.to(where), device, device
        self._mean, self._std = self._mean.to(where), self._std.to(where)
        return self

    def infer_by(self, backend: str, images: int) -> None:
        """PyTorch computes it, whatever is wanted."""

    def eval(self) -> "HubModel":
        """It describes as in a test always."""
        return self
