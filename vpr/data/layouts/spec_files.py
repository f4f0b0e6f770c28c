"""Where the images of a spec lie: the first of a data set's folders that has most of them."""

import os
from collections import defaultdict
from pathlib import Path

from pittsburgh import Places
from vpr.common.progress import say
from vpr.data.catalogue import Dataset
from vpr.data.names import on_disk, plain


def queries_are_database_images(places: Places) -> bool:
    """Whether each query is an image of the database, told from it by its time stamp alone: Tokyo Time Machine."""
    if places.query_times is None:
        return False
    database = zip(places.database_names, map(tuple, places.database_positions.tolist()), strict=True)
    queries = zip(places.query_names, map(tuple, places.query_positions.tolist()), strict=True)
    return set(queries) <= set(database)


def find_files(root: Path, places: Places, dataset: Dataset) -> tuple[list[Path], list[Path]]:
    """The files of a spec's database images and queries in those of the data set's folders that have most of them.

    Other images of a set bear the names of its queries (all of Pittsburgh's do), so queries are only looked for
    among the database where they are database images. Files that are in no folder are named in the first.
    """
    folders = [root / folder for folder in dataset.database_folders]
    base, ending = _fullest(folders, places.database_names, (None, dataset.database_ending))
    database = [on_disk(base, _with_ending(name, ending)) for name in places.database_names]
    if ending:
        say(f"{places.name}: the database images' files end with {ending}, unlike in the spec")
    folders = [root / folder for folder in dataset.query_folders]
    if queries_are_database_images(places):
        query_base, ending = _fullest([base, *folders], places.query_names, (ending, None))
    else:
        query_base, ending = _fullest(folders, places.query_names, (None,))
    return database, [on_disk(query_base, _with_ending(name, ending)) for name in places.query_names]


def _fullest(bases: list[Path], names: list[str], endings: tuple[str | None, ...]) -> tuple[Path, str | None]:
    """Which of some folders, and with which ending of the names, has most of the files; the first of equals."""

    def present(choice: tuple[Path, str | None]) -> int:
        # One listing per folder instead of one look-up per file: 250,000 images on a network disk.
        base, ending = choice
        wanted = defaultdict(set)
        for name in names if base.is_dir() else ():
            folder, _, file = _with_ending(name, ending).rpartition("/")
            wanted[folder].add(file)
        return sum(_count_of(files, listing(on_disk(base, folder))) for folder, files in wanted.items())

    return max(((base, ending) for base in bases for ending in dict.fromkeys(endings)), key=present)


def _count_of(wanted: set[str], there: set[str]) -> int:
    """How many names there are, also in another of Unicode's forms."""
    return len(wanted) if wanted <= there else len(set(map(plain, wanted)) & set(map(plain, there)))


def _with_ending(name: str, ending: str | None) -> str:
    stem, dot, usual = name.rpartition(".")
    return name if ending is None else (stem if dot and "/" not in usual else name) + ending


def listing(folder: Path) -> set[str]:
    """The names in a folder, without links to what is not there; none where the folder is not there."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry.path)}
    except (OSError, ValueError):  # it is not there, or a damaged spec's names cannot be names of folders
        return set()
