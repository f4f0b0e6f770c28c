"""The pictures of these pages, drawn from the toy city and the newest run on it: `make docs`.

    python -m docs.pictures

Tests that run, then writes beside this file

    toy_city.jpg      queries, each with database images of the same place
    views.jpg         database images, each with its views for training
    toy_panel.jpg     a query and its first hits, some of which are right and some wrong
    toy_recall.png    Recall@N against N
    toy_map.png       where queries were found and missed
    page_wide.png     the server's page in a wide window, an image dropped on it
    page_narrow.png   the same on a phone, dark
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from docs.page_pictures import View, page_pictures
from toycity import contact_sheet
from vpr.cli.app import main as program
from vpr.cli.options import parse_options
from vpr.cli.specs import places_spec
from vpr.common.errors import UserError
from vpr.data.places import load_places
from vpr.runs.run import read_flags
from vpr.training.views.choices import VIEWS, styled

DOCS = Path(__file__).resolve().parent
ZONE = "17N"  # in which the toy city is taken to lie, so that its places have latitude and longitude
VIEWED = (88, 198, 319, 484)  # database images of the test split whose views are shown: houses, trees, a crossing
COLOURS = 64  # of a plot's palette, which takes less room than full colour


def main() -> int:
    """Draw all pictures; returns the exit code."""
    try:
        return draw(newest_toy_run(Path("runs")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def draw(run: Path) -> int:
    """Test a run and draw all pictures; returns the exit code.

    Raises:
        UserError: no query has both right and wrong hits.
    """
    test = ["--mode=test", f"--resume={run}", "--split=test"]
    code = program([*test, "--panels=all"])
    if code != 0:
        return code
    drawn = max(run.glob("test_test_*"), key=lambda folder: folder.name)
    contact_sheet(Path(parse_options(test).root), "test").save(DOCS / "toy_city.jpg", quality=85)
    views_sheet(load_places(places_spec(parse_options(test)), "test").database_files).save(
        DOCS / "views.jpg", quality=80
    )
    (DOCS / "toy_panel.jpg").write_bytes(mixed_panel(drawn / "panels").read_bytes())
    for plot in ("recall", "map"):
        picture = Image.open(drawn / f"{plot}.png").convert("RGB").quantize(COLOURS)
        picture.save(DOCS / f"toy_{plot}.png", optimize=True)
    views = {DOCS / "page_wide.png": View(1280, 1120), DOCS / "page_narrow.png": View(390, 1120, dark=True)}
    with tempfile.TemporaryDirectory() as folder:
        served = [f"--resume={run}", "--split=test", f"--utmZone={ZONE}", f"--indexFile={folder}/database.h5"]
        # As `make serve` shows it: with probabilities, and lines that are compared with those of other places.
        program(["test", f"--resume={run}", "--split=val", "--rerank=50", "--calibrate", "--panels=0"])
        program(["index", *served, "--localDescriptors"])
        page_pictures(served, found_query(parse_options(test), drawn / "panels"), views)
    names = [
        "toy_city.jpg",
        "views.jpg",
        "toy_panel.jpg",
        "toy_recall.png",
        "toy_map.png",
        *(path.name for path in views),
    ]
    print(f"wrote {', '.join(names)} to {DOCS}")
    return 0


def views_sheet(files: list[Path]) -> Image.Image:
    """A row for each view, its name on the left, and first one of images as they are; a column for each of VIEWED."""
    names, view, gap, label = ["as it is", *VIEWS], styled(list(VIEWS), seed=0), 4, 96
    images = [np.array(Image.open(files[index])) for index in VIEWED]
    height, width = images[0].shape[:2]
    sheet = Image.new("RGB", (label + len(images) * (width + gap), len(names) * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for at, name in enumerate(names):
        top = at * (height + gap)
        draw.text((gap, top + height // 2), name, "black", ImageFont.load_default(13), anchor="lm")
        for number, image in enumerate(images):
            sheet.paste(Image.fromarray(view(image, number, at)), (label + number * (width + gap), top))
    return sheet


def newest_toy_run(runs: Path) -> Path:
    """The newest training on the toy city.

    Raises:
        UserError: there is none.
    """
    for flags in sorted(runs.glob("[0-9]*/flags.json"), reverse=True):
        if read_flags(flags.parent)["dataset"] == "toy":
            return flags.parent
    raise UserError(f"no run on the toy city under {runs.resolve()}: make demo first")


def found_query(options: argparse.Namespace, panels: Path) -> Path:
    """The file of a query whose first hit is right and near.

    Raises:
        UserError: there is none.
    """
    found = sorted(panels.glob("*_found_at_1.jpg"))
    if not found:
        raise UserError(f"no query in {panels} has a right first hit: train as make demo does")
    number = int(found[-1].name.split("_")[2])  # from 1; the last panel's hit is the nearest
    return load_places(places_spec(options), "test").query_files[number - 1]


def mixed_panel(panels: Path) -> Path:
    """A panel whose first hit is wrong, and near, and whose second (or else third, fourth, fifth) is right.

    Raises:
        UserError: there is none.
    """
    for rank in range(2, 6):
        found = sorted(panels.glob(f"*_found_at_rank_{rank}.jpg"))
        if found:
            return found[-1]  # numbered by the distance of the wrong first hit, the farthest first
    raise UserError(f"no query in {panels} has a right hit behind a wrong one: train as make demo does")


if __name__ == "__main__":
    sys.exit(main())
