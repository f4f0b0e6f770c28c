"""The flags that a run or an exported file stores, checked as typed ones are."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpr.cli.flags import AUTO_PRECISION, FLAGS, Flag
from vpr.common.errors import UserError
from vpr.runs.stored import name_of_flags, stored_flags


def checked_flags(path: Path) -> dict[str, Any]:
    """The flags of a run or an exported file.

    Raises:
        UserError: it is missing or damaged, or a flag is nonsense.
    """
    flags = stored_flags(path)
    check_flags(flags, name_of_flags(path))
    return flags


def check_flags(flags: Mapping[str, Any], where: str) -> None:
    """Check stored flags as typed ones are checked: users may edit them, but not into nonsense.

    Raises:
        UserError: a flag is unknown, or its value is of another kind or not among its choices.
    """
    known = {flag.name.replace("-", "_"): flag for group in FLAGS.values() for flag in group}
    known[AUTO_PRECISION] = known["precision"]
    for name, value in flags.items():
        if name not in known:
            raise UserError(f"{where} has {name[:40]!r}, which is no flag of this program: restore or remove it")
        if not _may_have(known[name], value):
            found = repr(value)
            raise UserError(
                f"{where} has {name}={found[:60]}, which --{known[name].name} cannot be: restore it (see --help)"
            )


def _may_have(flag: Flag, value: Any) -> bool:
    reading = flag.reading
    if value is None:  # earlier versions stored none for --cachePath
        return flag.default is None or flag.name == "cachePath"
    if reading.get("action") == "store_true":
        return isinstance(value, bool)
    if reading.get("nargs") in ("+", 2):
        right_length = isinstance(value, list) and len(value) > 0 and reading["nargs"] in ("+", len(value))
        return right_length and all(_may_be_one(reading, item) for item in value)
    return _may_be_one(reading, value)


def _may_be_one(reading: Mapping[str, Any], value: Any) -> bool:
    """Whether `value` is what `reading` makes of some word."""
    if "choices" in reading and value not in reading["choices"]:
        return False
    if "type" not in reading:
        return isinstance(value, str) and value.isprintable()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and value >= 2**63):
        return False
    try:
        return reading["type"](str(value)) == value
    except (argparse.ArgumentTypeError, ValueError):
        return False
