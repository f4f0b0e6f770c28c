"""Images for tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def draw_image(path: Path, size: tuple[int, int], seed: int | Sequence[int], exif: Image.Exif | None = None) -> Path:
    """Draw an image of coarse noise, 8x6 colours that blend: no two seeds look alike to any network. Gives its path.

    Args:
        path: its folder is made; its ending says the format.
        size: (width, height) in pixels.
        exif: what is stored beside the pixels.
    """
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    image.save(path, exif=exif) if exif else image.save(path)
    return path


def gps(latitude: float, longitude: float, letters: str | None = None) -> Image.Exif:
    """The EXIF of an image taken at some degrees.

    Args:
        letters: of latitude and longitude; None: those of the signs.
    """
    exif = Image.Exif()
    exif[0x0112] = 1  # Pillow writes no EXIF of a place alone into a PNG
    folder = exif.get_ifd(0x8825)
    for axis, (value, names) in enumerate(((latitude, "NS"), (longitude, "EW"))):
        folder[2 * axis + 1] = letters[axis] if letters else names[value < 0]
        degrees, rest = divmod(abs(value), 1)
        minutes, rest = divmod(60 * rest, 1)
        folder[2 * axis + 2] = (degrees, minutes, round(60 * rest, 6))
    exif[0x8825] = folder
    return exif


RANDOM = np.random.default_rng(0)


def noise(height, width, channels=3):
    return RANDOM.integers(0, 256, (height, width, channels), dtype=np.uint8)


def save(path, pixels, **settings):
    Image.fromarray(pixels).save(path, **settings)
    return path


def plain_image(path, number, height=6, width=8):
    """One colour, which tells which image it is."""
    return save(path, np.full((height, width, 3), (number, 2 * number, 100 + number), dtype=np.uint8))
