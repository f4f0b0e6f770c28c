"""A model on disk: the folder of a run, or one exported file. Which of the two a path is, is said here alone."""

from pathlib import Path
from typing import Any

from vpr.runs.run import FLAGS_FILE, read_flags

EXPORTED = ".onnx"


def is_exported(path: Path) -> bool:
    """Whether a path names an exported file; else it names a run."""
    return path.suffix == EXPORTED


def stored_flags(path: Path) -> dict[str, Any]:
    """The flags that a run was trained with, or those in an exported file.

    Raises:
        UserError: it is missing, damaged or of another program.
    """
    if not is_exported(path):
        return read_flags(path)
    from vpr.models.card import card_of

    return card_of(path)["flags"]


def name_of_flags(path: Path) -> str:
    """Where the flags of a run or an exported file stand, for messages."""
    return f"the card of {path}" if is_exported(path) else str(path / FLAGS_FILE)
