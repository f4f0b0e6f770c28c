"""Places without positions: films of one route (Nordland) and pairs of images (SPED, AmsterTime).

Which images match follows from numbers alone. A film's frames are numbered from 0 in the order of the numbers in their
names; query i is frame `every` * i. A pair is two files of one name, whatever their endings, in two folders.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.layouts.folders import images_in
from vpr.data.names import plain


@dataclass(frozen=True, kw_only=True)
class NumberedPlaces(Places):
    """Places of which only a number is known; positions are NaN."""

    database_numbers: np.ndarray  # int64 [N], of frames along the route, or of pairs
    query_numbers: np.ndarray  # int64 [M]
    tolerance: int  # a hit whose number differs by so many, at most, is right; 0 is the same alone
    unit: str  # what is numbered, frames or pairs

    def _near(self, radius: float, least: float = -1.0, own_time: bool = True) -> list[np.ndarray]:
        """For each query the sorted database indices within the tolerance: nothing tells an image from the query's own
        place but that it is in the database."""
        order = np.argsort(self.database_numbers, kind="stable")
        numbers = self.database_numbers[order]
        first = np.searchsorted(numbers, self.query_numbers - self.tolerance, "left")
        last = np.searchsorted(numbers, self.query_numbers + self.tolerance, "right")
        return [np.sort(order[start:stop]) for start, stop in zip(first, last, strict=True)]


def read_frames(root: Path, database: Path, queries: Path, name: str, tolerance: int, every: int) -> NumberedPlaces:
    """Two films in folders below `root`, of one route, of which the second has each `every`-th frame of the first.
    Raises a UserError: a folder has no images, counts do not fit, or numbers in names contradict the order."""
    files = [in_order(images_in(folder)) for folder in (database, queries)]
    numbers = [numbers_in_names(each) for each in files]
    for folder, film, each in zip((database, queries), files, numbers, strict=True):
        _say_shared_numbers(folder, film, each or [])
    count, wanted = len(files[1]), -(-len(files[0]) // every)
    if count != wanted:
        raise UserError(
            f"{queries} has {count} images and {database} {len(files[0])}, wanted {wanted} queries, one for "
            f"{'each' if every == 1 else f'every {every}th'} database image: get the images again"
        )
    frames, asked = numbers[0] and numbers[0][::every], numbers[1]
    # Numbers of queries may be those of the database's frames, or count the queries themselves from 0 or 1.
    if frames and asked and asked not in (frames, list(range(count)), list(range(1, count + 1))):
        first = next(n for n, (one, other) in enumerate(zip(frames, asked, strict=True)) if one != other)
        raise UserError(
            f"{files[1][first]} is frame {asked[first]} where the database has {frames[first]}, "
            f"{files[0][every * first].name}: the two folders hold different frames; take the same ones from both films"
        )
    return _numbered(root, name, files, (np.arange(len(files[0])), every * np.arange(count)), tolerance, "frames")


def read_pairs(root: Path, database: Path, queries: Path, name: str) -> NumberedPlaces:
    """Two folders with a file of the same name in each, but for the ending.
    Raises a UserError: a folder has no images, or images have no partner or two."""
    files = [in_order(images_in(folder)) for folder in (database, queries)]
    names = [[plain(file.stem) for file in each] for each in files]
    for folder, own, other in ((database, names[0], names[1]), (queries, names[1], names[0])):
        alone = sorted(set(own) - set(other))
        if alone or len(set(own)) < len(own):
            what = f"{len(alone)} images without a partner, first {alone[0]}" if alone else "two images of one name"
            raise UserError(
                f"{folder} has {what}: wanted pairs of the same name in {database} and {queries}; get the images again"
            )
    number_of = {stem: number for number, stem in enumerate(names[0])}
    numbers = np.arange(len(names[0])), np.array([number_of[stem] for stem in names[1]])
    return _numbered(root, name, files, numbers, 0, "pairs")


def numbers_in_names(files: Sequence[Path]) -> list[Decimal] | None:
    """The number that each frame has in its name; None where names have none.

    It is the eighth field of @-separated names, where VPR-datasets-downloader puts it. Else it is the last number
    before the ending that no two frames share, which width and height are not; with its decimals where the numbers
    before the point differ too, as those of metres and seconds do. Where each is shared, it is the last.
    """
    fields = [file.name.split("@") for file in files]
    if all(len(each) > 8 and each[7].isdecimal() for each in fields):
        return [Decimal(each[7]) for each in fields]
    whole = [re.findall(r"\d+", file.stem) for file in files]
    depth = min(map(len, whole), default=0)
    if not depth:
        return None
    with_decimals = [re.findall(r"\d+(?:\.\d+)?", file.stem)[-1] for file in files]
    candidates = [[numbers[-back] for numbers in whole] for back in range(1, depth + 1)]
    if len({text.partition(".")[0] for text in with_decimals}) > 1:
        candidates.insert(0, with_decimals)
    for texts in candidates:
        found = [Decimal(text) for text in texts]
        if len(set(found)) == len(found):
            return found
    return [Decimal(numbers[-1]) for numbers in whole]


def in_order(files: list[Path]) -> list[Path]:
    """Files by the numbers in their names (2 before 10) where all have one, else by name."""
    numbers = numbers_in_names(files)
    return sorted(files) if numbers is None else [file for _, file in sorted(zip(numbers, files, strict=True))]


def _say_shared_numbers(folder: Path, frames: list[Path], numbers: list[Decimal]) -> None:
    """Say so where the numbers in names do not tell the order of frames."""
    twice = next((n for n in range(1, len(numbers)) if numbers[n] == numbers[n - 1]), None)
    if twice is not None:
        one, other = (frames[n].relative_to(folder) for n in (twice - 1, twice))
        say(
            f"{folder}: no number tells its frames apart, {one} and {other} share theirs: those are taken in the order "
            "of their paths; number the images anew if it is another"
        )


def _numbered(
    root: Path, name: str, files: list[list[Path]], numbers: tuple[np.ndarray, np.ndarray], tolerance: int, unit: str
) -> NumberedPlaces:
    database, queries = ([str(file.relative_to(root)) for file in each] for each in files)
    return NumberedPlaces(
        name, database, queries, np.full((len(database), 2), np.nan), np.full((len(queries), 2), np.nan),
        positive_radius=tolerance, training_positive_radius=tolerance,
        database_numbers=numbers[0], query_numbers=numbers[1], tolerance=tolerance, unit=unit,
    )  # fmt: skip
