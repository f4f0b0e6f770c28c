"""Names of images that come from elsewhere: the same but for Unicode's form, slashes, or blanks around them.

macOS and zip files write `é` as `e` and an accent (NFD) where others have one character (NFC); UAX 15.
"""

import functools
import os
import unicodedata
from pathlib import Path, PurePosixPath


def plain(name: str) -> str:
    """What names of one image have in common: Unicode's composed form, forward slashes, no blanks around it."""
    name = "/".join(part.strip() for part in name.replace("\\", "/").split("/"))
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def on_disk(base: Path, name: str) -> Path:
    """Where the image of a name lies below a folder, as the disk spells it; `base / name` where there is none."""
    path = base / name
    if name.isascii() or os.path.lexists(path):
        return path
    found = base
    for part in PurePosixPath(name).parts:
        found /= part if part.isascii() else _spelt(found).get(plain(part), part)
    return found


def _spelt(folder: Path) -> dict[str, str]:
    """By their plain form, the names in a folder; none where it is not there."""
    try:
        return _listed(str(folder), os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return {}


@functools.lru_cache(maxsize=256)
def _listed(folder: str, _modified: int) -> dict[str, str]:
    return {plain(name): name for name in os.listdir(folder)}


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; where its bytes are of another encoding, Python reads surrogates."""
    return as_text(name) == name


def as_text(name: str) -> str:
    """A name that can be written as UTF-8: with a question mark for each byte that is none."""
    return name.encode("utf-8", "replace").decode("utf-8")


def shown(name: object) -> str:
    """A name on one line, whatever its characters are: what cannot be printed stands as an escape."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )
