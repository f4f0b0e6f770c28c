"""One photo file -> RGB: decoding, EXIF orientation, resizing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from vpr.common.errors import UserError

HEIC = {".heic", ".heif"}


def read_photo(path: Path) -> Image.Image:
    """Read a photo as RGB, upright by its EXIF orientation.

    Raises:
        UserError: the file cannot be decoded.
    """
    with opened(path) as photo:
        return in_eight_bits(ImageOps.exif_transpose(photo)).convert("RGB")


def in_eight_bits(photo: Image.Image) -> Image.Image:
    """A photo with 16 bits of grey in 8: Pillow by itself would make white of all but the darkest."""
    if not photo.mode.startswith("I"):
        return photo
    return Image.fromarray(np.rint(np.asarray(photo, np.float64) / 257).clip(0, 255).astype(np.uint8))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a photo; whatever goes wrong with it becomes one line."""
    advice = "get it again, or leave it out by --skipBroken"
    if path.suffix.lower() in HEIC and not _reads_heic():
        advice = "Pillow reads it after: python -m pip install pillow-heif"
    try:
        with Image.open(path) as photo:
            yield photo
    except Exception as error:  # Pillow raises a dozen kinds of errors on damaged files and damaged EXIF
        raise UserError(f"cannot decode the photo {path} ({error}): {advice}") from error


def _reads_heic() -> bool:
    """Whether Pillow has its optional plugin for HEIC, which is registered here."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def photo_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of a photo once upright; reads the header, not the pixels.

    Raises:
        UserError: the file is no photo.
    """
    with opened(path) as photo:
        sideways = photo.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)  # turned by a quarter
        return (photo.width, photo.height) if sideways else (photo.height, photo.width)


def shrunk(size: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    """(height, width) in pixels of a photo whose longest side may have `longest_side` pixels, of the same shape."""
    longest = max(size)
    if longest_side is None or longest <= longest_side:
        return size
    height, width = (max(1, round(side * longest_side / longest)) for side in size)
    return height, width


def decode(path: Path, size: tuple[int, int] | None = None, longest_side: int | None = None) -> torch.Tensor:
    """Read a photo as uint8 [3, H, W].

    Args:
        size: (height, width) in pixels to resize to; None keeps the photo's own.
        longest_side: pixels, to which a larger photo is shrunk where there is no `size`.

    Raises:
        UserError: the file cannot be decoded.
    """
    photo = read_photo(path)
    size = size or shrunk((photo.height, photo.width), longest_side)
    if size != (photo.height, photo.width):
        photo = photo.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W], same memory
