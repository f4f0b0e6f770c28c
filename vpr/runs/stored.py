"""A model on disk: the folder of a run, or one exported file. Which of the two a path is, is said here alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpr.runs.run import FLAGS_FILE, read_flags

if TYPE_CHECKING:  # the command line reads this file
    from vpr.runs.model import LoadedModel, WhiteningChoice

EXPORTED = ".onnx"


def is_exported(path: Path) -> bool:
    """Whether a path names an exported file; else it names a run."""
    return path.suffix == EXPORTED


def stored_flags(path: Path) -> dict[str, Any]:
    """The flags stored with a run or an exported file; UserError if it is missing, damaged or of another program."""
    if not is_exported(path):
        return read_flags(path)
    from vpr.models.card import card_of

    return card_of(path)["flags"]


def name_of_flags(path: Path) -> str:
    """Where the flags of a run or an exported file stand, for messages."""
    return f"the card of {path}" if is_exported(path) else str(path / FLAGS_FILE)


def load_model(
    path: Path,
    which: str = "best",
    whitened: bool = True,
    choice: "WhiteningChoice | None" = None,
    checkpoints: str | None = None,
) -> "LoadedModel":
    """The model of a run, or of an exported file.
    Raises a UserError: run, checkpoint, file or whitening are missing, damaged or of something else.

    Args:
        path: a run's folder, or an exported file.
        which: checkpoint of a run, best or latest.
        whitened: with its whitening, if it has one.
        choice: of the whitening; None takes that for images as the run was trained on.
        checkpoints: folder of the checkpoints in a run; None is the run's own.
    """
    if is_exported(path):
        from vpr.runs.model import load_exported

        return load_exported(path, whitened)
    from vpr.runs.pytorch_model import load_run

    return load_run(path, which, whitened, choice, checkpoints)
