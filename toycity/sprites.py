"""Cut-outs for street furniture and for what gets in the way: trees, lamps, cars, vans, pedestrians."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

PIXELS_PER_METRE = 40
Colour = tuple[int, ...]  # red, green, blue and opacity
# Width and height in metres.
SPRITE_SIZES = {
    "tree": (3.8, 6.6), "lamp": (0.9, 6.0), "car_side": (4.3, 1.5), "car_front": (1.8, 1.5), "van_side": (5.4, 2.4),
    "van_front": (2.1, 2.4), "pedestrian": (0.7, 1.75), "trunk": (0.7, 9.0),
}  # fmt: skip
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
        "tree": _tree, "lamp": _lamp, "car_side": _car_side, "car_front": _vehicle_front, "van_side": _van_side,
        "van_front": _vehicle_front, "pedestrian": _pedestrian, "trunk": _trunk,
    }[kind]  # fmt: skip
    painter(Pen(image), np.random.default_rng([sum(kind.encode()), variant]), variant)
    return image.convert("RGBa")


class Pen:
    """Draws into an image, whose width and height are 1."""

    def __init__(self, image: Image.Image):
        self.draw, self.width, self.height = ImageDraw.Draw(image), image.width, image.height

    def box(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        """In pixels."""
        return left * self.width, top * self.height, right * self.width, bottom * self.height

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour, radius: int = 0) -> None:
        """A rectangle, whose corners have a radius in pixels."""
        self.draw.rounded_rectangle(self.box(left, top, right, bottom), radius, fill=colour)

    def ellipse(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """The ellipse within a rectangle."""
        self.draw.ellipse(self.box(left, top, right, bottom), fill=colour)

    def polygon(self, corners: Sequence[tuple[float, float]], colour: Colour) -> None:
        """A polygon of corners (x, y)."""
        self.draw.polygon([(x * self.width, y * self.height) for x, y in corners], fill=colour)

    def wheels(self, centres: Sequence[float], radius: float) -> None:
        """Wheels on the ground; the radius is a share of the height."""
        radius *= self.height
        for centre in centres:
            x, y = centre * self.width, self.height - radius
            for size, colour in ((radius, TYRE), (radius / 2, (150, 152, 156, 255))):
                self.draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)


def _paint(variant: int, factor: float = 1.0) -> Colour:
    red, green, blue = (int(min(255, channel * factor)) for channel in PAINTS[variant % len(PAINTS)])
    return red, green, blue, 255


def _tree(pen: Pen, random: np.random.Generator, variant: int) -> None:
    width, height = pen.width, pen.height
    pen.rectangle(0.47, 0.5, 0.53, 1, (74, 60, 46, 255))
    green = np.array([62, 104, 46]) + random.integers(-18, 22, 3)
    for index in range(150):
        angle, radius = random.uniform(0, 2 * np.pi), np.sqrt(random.uniform(0, 1))
        x = width * (0.5 + 0.36 * radius * np.cos(angle))
        y = height * (0.36 + 0.27 * radius * np.sin(angle))
        size = width * random.uniform(0.04, 0.10)
        # Later leaves lie on top and nearer the light.
        tone = np.clip(green * (0.55 + 0.5 * index / 150 - 0.25 * (y / height - 0.36)), 0, 255).astype(int)
        pen.draw.ellipse((x - size, y - size, x + size, y + size), fill=(*tone.tolist(), 255))


def _lamp(pen: Pen, random: np.random.Generator, variant: int) -> None:
    grey, light = (58, 62, 64, 255), (238, 236, 224, 255)
    pen.rectangle(0.44, 0.06, 0.56, 1, grey)
    if variant % 2:
        pen.ellipse(0.15, 0, 0.85, 0.11, light)
    else:
        pen.rectangle(0.05, 0.05, 0.95, 0.065, grey)
        for left in (0.0, 0.7):
            pen.rectangle(left, 0.065, left + 0.3, 0.11, light)


def _shadow(pen: Pen) -> None:
    pen.ellipse(0.02, 0.90, 0.98, 1.06, (10, 10, 12, 150))


def _car_side(pen: Pen, random: np.random.Generator, variant: int) -> None:
    _shadow(pen)
    pen.polygon([(0.18, 0.42), (0.30, 0.02), (0.68, 0.02), (0.84, 0.42)], _paint(variant, 0.85))
    pen.polygon([(0.23, 0.40), (0.32, 0.08), (0.47, 0.08), (0.47, 0.40)], GLASS)
    pen.polygon([(0.50, 0.40), (0.50, 0.08), (0.66, 0.08), (0.78, 0.40)], GLASS)
    pen.rectangle(0.01, 0.38, 0.99, 0.86, _paint(variant), radius=12)
    pen.rectangle(0.01, 0.72, 0.99, 0.78, _paint(variant, 0.6))
    pen.draw.line(pen.box(0.49, 0.42, 0.49, 0.8), fill=_paint(variant, 0.5), width=2)
    pen.wheels((0.20, 0.80), 0.21)


def _van_side(pen: Pen, random: np.random.Generator, variant: int) -> None:
    _shadow(pen)
    body = [(0.01, 0.9), (0.01, 0.03), (0.78, 0.03), (0.90, 0.42), (0.99, 0.50), (0.99, 0.9)]
    pen.polygon(body, _paint(variant))
    pen.polygon([(0.66, 0.42), (0.66, 0.1), (0.76, 0.1), (0.86, 0.42)], GLASS)
    pen.rectangle(0.1, 0.3, 0.55, 0.5, _paint(variant + 5))
    pen.rectangle(0.01, 0.78, 0.99, 0.82, _paint(variant, 0.55))
    pen.wheels((0.18, 0.82), 0.15)


def _vehicle_front(pen: Pen, random: np.random.Generator, variant: int) -> None:
    """Cars and vans alike, seen from the front or the back."""
    _shadow(pen)
    for left in (0.04, 0.78):
        pen.rectangle(left, 0.7, left + 0.18, 1, TYRE)
    pen.rectangle(0.12, 0.0, 0.88, 0.6, _paint(variant, 0.85), radius=10)
    pen.polygon([(0.14, 0.42), (0.2, 0.08), (0.8, 0.08), (0.86, 0.42)], GLASS)
    pen.rectangle(0.02, 0.42, 0.98, 0.88, _paint(variant), radius=10)
    lights = (200, 30, 26, 255) if variant % 2 else (240, 238, 220, 255)
    for left in (0.06, 0.78):
        pen.rectangle(left, 0.5, left + 0.16, 0.6, lights)
    pen.rectangle(0.36, 0.68, 0.64, 0.77, (236, 236, 226, 255))


def _pedestrian(pen: Pen, random: np.random.Generator, variant: int) -> None:
    pen.ellipse(0.36, 0.0, 0.64, 0.14, (*random.integers((120, 80, 60), (235, 195, 170)).tolist(), 255))
    pen.rectangle(0.2, 0.14, 0.8, 0.55, _paint(variant), radius=8)
    stride = random.uniform(0.0, 0.16)
    for side in (-1, 1):
        hip, step = 0.5 + side * 0.13, 0.5 + side * (0.13 + stride)
        corners = [(hip - 0.12, 0.53), (hip + 0.12, 0.53), (step + 0.09, 1.0), (step - 0.09, 1.0)]
        pen.polygon(corners, _paint(variant + 3, 0.6))


def _trunk(pen: Pen, random: np.random.Generator, variant: int) -> None:
    bark = np.array([84, 68, 52]) + random.integers(-16, 16)
    pen.rectangle(0.1, 0, 0.9, 1, (*bark.tolist(), 255))
    for _ in range(60):
        x, y = random.uniform(0.12, 0.85) * pen.width, random.uniform(0, 1) * pen.height
        pen.draw.line((x, y, x, y + 24), fill=(*(bark * 0.7).astype(int).tolist(), 255), width=2)
