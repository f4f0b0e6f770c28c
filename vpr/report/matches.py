"""Pictures of re-ranking: a query and a hit side by side, and a line for each match of local descriptors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vpr.data.images import read_image
from vpr.report.panels import FRAME, INK, LINE, NEUTRAL, PAPER
from vpr.retrieval.matching import Matches
from vpr.retrieval.rerank import MOST_MATCHES, Compared

PAIR = (400, 300)  # pixels of each of the two images at most
MOST_LINES = MOST_MATCHES  # more hide the images
WIDTH = 2  # pixels of a line
DOT = 3  # pixels, radius of its ends
DROP = 75  # pixels by which the hit stands lower: else lines between cells of one row of both maps lie on each other
FINE = 2  # all is drawn so many times larger and then reduced, for smooth edges
GAP = 16  # pixels between the images, and before the key
KEY = (392, 14)  # pixels, the text's width and the colour bar's height


def picture_of_matches(
    query: Path, hit: Path, compared: Compared, frame: str = NEUTRAL, lines: Sequence[str] = ()
) -> Image.Image:
    """A query, a hit in a frame of a colour, and their matches as lines, the heaviest on top.

    At the right `lines` of text, and what the lines' colours mean.
    """
    pair = joined_by_lines(_framed(query, NEUTRAL), _framed(hit, frame), compared.matches)
    count = len(compared.matches.weights)
    shown = f"the {count} heaviest matches" if count >= MOST_LINES else "1 match" if count == 1 else f"{count} matches"
    text = [*lines, f"local score {compared.local_score:.3f}", f"lines: {shown}, mutual nearest neighbours"]
    sheet = Image.new("RGB", (pair.width + GAP + KEY[0], pair.height + FRAME), PAPER)
    sheet.paste(pair, (0, 0))
    _draw_key(sheet, (pair.width + GAP, FRAME), text)
    return sheet


def joined_by_lines(query: Image.Image, hit: Image.Image, matches: Matches) -> Image.Image:
    """Two framed pictures, each FINE times too large -> side by side at their own size, and the matches as lines."""
    left, top = query.width + FINE * GAP, FINE * DROP
    sheet = Image.new("RGB", (left + hit.width, max(query.height, top + hit.height)), PAPER)
    sheet.paste(query, (0, 0))
    sheet.paste(hit, (left, top))
    draw = ImageDraw.Draw(sheet)
    starts = _pixels(matches.query_points, query)
    ends = _pixels(matches.hit_points, hit) + (left, top)
    colours = weight_colours(matches.weights)
    for start, end, colour in list(zip(starts, ends, colours, strict=True))[MOST_LINES - 1 :: -1]:
        line = [*start, *end]
        draw.line(line, fill=INK, width=FINE * WIDTH + 2)  # seen on bright walls and at night
        draw.line(line, fill=colour, width=FINE * WIDTH)
        for point in (start, end):
            draw.circle(tuple(point), FINE * DOT, fill=colour, outline=INK, width=FINE // 2)
    return sheet.reduce(FINE)


def weight_colours(weights: np.ndarray) -> list[tuple[int, int, int]]:
    """Weights from 0 to 1 -> colours from dark blue to yellow, ever lighter: also those who see few colours tell them.

    The scale is Matplotlib's plasma (Smith and van der Walt, 2015).
    """
    from matplotlib import colormaps

    return [tuple(colour[:3]) for colour in colormaps["plasma"](weights, bytes=True).tolist()]


def _framed(file: Path, colour: str) -> Image.Image:
    width, height = PAIR
    picture = ImageOps.contain(read_image(file).convert("RGB"), (FINE * width, FINE * height))
    return ImageOps.expand(picture, FINE * FRAME, colour)


def _pixels(points: np.ndarray, framed: Image.Image) -> np.ndarray:
    """Points (x, y) from 0 to 1 across an image [m, 2] -> pixels within its frame."""
    border = FINE * FRAME
    return border + points * (framed.width - 2 * border, framed.height - 2 * border)


def _draw_key(sheet: Image.Image, corner: tuple[int, int], lines: Sequence[str]) -> None:
    """Lines of text, and below them a bar of the colours."""
    (left, top), (width, height) = corner, KEY
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, line in enumerate(lines):
        draw.text((left, top + number * LINE), line, fill=INK, font=font)
    top += len(lines) * LINE + LINE // 2
    bar = width // 2
    for x, colour in enumerate(weight_colours(np.linspace(0, 1, bar))):
        draw.line([left + x, top, left + x, top + height], fill=colour)
    below = top + height
    draw.text((left, below + 2), "0", fill=INK, font=font)
    draw.text((left + bar, below + 2), "1", fill=INK, font=font, anchor="ra")
    draw.text((left, below + LINE), "weight of a match: likeness x agreement with the others", fill=INK, font=font)
