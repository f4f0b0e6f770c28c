"""Keypoints of an image by the network XFeat, in 8 bits.

Potje et al., "XFeat: Accelerated Features for Lightweight Image Matching", CVPR 2024; the network and its detection are
kornia's, the weights those of the authors (Apache-2.0).
"""

import hashlib
import importlib.util
import os
import struct
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vpr.common.errors import UserError
from vpr.common.files import atomic_write
from vpr.common.progress import say

if TYPE_CHECKING:  # models without PyTorch are not verified
    import torch

MOST = 1024  # keypoints of an image, those of the highest scores
DIM = 64
SCALE = 254  # a component of 1/2 is stored as 127; a unit vector of 64 components has none beyond, but for rare ones
# Images are made larger where their longest side has fewer pixels, at most MOST_ENLARGED times, and smaller where more.
SHORTEST, LONGEST, MOST_ENLARGED = 320, 640, 2.0
STEP = 32  # pixels, of which the network takes whole multiples
FILE, MEGABYTES = "xfeat.pt", 6
ADDRESS = f"https://github.com/verlab/accelerated_features/raw/main/weights/{FILE}"
SECONDS = 10  # without an answer, after which a download is given up
RELEASED = "7db43e05bd2abf46"  # the beginning of a SHA-256 of its tensors
INSTALL = "pip install kornia opencv-python-headless"
_HEADER = struct.Struct("<III")


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of an image, the highest score first."""

    points: np.ndarray  # float32 [n, 2], (x, y) from 0 to 1 across the image
    descriptors: np.ndarray  # int8 [n, DIM], unit vectors times SCALE, rounded
    width: int  # of the image, in pixels
    height: int

    def pack(self) -> bytes:
        """All of it in 68 bytes a keypoint: positions in 16 bits, a hundredth of a pixel."""
        points = (self.points * 65535).round().astype("<u2")
        return _HEADER.pack(len(points), self.width, self.height) + points.tobytes() + self.descriptors.tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> "Keypoints":
        """What `pack` made. Raises a ValueError: it is not that."""
        count, width, height = _HEADER.unpack(packed[: _HEADER.size].ljust(_HEADER.size, b"\0"))
        if len(packed) != _HEADER.size + count * (4 + DIM):
            raise ValueError(f"{len(packed)} bytes of {count} keypoints")
        points = np.frombuffer(packed, "<u2", 2 * count, _HEADER.size).reshape(-1, 2)
        descriptors = np.frombuffer(packed, np.int8, offset=_HEADER.size + 4 * count).reshape(-1, DIM)
        return cls(points.astype(np.float32) / np.float32(65535), descriptors, width, height)


class KeypointNetwork:
    """Finds keypoints of images."""

    def __init__(self, weights: Mapping[str, "torch.Tensor"]) -> None:
        """Of the network's tensors by the authors' names.
        Raises a UserError: packages are not installed, or the tensors are not those of the network."""
        _require_packages()
        from kornia.feature import XFeat

        self._net = XFeat(top_k=MOST).eval()
        self.layers = self._net.net
        try:
            self.layers.load_state_dict(dict(weights))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # of what is no table of tensors
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"--keypointWeights: these are no weights of XFeat ({reason}): name its {FILE}") from error
        digest = hashlib.sha256()
        for name, value in sorted(self.layers.state_dict().items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        self.weights_hash = digest.hexdigest()[:16]  # by which keypoints are kept

    def detect(self, image: np.ndarray) -> Keypoints:
        """The keypoints of an image uint8 [3, H, W]."""
        import torch

        height, width = image.shape[1:]
        longest = max(height, width)
        factor = min(max(1.0, min(MOST_ENLARGED, SHORTEST / longest)), LONGEST / longest)
        size = tuple(max(STEP, round(side * factor) // STEP * STEP) for side in (height, width))
        pixels = torch.from_numpy(np.ascontiguousarray(image))[None]  # [1, 3, H, W]
        if size != (height, width):  # in bytes, which engines take
            pixels = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=factor < 1)
        found: dict[str, Any] = self._net.detectAndCompute(pixels.float() / 255)[0]
        sides = torch.tensor(size[::-1])
        points = (found["keypoints"] / sides).clamp(0, 1).numpy().astype(np.float32)
        descriptors = (found["descriptors"] * SCALE).round().clamp(-127, 127).to(torch.int8).numpy()
        return Keypoints(points, descriptors, width, height)


def load_network(path: str) -> KeypointNetwork:
    """The network with the weights of a file, or where the path is empty with those of the authors' release.
    Raises a UserError: the file is not there or no such file, or cannot be downloaded."""
    _require_packages()
    import torch

    file = Path(path) if path else downloaded() or _download()
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the kinds that torch.load raises
        reason = str(error).strip().partition("\n")[0][:150]
        raise UserError(
            f"keypoints: cannot read {file} ({reason}): name XFeat's {FILE} by --keypointWeights"
        ) from error
    network = KeypointNetwork(weights)
    if not path and network.weights_hash != RELEASED:
        raise UserError(
            f"{file} has other weights than the authors' release: delete it, or name it by --keypointWeights"
        )
    return network


def downloaded() -> Path | None:
    """The authors' file where it has been downloaded before; None where it has not, or what reads it is not there."""
    return file if (file := _cached()).is_file() and not _missing_packages() else None


def _cached() -> Path:
    """Where torch.hub keeps the authors' file; works that out without PyTorch, whose import takes seconds."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / FILE


def _missing_packages() -> list[str]:
    return [name for name in ("torch", "kornia", "cv2") if importlib.util.find_spec(name) is None]


def _require_packages() -> None:
    if missing := _missing_packages():
        raise UserError(f"keypoints need {', '.join(missing)}, which is not installed: {INSTALL}")


def _download() -> Path:
    file = _cached()
    say(f"downloading XFeat's weights ({MEGABYTES} MB, Apache-2.0) from {ADDRESS}")
    try:
        with urllib.request.urlopen(ADDRESS, timeout=SECONDS) as answer:
            found = answer.read()
    except OSError as error:
        raise UserError(
            f"cannot download XFeat's weights ({error}): fetch {ADDRESS} elsewhere, and name the file by "
            f"--keypointWeights or save it as {file}"
        ) from error
    with atomic_write(file) as temporary:
        temporary.write_bytes(found)
    return file
