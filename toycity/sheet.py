"""A contact sheet of the toy city: queries beside database images of the same places."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import loadmat

from toycity.viewpoints import HEADINGS
from toycity.writer import DESCRIPTION_FILE

VIEWS = 4
GAP = 6  # pixels between pictures
NEAR = 10.0  # metres


def contact_sheet(folder: Path, split: str, rows: int = 6, first: int = 0) -> Image.Image:
    """Rows of a query (framed, left) and four database views within 10 m looking most nearly the same way.

    Args:
        folder: a toy city; split: "train", "val" or "test".
        rows: how many queries; first: index of the first of them in the spec.
    """
    folder = Path(folder)
    spec = loadmat(folder / "datasets" / f"toy_{split}.mat", squeeze_me=True)["dbStruct"]
    names, query_names = (np.atleast_1d(spec[key].item()) for key in ("dbImageFns", "qImageFns"))
    positions, query_positions = spec["utmDb"].item().T, spec["utmQ"].item().T
    headings = json.loads((folder / DESCRIPTION_FILE).read_text())["query_headings"][split]
    queries = range(first, min(first + rows, len(query_names)))
    width, height = Image.open(folder / names[0]).size
    cell_width, cell_height = width + GAP, height + GAP
    sheet = Image.new("RGB", (GAP + (1 + VIEWS) * cell_width + GAP, GAP + len(queries) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, query in enumerate(queries):
        top = GAP + row * cell_height
        views = _views_like(names, positions, query_positions[query], headings[query])
        sheet.paste(Image.open(folder / "queries_real" / query_names[query]), (GAP, top))
        draw.rectangle((GAP - 3, top - 3, GAP + width + 2, top + height + 2), outline=(200, 40, 40), width=3)
        for column, view in enumerate(views, start=1):
            sheet.paste(Image.open(folder / names[view]), (2 * GAP + column * cell_width, top))
    return sheet


def _views_like(names: np.ndarray, positions: np.ndarray, position: np.ndarray, heading: float) -> list[int]:
    """Up to four database images within 10 m whose heading is nearest, nearer places first."""
    yaws = np.array([int(name.rsplit("yaw", 1)[1].removesuffix(".jpg")) for name in names])
    turn = np.abs((360.0 / HEADINGS * (yaws - 1) - heading + 180.0) % 360.0 - 180.0)
    distance = np.hypot(*(positions - position).T)
    order = np.lexsort((distance, turn.round(3)))
    return [int(view) for view in order if distance[view] <= NEAR][:VIEWS]
