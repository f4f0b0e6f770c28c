"""Columns of a data set's table, as text."""

import csv
from pathlib import Path

from vpr.common.errors import UserError


def read_columns(path: Path, columns: tuple[str, ...], remedy: str) -> list[dict[str, str]]:
    """Some columns of a table. Raises a UserError, which ends with the remedy: it cannot be read, or lacks some."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
                raise UserError(f"{path} has no column {', '.join(missing)} (it has {reader.fieldnames}): {remedy}")
            rows = [{column: row[column] for column in columns} for row in reader]
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table ({error}): {remedy}") from error
    short = next((number for number, row in enumerate(rows, start=2) if None in row.values()), None)
    if short:
        raise UserError(f"{path}: line {short} is too short: {remedy}")
    return rows
