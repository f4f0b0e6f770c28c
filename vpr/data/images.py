"""One image file -> RGB: decoding, EXIF orientation, resizing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps

from vpr.common.errors import UserError

if TYPE_CHECKING:  # processes that only decode do without torch
    import torch

HEIC = {".heic", ".heif"}


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB, upright by its EXIF orientation.

    Raises:
        UserError: the file cannot be decoded.
    """
    with opened(path) as image:
        return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """An opened image decoded as RGB, turned as its EXIF orientation says."""
    return in_eight_bits(ImageOps.exif_transpose(image)).convert("RGB")


def in_eight_bits(image: Image.Image) -> Image.Image:
    """An image with 16 bits of grey in 8: Pillow by itself would make white of all but the darkest."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(np.rint(np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image; whatever goes wrong with it becomes one line."""
    advice = "get it again, or leave it out by --skipBroken"
    if path.suffix.lower() in HEIC and not reads_heic():
        advice = "Pillow reads it after: python -m pip install pillow-heif"
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow raises a dozen kinds of errors on damaged files and damaged EXIF
        raise UserError(f"cannot decode the image {path} ({error}): {advice}") from error


def reads_heic() -> bool:
    """Whether Pillow has its optional plugin for HEIC, which is registered here."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of an image once upright; reads the header, not the pixels.

    Raises:
        UserError: the file is no image.
    """
    with opened(path) as image:
        sideways = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)  # turned by a quarter
        return (image.width, image.height) if sideways else (image.height, image.width)


def shrunk(size: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    """(height, width) in pixels of an image whose longest side may have `longest_side` pixels, of the same shape."""
    longest = max(size)
    if longest_side is None or longest <= longest_side:
        return size
    height, width = (max(1, round(side * longest_side / longest)) for side in size)
    return height, width


def decode(path: Path, size: tuple[int, int] | None = None, longest_side: int | None = None) -> "torch.Tensor":
    """Read an image as uint8 [3, H, W]; the arguments are those of `resized`.

    Raises:
        UserError: the file cannot be decoded.
    """
    import torch

    pixels = resized(read_image(path), size, longest_side)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # [H, W, 3] -> [3, H, W], same memory


def resized(image: Image.Image, size: tuple[int, int] | None = None, longest_side: int | None = None) -> np.ndarray:
    """The pixels of an RGB image, uint8 [H, W, 3].

    Args:
        size: (height, width) in pixels to resize to; None keeps the image's own.
        longest_side: pixels, to which a larger image is shrunk where there is no `size`.
    """
    size = size or shrunk((image.height, image.width), longest_side)
    if size != (image.height, image.width):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(image)
