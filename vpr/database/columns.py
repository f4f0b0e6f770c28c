"""Further columns of a folder's table, which travel with its images: weather, season, camera, ..."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.data.names import plain
from vpr.data.positions.table import COLUMNS, TABLE, image_name
from vpr.database.records import Value

IMAGE = "image"
TIME = "time"  # the column that holds a spec's time stamps


def read_columns(root: Path, files: Sequence[Path]) -> dict[str, list[Value]]:
    """The columns of the folder's table that are neither name nor position, by name; for each file a value.

    What reads as a number is one; what is empty, or not in the table, is None.
    Raises a UserError: the table cannot be read.
    """
    path = root / TABLE
    if not path.is_file():
        return {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = [heading.strip().lower() for heading in reader.fieldnames or ()]
            rows = {image_name(row.get(IMAGE) or ""): row for row in reader}
            headings = [name for name in reader.fieldnames if name and name not in (IMAGE, *sum(COLUMNS, ()))]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({error}): mend it") from error
    empty: dict[str, str] = {}
    below = [plain(file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name) for file in files]
    found = [rows.get(name) or rows.get(plain(file.name)) or empty for name, file in zip(below, files, strict=True)]
    return {name: [value_of(row.get(name)) for row in found] for name in headings}


def columns_of(places: Places, root: Path, files: Sequence[Path]) -> dict[str, list[Value]]:
    """The columns of a database's images: those of the folder's table, and the time stamps of a spec."""
    columns = read_columns(root, files)
    if places.database_times is not None:
        columns[TIME] = [float(time) for time in places.database_times]
    return columns


def value_of(text: str | None) -> Value:
    """A cell of a table: a finite number, a text, or None where it is empty; 007 is a text, as of a name."""
    text = (text or "").strip()
    if not text:
        return None
    number = number_of(text)
    return text if number is None or re.match("[+-]?0[0-9]", text) else number


def number_of(text: str) -> float | None:
    """The finite number that a text is, as people write it; None of 1_000 and of other digits than 0 to 9."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and text.isascii() and "_" not in text else None
