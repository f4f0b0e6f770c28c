"""The data sets that have no .mat files: from the folders of a split to its places."""

from pathlib import Path

from pittsburgh import Places
from vpr.common.errors import UserError
from vpr.data.catalogue import CITIES, DATASETS, FRAMES, PAIRS, Role
from vpr.data.layouts.folders import read_roles
from vpr.data.layouts.msls import base_of_cities, read_msls
from vpr.data.layouts.numbered import read_frames, read_pairs


def read_layout(root: Path, dataset: str, split: str, skip_broken: bool = False) -> tuple[Places, Path, str]:
    """The places of a split of a data set without .mat files.
    `skip_broken`: of images by position, leave out what `find_images` leaves out. Gives the places, the folder to which
    names are relative, and which images are looked up in which.
    Raises a UserError: there is no such split, its folders are missing, or what is in them does not fit together."""
    entry, splits = DATASETS[dataset], DATASETS[dataset].splits
    if split not in splits:
        raise UserError(f"--dataset={dataset} has no split {split}: choose from {', '.join(splits)} with --split")
    if entry.layout == CITIES:
        places, base = read_msls(root, split, splits[split].cities, splits[split].official)
        return places, base, "queries in the joint database of the split's cities, right only in the query's own"
    roles = splits[split].roles
    role = next((role for role in roles if _is_there(root, role)), None)
    if role is None:
        wanted = ", nor ".join(f"{each.database} with {each.queries}" for each in roles)
        raise UserError(
            f"{root} has no {wanted}: put the images of --dataset={dataset} there as docs/datasets.md says, or name "
            "the folder that holds them with --root"
        )
    folders, name = (root / role.database, root / role.queries), f"{dataset}_{split}"
    if entry.layout == FRAMES:
        return read_frames(root, *folders, name, entry.tolerance, entry.every), root, role.direction
    if entry.layout == PAIRS:
        return read_pairs(root, *folders, name), root, role.direction
    return read_roles(root, *folders, name, skip_broken), root, role.direction


def has_layout(root: Path, dataset: str, split: str) -> bool:
    """Whether the folders of a split are there."""
    chosen = DATASETS[dataset].splits.get(split)
    if chosen is None:
        return False
    if DATASETS[dataset].layout == CITIES:
        return all((base_of_cities(root, split) / city).is_dir() for city in chosen.cities)
    return any(_is_there(root, role) for role in chosen.roles)


def _is_there(root: Path, role: Role) -> bool:
    return (root / role.database).is_dir() and (root / role.queries).is_dir()
