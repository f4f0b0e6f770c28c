"""How long the tables will take: each network's first hundred images, times the images of each command."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.tables.steps import Step, Steps

SAMPLE, DATABASE, QUERIES = 100, 3, 20  # images of the sample; those that are its val split
ENDINGS = {".jpg", ".jpeg", ".png"}
START, EXPORT = 8.0, 15.0  # seconds in which a command starts, and in which PyTorch writes a graph
EAST, NORTH, APART = 500_000, 4_000_000, 100  # metres: the sample's images stand nowhere, apart from each other


def images_under(root: Path) -> Iterator[Path]:
    """Image files of a folder in a fixed order."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(files) if Path(name).suffix.lower() in ENDINGS)


def make_sample(images: Sequence[Path], folder: Path) -> None:
    """Copy the first hundred images to places of their own: all as a training set, some as a val split to time."""
    if folder.is_dir():
        return
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    splits = {
        "train/database": images[:SAMPLE],
        "val/database": images[:DATABASE],
        "val/queries": images[DATABASE : DATABASE + QUERIES],
    }
    for split, files in splits.items():
        (part / split).mkdir(parents=True)
        for number, file in enumerate(files):
            name = f"@{EAST + APART * number}@{NORTH}@{number}{file.suffix.lower()}"
            shutil.copyfile(file, part / split / name)
    os.rename(part, folder)


def seconds_left(left: Sequence[Step], estimates: Steps, images: int) -> float:
    """Of the commands that are left, by what k-means of the sample took with each network."""
    each = {
        name.removeprefix("estimate_"): max(estimates.seconds(name) - START, 1.0) / min(images, SAMPLE)
        for name in estimates.steps
    }
    passes = sum(each[step.network] * step.images * step.cost for step in left)
    return passes + sum(START + EXPORT * step.name.startswith("export_") for step in left)
