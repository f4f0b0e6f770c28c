"""Facade textures: what a house looks like from the street, drawn once per wall.

A texture is [rows, columns, 4] uint8 at `TEXELS_PER_METRE`; row 0 is at street level, column 0 at the
left end as seen from outside. The fourth channel says how readily a texel shines at night.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFont

TEXELS_PER_METRE = 12
SHOP_NAMES = (
    "BAKERY", "BOOKS", "PIZZA", "CAFE", "HOTEL", "BANK", "SHOES", "TOYS", "WINE", "BARBER", "OPTIC", "RADIO",
    "FLORA", "CINEMA", "DELI", "MUSIC", "TAILOR", "BIKES", "POST", "SUSHI", "TEA", "ZOO", "PHARMACY", "GRILL",
)  # fmt: skip
WALL_COLOURS = (
    (168, 84, 62), (142, 66, 52), (186, 122, 86), (214, 192, 148), (226, 214, 190), (196, 176, 142),
    (154, 152, 146), (120, 124, 128), (204, 168, 92), (156, 176, 150), (132, 158, 182), (206, 146, 132),
    (232, 228, 218), (98, 86, 78), (178, 196, 200), (172, 152, 176),
)  # fmt: skip
ACCENT_COLOURS = (
    (190, 36, 36), (28, 78, 150), (24, 110, 66), (226, 168, 24), (110, 38, 110), (240, 240, 232),
    (30, 30, 34), (222, 98, 28), (20, 130, 140),
)  # fmt: skip


@dataclass(frozen=True)
class FacadeStyle:
    """Everything that makes a house recognisable; two houses of one style are twins. Sizes in metres."""

    material: str
    wall: tuple[int, int, int]
    trim: tuple[int, int, int]
    accent: tuple[int, int, int]
    floors: int
    ground_floor: float
    storey: float
    bay: float
    window_width: float
    window_height: float
    panes: tuple[int, int]
    dress: str
    balcony_every: int
    cornice: float
    shop: bool
    sign: str
    pipe: bool
    detail_seed: int

    @property
    def height(self) -> float:
        """From the street to the roof edge, metres."""
        return self.ground_floor + self.floors * self.storey + self.cornice


def draw_style(random: np.random.Generator) -> FacadeStyle:
    """A house at random."""
    material = str(random.choice(["brick", "plaster", "stone", "glass"], p=[0.36, 0.34, 0.18, 0.12]))
    bay = random.uniform(1.9, 3.8)
    storey = random.uniform(2.9, 3.9)
    wall = np.array(WALL_COLOURS[random.integers(len(WALL_COLOURS))]) + random.integers(-14, 15, 3)
    bright = random.random() < 0.7
    trim = (random.uniform(200, 245, 3) if bright else random.uniform(40, 110, 3)).astype(int)
    return FacadeStyle(
        material=material,
        wall=_as_colour(wall),
        trim=_as_colour(trim),
        accent=ACCENT_COLOURS[random.integers(len(ACCENT_COLOURS))],
        floors=int(random.integers(1, 8)),
        ground_floor=random.uniform(3.4, 4.8),
        storey=storey,
        bay=bay,
        window_width=bay * random.uniform(0.35, 0.72),
        window_height=storey * random.uniform(0.42, 0.72),
        panes=(int(random.integers(1, 4)), int(random.integers(1, 4))),
        dress=str(random.choice(["lintel", "surround", "shutters", "arch", "none"])),
        balcony_every=int(random.choice([0, 0, 0, 1, 2, 3])),
        cornice=random.uniform(0.4, 1.1),
        shop=bool(random.random() < 0.6),
        sign=str(random.choice(SHOP_NAMES)),
        pipe=bool(random.random() < 0.5),
        detail_seed=int(random.integers(2**31)),
    )


class Canvas:
    """A texture under work, addressed in metres: x from the left end, y from the street up."""

    def __init__(self, width: float, height: float, colour: tuple[int, int, int]):
        self.width, self.height, self.colour = width, height, colour
        shape = [max(8, round(height * TEXELS_PER_METRE)), max(8, round(width * TEXELS_PER_METRE))]
        self.texels = np.zeros([*shape, 4], np.uint8)

    def part(self, left: float, bottom: float, right: float, top: float) -> np.ndarray:
        """A view of the texels of a rectangle [rows, columns, 4]."""
        left, bottom, right, top = (max(0, round(edge * TEXELS_PER_METRE)) for edge in (left, bottom, right, top))
        return self.texels[bottom:top, left:right]

    def fill(self, left: float, bottom: float, right: float, top: float, colour: Sequence[int], glow: int = 0) -> None:
        """Paint a rectangle."""
        self.part(left, bottom, right, top)[...] = (*colour, glow)

    def tint(self, left: float, bottom: float, right: float, top: float, factor: float) -> None:
        """Darken (factor below 1) or lighten a rectangle: shadows and ledges."""
        colours = self.part(left, bottom, right, top)[..., :3]
        colours[...] = np.minimum(colours * np.float32(factor), 255)


def draw_facade(style: FacadeStyle, width: float) -> np.ndarray:
    """The street front of a house, `width` metres wide: uint8 [rows, columns, 4]."""
    random = np.random.default_rng(style.detail_seed)
    canvas = Canvas(width, style.height, style.wall)
    _lay_material(canvas, style, random)
    bays = max(1, int((width - 0.8) / style.bay))
    first = (width - bays * style.bay) / 2
    for floor in range(style.floors):
        floor_bottom = style.ground_floor + floor * style.storey
        if style.dress == "lintel" or floor == 0:
            canvas.fill(0, floor_bottom - 0.15, width, floor_bottom + 0.05, style.trim)
            canvas.tint(0, floor_bottom - 0.3, width, floor_bottom - 0.15, 0.7)
        for bay in range(bays):
            _draw_window(canvas, style, first + (bay + 0.5) * style.bay, floor_bottom, random)
        if style.balcony_every and floor % style.balcony_every == 0:
            _draw_balcony(canvas, style, first, bays, floor_bottom)
    if style.shop:
        _draw_shop(canvas, style, random)
    else:
        _draw_ground_floor(canvas, style, first, bays, random)
    _draw_roof_edge(canvas, style)
    return canvas.texels


def draw_party_wall(style: FacadeStyle, width: float) -> np.ndarray:
    """The plain wall between neighbours or towards the yard: uint8 [rows, columns, 4]."""
    random = np.random.default_rng([style.detail_seed, 1])
    canvas = Canvas(width, style.height, _as_colour([0.82 * channel for channel in style.wall]))
    _lay_material(canvas, style, random)
    for floor in range(style.floors):
        if random.random() < 0.4:
            left = random.uniform(1, max(1.5, width - 2))
            bottom = style.ground_floor + floor * style.storey + 1.0
            canvas.fill(left, bottom, left + 0.8, bottom + 1.1, (58, 62, 70), int(random.integers(256)))
    return canvas.texels


def _as_colour(values: Iterable[float]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, int(value))) for value in values)
    return red, green, blue


def _lay_material(canvas: Canvas, style: FacadeStyle, random: np.random.Generator) -> None:
    """Brick rows, stone blocks or smooth plaster, with blotches."""
    rows, columns = canvas.texels.shape[:2]
    coarse = random.normal(1, 0.05, [rows // 18 + 2, columns // 18 + 2]).astype(np.float32)
    tone = np.array(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BILINEAR))  # [rows, columns]
    course, block = {"brick": (3, 7), "stone": (8, 15)}.get(style.material, (0, 0))  # texels
    if course:
        row, column = np.arange(rows) // course, np.arange(columns)
        brick = (column[None, :] + (row[:, None] % 2) * (block // 2)) // block
        tones = random.normal(1, 0.07, 4096).astype(np.float32)
        tone *= tones[(row[:, None] * 131 + brick * 17) % 4096]
        tone[np.arange(rows) % course == 0] *= np.float32(0.86)
    tone += random.standard_normal([rows, columns], np.float32) * np.float32(0.03)
    for channel in range(3):
        canvas.texels[..., channel] = np.clip(tone * np.float32(canvas.colour[channel]), 0, 255)


def _draw_window(
    canvas: Canvas, style: FacadeStyle, centre: float, floor_bottom: float, random: np.random.Generator
) -> None:
    width, height = style.window_width, style.window_height
    left, right = centre - width / 2, centre + width / 2
    bottom = floor_bottom + (style.storey - height) * 0.55
    if style.material == "glass":  # a curtain wall: glass from floor to floor
        left, right, bottom = centre - style.bay * 0.46, centre + style.bay * 0.46, floor_bottom + 0.25
        height = style.storey - 0.45
    top = bottom + height
    if style.dress == "surround":
        canvas.fill(left - 0.18, bottom - 0.15, right + 0.18, top + 0.2, style.trim)
    elif style.dress in ("lintel", "arch"):
        canvas.fill(left - 0.15, top, right + 0.15, top + 0.3, style.trim)
        canvas.fill(left - 0.12, bottom - 0.14, right + 0.12, bottom, style.trim)
    elif style.dress == "shutters" and style.material != "glass":
        for edge in (left - 0.4, right + 0.02):
            canvas.fill(edge, bottom, edge + 0.38, top, style.accent)
    canvas.fill(left, bottom, right, top, style.trim)
    glass = np.array([66, 78, 92]) + random.integers(-22, 26)
    if random.random() < 0.16:  # a blind is down
        glass = np.array([196, 188, 170]) + random.integers(-20, 20)
    glow = int(random.integers(0, 256))
    columns, rows = style.panes
    for column in range(columns):
        for row in range(rows):
            pane_left = left + 0.07 + column * (width_of(left, right) / columns)
            pane_bottom = bottom + 0.07 + row * (height - 0.07) / rows
            canvas.fill(
                pane_left, pane_bottom, pane_left + width_of(left, right) / columns - 0.06,
                pane_bottom + (height - 0.07) / rows - 0.06, _as_colour(glass + 10 * row), glow,
            )  # fmt: skip
    canvas.tint(left, top - 0.16, right, top, 0.6)  # the reveal's shadow
    if style.dress == "arch":
        canvas.fill(left, top - 0.14, left + 0.2 * width, top, style.trim)
        canvas.fill(right - 0.2 * width, top - 0.14, right, top, style.trim)


def width_of(left: float, right: float) -> float:
    """Clear width between the outer frame bars, metres."""
    return right - left - 0.07


def _draw_balcony(canvas: Canvas, style: FacadeStyle, first: float, bays: int, floor_bottom: float) -> None:
    for bay in range(0, bays, 2):
        left, right = first + bay * style.bay + 0.1, first + (bay + 1) * style.bay - 0.1
        canvas.fill(left, floor_bottom + 0.05, right, floor_bottom + 0.28, style.trim)
        canvas.tint(left, floor_bottom - 0.35, right, floor_bottom + 0.05, 0.6)
        for rail in np.arange(left, right, 0.25):
            canvas.fill(rail, floor_bottom + 0.28, rail + 0.07, floor_bottom + 1.1, (44, 44, 48))
        canvas.fill(left, floor_bottom + 1.06, right, floor_bottom + 1.16, (44, 44, 48))


def _draw_shop(canvas: Canvas, style: FacadeStyle, random: np.random.Generator) -> None:
    """Show windows, a door, a sign board with the shop's name, perhaps an awning."""
    width, top = canvas.width, style.ground_floor
    canvas.fill(0, 0, width, top - 0.2, _as_colour(0.55 * np.array(style.accent) + 25))
    canvas.fill(0, 0, width, 0.45, (70, 66, 64))
    panes = max(2, int(width / 2.6))
    door = int(random.integers(panes))
    for pane in range(panes):
        left, right = 0.3 + pane * (width - 0.3) / panes, (pane + 1) * (width - 0.3) / panes
        bottom = 0.05 if pane == door else 0.55
        canvas.fill(left, bottom, right, top - 1.25, (58, 66, 74), 250)
        for _ in range(3):  # wares
            ware = random.uniform(left, right - 0.3)
            colour = ACCENT_COLOURS[random.integers(len(ACCENT_COLOURS))]
            canvas.fill(ware, bottom + 0.1, min(ware + 0.35, right), bottom + random.uniform(0.4, 1.1), colour, 160)
    board = canvas.part(0.25, top - 1.05, width - 0.25, top - 0.25)
    board[...] = (*style.accent, 200)
    _write_sign(board, style.sign, light=sum(style.accent) < 400)
    if random.random() < 0.45:
        for stripe, left in enumerate(np.arange(0.25, width - 0.25, 0.5)):
            colour = style.accent if stripe % 2 else (236, 232, 222)
            canvas.fill(left, top - 1.75, min(left + 0.5, width - 0.25), top - 1.1, colour)
        canvas.tint(0.25, top - 2.1, width - 0.25, top - 1.75, 0.55)


def _write_sign(board: np.ndarray, text: str, light: bool) -> None:
    """Write `text` across a board [rows, columns, 4], left to right as seen from the street."""
    mask = ImageFont.load_default().getmask(text, mode="L")
    columns, rows = mask.size
    letters = Image.fromarray(np.array(mask, np.uint8).reshape(rows, columns))
    letters = letters.crop(letters.getbbox())
    space_rows, space_columns = board.shape[0] - 4, board.shape[1] - 8
    if space_rows < 5 or space_columns < 12:
        return
    drawn_columns = min(space_columns, int(space_rows * 1.25 * letters.width / letters.height))
    letters = letters.resize((drawn_columns, space_rows), Image.Resampling.BICUBIC)
    ink = np.asarray(letters, np.float32)[::-1, :, None] / 255
    left = (board.shape[1] - drawn_columns) // 2
    target = board[2 : 2 + space_rows, left : left + drawn_columns, :3]
    target[...] = target + ink * (np.float32(245 if light else 25) - target)


def _draw_ground_floor(
    canvas: Canvas, style: FacadeStyle, first: float, bays: int, random: np.random.Generator
) -> None:
    """A plinth, a front door with a step, and windows or a garage beside it."""
    canvas.fill(0, 0, canvas.width, 0.6, _as_colour(0.6 * np.array(style.wall)))
    door = int(random.integers(bays))
    garage = int(random.integers(bays)) if random.random() < 0.35 else -1
    for bay in range(bays):
        centre = first + (bay + 0.5) * style.bay
        if bay == door:
            canvas.fill(centre - 0.8, 0, centre + 0.8, 2.85, style.trim)
            canvas.fill(centre - 0.6, 0.15, centre + 0.6, 2.3, style.accent)
            canvas.fill(centre - 0.6, 2.35, centre + 0.6, 2.7, (70, 80, 90), 230)
        elif bay == garage:
            canvas.fill(centre - 0.46 * style.bay, 0, centre + 0.46 * style.bay, 2.5, (150, 150, 148))
            for slat in np.arange(0.3, 2.5, 0.35):
                canvas.tint(centre - 0.46 * style.bay, slat, centre + 0.46 * style.bay, slat + 0.07, 0.7)
        else:
            canvas.fill(centre - 0.55 * style.window_width, 1.0, centre + 0.55 * style.window_width, 2.7, style.trim)
            canvas.fill(
                centre - 0.46 * style.window_width, 1.1, centre + 0.46 * style.window_width, 2.6,
                (62, 70, 82), int(random.integers(256)),
            )  # fmt: skip


def _draw_roof_edge(canvas: Canvas, style: FacadeStyle) -> None:
    top = canvas.height + 0.1
    canvas.fill(0, top - style.cornice, canvas.width, top, style.trim)
    canvas.tint(0, top - style.cornice - 0.3, canvas.width, top - style.cornice, 0.65)
    canvas.tint(0, top - 0.5 * style.cornice, canvas.width, top - 0.4 * style.cornice, 0.75)
    if style.pipe:
        canvas.fill(0.15, 0, 0.3, top - style.cornice, (96, 98, 100))
