"""Pictures of queries: each with its first hits beside it, right in green, wrong in red."""

import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from vpr.common.files import atomic_write
from vpr.data.images import read_image
from vpr.data.places import PlaceImages
from vpr.evaluation.outcomes import SHOWN, Outcome

CELL = (200, 150)  # pixels, width and height
FRAME = 5  # pixels
LINE = 16  # pixels of a line of text
LONGEST_STEM = 150  # bytes; file systems take 255, of which temporary names want some
RIGHT, WRONG, NEUTRAL, PAPER, INK = "#2e9e4f", "#d03b3b", "#4a4a4a", "#ffffff", "#202020"


def panel(images: PlaceImages, outcome: Outcome) -> Image.Image:
    """A query and its first hits in a row, with how far off each is: on the ground in metres, and as a descriptor."""
    query = images.query_files[outcome.query]
    captions = [f"query {outcome.query + 1}: {outcome.status}", query.name]
    if outcome.reranked:
        captions.insert(1, f"rank before re-ranking: {rank_text(outcome.rank_before)}")
    cells = [cell(query, NEUTRAL, *captions)]
    for hit in outcome.hits:
        word, colour = ("right", RIGHT) if hit.right else ("wrong", WRONG)
        away = "place unknown" if hit.metres is None else f"{hit.metres:,.0f} m away"
        captions = [f"{word}, {away}", f"descriptor distance {hit.distance:.3f}"]
        cells.append(cell(images.database_files[hit.image], colour, *captions))
    return in_a_row(cells, SHOWN + 1)


def rank_text(rank: int | None) -> str:
    """The rank of the first right hit, if there is one."""
    return "none" if rank is None else str(rank)


def cell(file: Path, colour: str, *captions: str) -> Image.Image:
    """A framed image over lines of text; the image fits into CELL."""
    return captioned(ImageOps.contain(read_image(file), CELL), colour, *captions)


def captioned(picture: Image.Image, colour: str, *captions: str) -> Image.Image:
    """A framed picture of at most CELL over lines of text, cut short where they are too long."""
    width, height = CELL[0] + 2 * FRAME, CELL[1] + 2 * FRAME
    sheet = Image.new("RGB", (width, height + LINE * len(captions) + FRAME), PAPER)
    framed = ImageOps.expand(picture, FRAME, colour)
    sheet.paste(framed, ((width - framed.width) // 2, (height - framed.height) // 2))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, caption in enumerate(captions):
        draw.text((FRAME, height + number * LINE), shortened(caption, font, CELL[0]), fill=INK, font=font)
    return sheet


def in_a_row(cells: list[Image.Image], room: int) -> Image.Image:
    """Cells of one size side by side, on a sheet with room for so many."""
    width, height = cells[0].size
    sheet = Image.new("RGB", (room * width, height), PAPER)
    for number, picture in enumerate(cells):
        sheet.paste(picture, (number * width, 0))
    return sheet


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    sheet, top = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER), 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet


def file_name(stem: str, ending: str) -> str:
    """A file name that is short enough for any file system, also with what a temporary file's name adds to it."""
    return os.fsencode(stem)[:LONGEST_STEM].decode(errors="ignore") + ending


def write_jpeg(path: Path, picture: Image.Image) -> None:
    """Write a picture, whole or not at all."""
    with atomic_write(path) as temporary:
        picture.save(temporary, format="JPEG", quality=85)


def shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text`, its middle left out if it is wider than `width` pixels."""
    shown, kept = text, len(text)
    while font.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[-(kept // 2) :]}"
    return shown
