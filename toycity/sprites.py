"""Cut-outs for street furniture and for what gets in the way: trees, lamps, cars, vans, pedestrians."""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

PIXELS_PER_METRE = 40
# Width and height in metres.
SPRITE_SIZES = {
    "tree": (3.8, 6.6),
    "lamp": (0.9, 6.0),
    "car_side": (4.3, 1.5),
    "car_front": (1.8, 1.5),
    "van_side": (5.4, 2.4),
    "van_front": (2.1, 2.4),
    "pedestrian": (0.7, 1.75),
    "trunk": (0.7, 9.0),
}
PAINTS = (
    (176, 30, 32), (28, 62, 128), (232, 232, 230), (24, 24, 28), (140, 144, 150), (42, 96, 62),
    (214, 170, 40), (96, 72, 58), (70, 124, 158), (196, 196, 190), (222, 104, 34), (86, 40, 92),
)  # fmt: skip
GLASS = (48, 58, 68, 255)
TYRE = (22, 22, 24, 255)


@lru_cache(maxsize=256)
def sprite(kind: str, variant: int) -> Image.Image:
    """A cut-out with premultiplied colours; `variant` chooses its colour and shape."""
    width, height = SPRITE_SIZES[kind]
    image = Image.new("RGBA", (round(width * PIXELS_PER_METRE), round(height * PIXELS_PER_METRE)))
    painter = {
        "tree": _tree, "lamp": _lamp, "car_side": _car_side, "car_front": _vehicle_front,
        "van_side": _van_side,
        "van_front": _vehicle_front, "pedestrian": _pedestrian, "trunk": _trunk,
    }[kind]  # fmt: skip
    painter(
        ImageDraw.Draw(image),
        image.width,
        image.height,
        np.random.default_rng([sum(kind.encode()), variant]),
        variant,
    )
    return image.convert("RGBa")


def _paint(variant: int, factor: float = 1.0) -> tuple[int, int, int, int]:
    red, green, blue = (int(min(255, channel * factor)) for channel in PAINTS[variant % len(PAINTS)])
    return red, green, blue, 255


def _tree(draw: ImageDraw.ImageDraw, width: int, height: int, random: np.random.Generator, variant: int) -> None:
    draw.rectangle((0.47 * width, 0.5 * height, 0.53 * width, height), fill=(74, 60, 46, 255))
    green = np.array([62, 104, 46]) + random.integers(-18, 22, 3)
    for index in range(150):
        angle, radius = random.uniform(0, 2 * np.pi), np.sqrt(random.uniform(0, 1))
        x = width * (0.5 + 0.36 * radius * np.cos(angle))
        y = height * (0.36 + 0.27 * radius * np.sin(angle))
        size = width * random.uniform(0.04, 0.10)
        # Later leaves lie on top and nearer the light.
        tone = np.clip(green * (0.55 + 0.5 * index / 150 - 0.25 * (y / height - 0.36)), 0, 255).astype(int)
        draw.ellipse((x - size, y - size, x + size, y + size), fill=(*tone.tolist(), 255))


def _lamp(draw: ImageDraw.ImageDraw, width: int, height: int, random: np.random.Generator, variant: int) -> None:
    grey = (58, 62, 64, 255)
    draw.rectangle((0.44 * width, 0.06 * height, 0.56 * width, height), fill=grey)
    if variant % 2:
        draw.ellipse((0.15 * width, 0, 0.85 * width, 0.11 * height), fill=(238, 236, 224, 255))
    else:
        draw.rectangle((0.05 * width, 0.05 * height, 0.95 * width, 0.065 * height), fill=grey)
        for left in (0.0, 0.7):
            box = (left * width, 0.065 * height, (left + 0.3) * width, 0.11 * height)
            draw.rectangle(box, fill=(238, 236, 224, 255))


def _shadow(draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    draw.ellipse((0.02 * width, 0.90 * height, 0.98 * width, 1.06 * height), fill=(10, 10, 12, 150))


def _wheels(draw: ImageDraw.ImageDraw, width: int, height: int, centres: tuple[float, ...], radius: float) -> None:
    for centre in centres:
        x, y = centre * width, height - radius
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=TYRE)
        draw.ellipse((x - radius / 2, y - radius / 2, x + radius / 2, y + radius / 2), fill=(150, 152, 156, 255))


def _car_side(draw: ImageDraw.ImageDraw, width: int, height: int, random: np.random.Generator, variant: int) -> None:
    _shadow(draw, width, height)
    cabin = [(0.18, 0.42), (0.30, 0.02), (0.68, 0.02), (0.84, 0.42)]
    draw.polygon([(x * width, y * height) for x, y in cabin], fill=_paint(variant, 0.85))
    for glass in (
        [(0.23, 0.40), (0.32, 0.08), (0.47, 0.08), (0.47, 0.40)],
        [(0.50, 0.40), (0.50, 0.08), (0.66, 0.08), (0.78, 0.40)],
    ):
        draw.polygon([(x * width, y * height) for x, y in glass], fill=GLASS)
    draw.rounded_rectangle((0.01 * width, 0.38 * height, 0.99 * width, 0.86 * height), 12, fill=_paint(variant))
    draw.rectangle((0.01 * width, 0.72 * height, 0.99 * width, 0.78 * height), fill=_paint(variant, 0.6))
    draw.line((0.49 * width, 0.42 * height, 0.49 * width, 0.8 * height), fill=_paint(variant, 0.5), width=2)
    _wheels(draw, width, height, (0.20, 0.80), 0.21 * height)


def _van_side(draw: ImageDraw.ImageDraw, width: int, height: int, random: np.random.Generator, variant: int) -> None:
    _shadow(draw, width, height)
    body = [(0.01, 0.9), (0.01, 0.03), (0.78, 0.03), (0.90, 0.42), (0.99, 0.50), (0.99, 0.9)]
    draw.polygon([(x * width, y * height) for x, y in body], fill=_paint(variant))
    draw.polygon(
        [(x * width, y * height) for x, y in [(0.66, 0.42), (0.66, 0.1), (0.76, 0.1), (0.86, 0.42)]],
        fill=GLASS,
    )
    draw.rectangle((0.1 * width, 0.3 * height, 0.55 * width, 0.5 * height), fill=_paint(variant + 5))
    draw.rectangle((0.01 * width, 0.78 * height, 0.99 * width, 0.82 * height), fill=_paint(variant, 0.55))
    _wheels(draw, width, height, (0.18, 0.82), 0.15 * height)


def _vehicle_front(
    draw: ImageDraw.ImageDraw, width: int, height: int, random: np.random.Generator, variant: int
) -> None:
    """Cars and vans alike, seen from the front or the back."""
    _shadow(draw, width, height)
    for left in (0.04, 0.78):
        draw.rectangle((left * width, 0.7 * height, (left + 0.18) * width, height), fill=TYRE)
    draw.rounded_rectangle((0.12 * width, 0.0, 0.88 * width, 0.6 * height), 10, fill=_paint(variant, 0.85))
    draw.polygon(
        [(x * width, y * height) for x, y in [(0.14, 0.42), (0.2, 0.08), (0.8, 0.08), (0.86, 0.42)]],
        fill=GLASS,
    )
    draw.rounded_rectangle((0.02 * width, 0.42 * height, 0.98 * width, 0.88 * height), 10, fill=_paint(variant))
    lights = (200, 30, 26, 255) if variant % 2 else (240, 238, 220, 255)
    for left in (0.06, 0.78):
        draw.rectangle((left * width, 0.5 * height, (left + 0.16) * width, 0.6 * height), fill=lights)
    draw.rectangle((0.36 * width, 0.68 * height, 0.64 * width, 0.77 * height), fill=(236, 236, 226, 255))


def _pedestrian(draw: ImageDraw.ImageDraw, width: int, height: int, random: np.random.Generator, variant: int) -> None:
    skin = (*random.integers((120, 80, 60), (235, 195, 170)).tolist(), 255)
    draw.ellipse((0.36 * width, 0.0, 0.64 * width, 0.14 * height), fill=skin)
    draw.rounded_rectangle((0.2 * width, 0.14 * height, 0.8 * width, 0.55 * height), 8, fill=_paint(variant))
    stride = random.uniform(0.0, 0.16)
    for side in (-1, 1):
        hip, step = 0.5 + side * 0.13, 0.5 + side * (0.13 + stride)
        corners = [(hip - 0.12, 0.53), (hip + 0.12, 0.53), (step + 0.09, 1.0), (step - 0.09, 1.0)]
        draw.polygon([(x * width, y * height) for x, y in corners], fill=_paint(variant + 3, 0.6))


def _trunk(draw: ImageDraw.ImageDraw, width: int, height: int, random: np.random.Generator, variant: int) -> None:
    bark = np.array([84, 68, 52]) + random.integers(-16, 16)
    draw.rectangle((0.1 * width, 0, 0.9 * width, height), fill=(*bark.tolist(), 255))
    for _ in range(60):
        x, y = random.uniform(0.12, 0.85) * width, random.uniform(0, 1) * height
        draw.line((x, y, x, y + 24), fill=(*(bark * 0.7).astype(int).tolist(), 255), width=2)
