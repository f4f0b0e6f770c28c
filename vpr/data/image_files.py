"""Which files of a folder are images: by their ending, and those without one by their first bytes.

What is left out is counted and named in one line. What looks like an image and cannot be one, such as a link to a file
that is not there, is refused, or with --skipBroken left out and named likewise.
"""

import functools
import itertools
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.images import FORMATS, is_image
from vpr.data.names import is_text, shown

ENDINGS = frozenset(itertools.chain.from_iterable(FORMATS.values()))
USUAL = ".jpg, .png, .webp, .heic, .tif, .bmp, ...: docs/own-images.md"
ENDING = re.compile(r"\.[A-Za-z]\w{0,15}")  # `.25@` of a name with positions, `.0001` of a frame are none
# Left out without a word, as hidden files are.
NOT_SAID = {"thumbs.db", "desktop.ini", "positions.csv", "lost+found", "system volume information", "$recycle.bin"}
MISSING, DENIED, NOT_TEXT = "links to files that are not there", "not readable", "of names that are not UTF-8"
REMEDIES = {
    MISSING: "fetch them (git annex get, dvc pull) or mount their disk",
    DENIED: "get the right to read them (chmod)",
    NOT_TEXT: "rename them (convmv -f latin1 -t utf8)",
}
LOOKED_INTO = 20  # endings that are no image's, of each of which one file is looked into


@dataclass
class Found:
    """What a folder has."""

    images: list[Path] = field(default_factory=list)  # sorted by path
    empty: list[Path] = field(default_factory=list)  # those of no bytes, which whoever decodes them will refuse
    left_out: list[Path] = field(default_factory=list)  # files that are no images by their ending
    unusable: list[tuple[Path, str]] = field(default_factory=list)  # files and folders that cannot be taken, and why


def find_images(folder: Path, skip_broken: bool = False) -> list[Path]:
    """All images under a folder and its linked sub-folders, sorted by path; says what is left out.

    Raises a UserError: there are links to files that are not there, unreadable files, or names that are not UTF-8; with
    `skip_broken` they are left out instead.
    """
    found, under = look_through(folder), f"images under {shown(folder)}"
    if found.left_out:
        _say_once(_left_out_line(folder, found.left_out))
    if found.empty:
        count = f"{len(found.empty):,} of the {len(found.images):,} {under}"
        _say_once(f"{count} are empty (0 bytes), first {shown(min(found.empty))}")
    if found.unusable:
        reasons, first = Counter(reason for _, reason in found.unusable), min(file for file, _ in found.unusable)
        line = (
            f"{len(found.unusable):,} of the {len(found.unusable) + len(found.images):,} {under} cannot be taken "
            f"({', '.join(f'{count:,} {reason}' for reason, count in reasons.items())}), first {shown(first)}"
            f"{f', a link to {shown(os.readlink(first))}' if first.is_symlink() else ''}"
        )
        if not skip_broken:
            remedies = "; ".join(REMEDIES[reason] for reason in reasons)
            raise UserError(f"{line}: {remedies}; or leave them out by --skipBroken")
        _say_once(f"{line}: left out")
    return found.images


def holds_an_image(folder: Path) -> bool:
    """Whether there is an image under a folder, by its ending; stops at the first."""
    files = (name for _, _, names in os.walk(folder) for name in names if name[0] != ".")
    return any(ending_of(Path(name)) in ENDINGS for name in files)


def look_through(folder: Path) -> Found:
    """What there is under a folder and its linked sub-folders.

    Hidden files are passed over: macOS puts a `._image.jpg`, which is no image, beside each image on other disks. A
    folder that several paths lead to is looked into once, by its own path if it has one; links upwards lead nowhere.
    """
    top = os.path.join(os.path.realpath(folder), "")
    found, seen, starts = Found(), set(), [str(folder)]

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) and os.path.basename(error.filename).lower() not in NOT_SAID:
            found.unusable.append((Path(error.filename), DENIED))

    while starts:
        links = []
        walks = (os.walk(start, onerror=unreadable) for start in starts)
        for path, folders, files in itertools.chain.from_iterable(walks):
            real = os.path.realpath(path)
            folders[:] = [name for name in folders if name[0] != "." and real not in seen]
            links += [link for link in (os.path.join(path, name) for name in folders) if os.path.islink(link)]
            if real not in seen:
                for name in files:
                    _sort_in(found, Path(path, name))
            seen.add(real)
        starts = sorted(link for link in links if not top.startswith(os.path.join(os.path.realpath(link), "")))
    found.images.sort()
    return found


def _sort_in(found: Found, file: Path) -> None:
    """Put a file where it belongs."""
    if file.name[0] == "." or file.name.lower() in NOT_SAID:
        return
    ending = ending_of(file)
    if ending and ending not in ENDINGS:
        found.left_out.append(file)
        return
    reason, size = _looked_at(file)
    if size is None or (not ending and not (reason in (None, NOT_TEXT) and is_image(file))):
        found.left_out.append(file)
    elif reason:
        found.unusable.append((file, reason))
    else:
        found.images.append(file)
        if not size:
            found.empty.append(file)


def _looked_at(file: Path) -> tuple[str | None, int | None]:
    """Why a file cannot be taken, None where it can; and its bytes, None of what is no file, such as a pipe."""
    try:
        status = os.stat(file)
    except PermissionError:
        return DENIED, 0
    except OSError:  # also a link to itself
        return MISSING, 0
    if not stat.S_ISREG(status.st_mode):
        return None, None
    if not os.access(file, os.R_OK):
        return DENIED, 0
    return None if is_text(str(file)) else NOT_TEXT, status.st_size


def ending_of(file: Path) -> str:
    """The ending of a file's name in small letters; empty where there is none."""
    return file.suffix.lower() if ENDING.fullmatch(file.suffix) else ""


def _left_out_line(folder: Path, files: list[Path]) -> str:
    dangling = "links to what is not there"
    kinds = [
        dangling if file.is_symlink() and not file.exists() else ending_of(file) or "without an ending"
        for file in sorted(files)
    ]
    firsts = dict(zip(reversed(kinds), sorted(files, reverse=True), strict=True))
    counts, parts = Counter(kinds), []
    for kind, count in counts.most_common(LOOKED_INTO):
        image = kind.startswith(".") and is_image(firsts[kind])
        parts.append(f"{count:,} {kind}{', images by their content: rename them to have them read' * image}")
    more = f", and {len(counts) - LOOKED_INTO} more endings" if len(counts) > LOOKED_INTO else ""
    counted = f"{'; '.join(parts)}{more}"
    return f"{shown(folder)}: left out {len(files):,} files, no images ({counted}), first {shown(min(files))}"


@functools.cache
def _say_once(line: str) -> None:
    say(line)
