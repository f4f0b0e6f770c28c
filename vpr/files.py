"""Files that are either whole or not there."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vpr.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` and rename it onto `path` when the block ends well.

    A reader never sees half a file, and what stood at `path` survives a failed write.

    Raises:
        UserError: the block could not write (disk full, no permission, ...).
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    # torch.save and h5py report a full disk as RuntimeError, everything else as OSError.
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else "writing broke off"  # their texts help nobody
        kept = "; the file that was there is unchanged" if path.exists() else ""
        raise UserError(
            f"cannot write {path} ({reason}; {_free_megabytes(path)} MB are free){kept}: "
            "make room or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _free_megabytes(path: Path) -> str:
    """Room on the disk of `path`: libraries often do not say that it is full."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:.0f}"


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        UserError: missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
