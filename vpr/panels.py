"""Pictures of a test: queries with what was found for each, right in green, wrong in red."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from vpr.files import replacing
from vpr.images import read_photo
from vpr.places import PlacePhotos

SHOWN = 5  # hits beside each query
CELL = (200, 150)  # pixels
FRAME = 5  # pixels
CAPTION = 16  # pixels
RIGHT, WRONG, NEUTRAL, PAPER, INK = "#2e9e4f", "#d03b3b", "#4a4a4a", "#ffffff", "#202020"


def choose_queries(found: np.ndarray, positives: Sequence[np.ndarray], count: int) -> list[int]:
    """Queries to show: half of them missed by the first hit, half found, spread over the list."""
    first_right = np.array([hits[0] in wanted for hits, wanted in zip(found, positives, strict=True)])
    missed, right = np.flatnonzero(~first_right), np.flatnonzero(first_right)
    from_missed = min(len(missed), max(count // 2, count - len(right)))
    chosen = [_spread(missed, from_missed), _spread(right, min(len(right), count - from_missed))]
    return np.concatenate(chosen).tolist()


def draw_panels(
    path: Path, photos: PlacePhotos, found: np.ndarray, positives: Sequence[np.ndarray], count: int
) -> None:
    """Write a JPEG with a row for each of `count` queries: the query and its first hits.

    Under each hit stands how far from the query it was taken, in metres.
    """
    queries = choose_queries(found, positives, count)
    width, height = CELL[0] + 2 * FRAME, CELL[1] + 2 * FRAME + CAPTION
    sheet = Image.new("RGB", ((SHOWN + 1) * width, len(queries) * height), PAPER)
    places = photos.places
    for row, query in enumerate(queries):
        _paste(sheet, photos.query_files[query], (0, row * height), NEUTRAL, f"query {query + 1}")
        for column, hit in enumerate(found[query, :SHOWN], start=1):
            if hit < 0:
                continue
            metres = np.linalg.norm(places.database_positions[hit] - places.query_positions[query])
            colour = RIGHT if hit in positives[query] else WRONG
            _paste(sheet, photos.database_files[hit], (column * width, row * height), colour, f"{metres:,.0f} m away")
    with replacing(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=88)


def _paste(sheet: Image.Image, file: Path, corner: tuple[int, int], colour: str, caption: str) -> None:
    x, y = corner
    framed = ImageOps.expand(ImageOps.contain(read_photo(file), CELL), FRAME, colour)
    sheet.paste(framed, (x, y))
    ImageDraw.Draw(sheet).text((x + FRAME, y + framed.height + 2), caption, fill=INK)


def _spread(indices: np.ndarray, count: int) -> np.ndarray:
    """`count` of the indices, evenly spaced."""
    return indices[np.linspace(0, len(indices) - 1, count).astype(int)] if count else indices[:0]
