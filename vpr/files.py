"""Files that are either whole or not there."""

import contextlib
import json
import os
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
        kept = "; the file that was there is unchanged" if path.exists() else ""
        raise UserError(f"cannot write {path} ({error}){kept}: make room or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


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
