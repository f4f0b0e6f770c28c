"""Photos for tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def draw_photo(path: Path, size: tuple[int, int], seed: int | Sequence[int], exif: Image.Exif | None = None) -> Path:
    """Draw a photo of coarse noise, 8x6 colours that blend: no two seeds look alike to any network. Gives its path.

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
