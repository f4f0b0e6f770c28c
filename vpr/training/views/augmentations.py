"""Changes that any image may have: of colour and sharpness, hidden parts, another viewpoint."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

# What RandAugment chooses from, by strengths from -1 to 1: torchvision's changes of colour, to twice its magnitude.
CHANGES: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    lambda picture, by: ImageOps.autocontrast(picture),
    lambda picture, by: ImageOps.equalize(picture),
    lambda picture, by: ImageOps.posterize(picture, 8 - round(2.4 * abs(by))),
    lambda picture, by: ImageOps.solarize(picture, round(255 - 153 * abs(by))),
    *(
        lambda picture, by, change=change: change(picture).enhance(1 + 0.54 * by)
        for change in (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness)
    ),
)


def randaugment(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Two changes out of CHANGES, each of random strength (RandAugment: Cubuk et al., 2019)."""
    picture = Image.fromarray(image)
    for which in generator.integers(0, len(CHANGES), 2).tolist():
        picture = CHANGES[which](picture, generator.uniform(-1, 1))
    return np.array(picture)


def colour(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation times 0.6 to 1.4, hue turned by up to a twentieth of the circle."""
    from torchvision.transforms.v2 import functional

    picture = functional.adjust_hue(Image.fromarray(image), generator.uniform(-0.05, 0.05))
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = change(picture).enhance(generator.uniform(0.6, 1.4))
    return np.array(picture)


def blur(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A Gaussian blur with a standard deviation of 0.2 to 0.8 % of the longer side."""
    radius = max(image.shape) * generator.uniform(0.002, 0.008)
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def homography(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A step aside or a turn: each corner moves by up to 10 % of the sides (DeTone et al., 2016)."""
    return warped(image, generator.uniform(-0.1, 0.1, (4, 2)))


def warped(image: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """An image whose corners show what was at corner + shift, by a homography; beyond borders, their reflection.
    `shifts` [4, 2] are x and y in sides of the image, of the corners clockwise from the upper left."""
    height, width = image.shape[:2]
    margin = int(np.abs(shifts).max() * max(height, width)) + 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    x, y = np.array([[0, 0], [width, 0], [width, height], [0, height]]).T
    u, v = np.stack([x, y]) + shifts.T * [[width], [height]] + margin
    # u = (a x + b y + c) / (g x + h y + 1), v = (d x + e y + f) / (g x + h y + 1), in unknowns a to h
    one, none = np.ones(4), np.zeros(4)
    rows = np.stack([[x, y, one, none, none, none, -u * x, -u * y], [none, none, none, x, y, one, -v * x, -v * y]])
    unknowns = np.linalg.solve(rows.transpose(0, 2, 1).reshape(8, 8), np.concatenate([u, v])).tolist()
    way = Image.Transform.PERSPECTIVE, unknowns, Image.Resampling.BILINEAR
    return np.array(Image.fromarray(padded).transform((width, height), *way))


def boxes(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One to three grey boxes, plain or rough, in front of up to 30 % of the image: vehicles, people, hoardings."""
    result = image.copy()
    count = int(generator.integers(1, 4))
    for _ in range(count):
        part = _some_box(result, count, generator)
        rough = generator.uniform(0, 40) * generator.standard_normal(part.shape[:2], np.float32)
        part[...] = (generator.uniform(20, 220) + rough).clip(0, 255)[..., None]
    return result


def erasing(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A box of random values in place of up to 30 % of the image (Zhong et al., 2017)."""
    result = image.copy()
    part = _some_box(result, 1, generator)
    part[...] = generator.integers(0, 256, part.shape, np.uint8)
    return result


def _some_box(image: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """One of `count` parts of an image, [h, w, 3], of 3 % to 30 % of it together, up to twice as long as wide."""
    side, longer = (generator.uniform(0.03, 0.3) / count) ** 0.5, 2 ** generator.uniform(-0.5, 0.5)
    whole = np.array(image.shape[:2])
    sides = (whole * (side * longer, side / longer)).astype(int).clip(1)
    (top, left), (height, width) = generator.integers(0, whole - sides + 1), sides
    return image[top : top + height, left : left + width]
