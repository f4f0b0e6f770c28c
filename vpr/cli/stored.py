"""The flags that a run or an exported file stores, checked as typed ones are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpr.cli.flags import AUTO_PRECISION, all_flags
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
    known = all_flags()
    known[AUTO_PRECISION] = known["precision"]
    for name, value in flags.items():
        if name not in known:
            raise UserError(f"{where} has {name[:40]!r}, which is no flag of this program: restore or remove it")
        flag = known[name]
        unprintable = flag.type is None and isinstance(value, str) and not value.isprintable()
        as_earlier_versions = name == "cachePath" and value is None
        if unprintable or not (flag.may_be(value) or as_earlier_versions):
            found = repr(value)[:60]
            raise UserError(f"{where} has {name}={found}, which --{flag.name} cannot be: restore it (see --help)")
