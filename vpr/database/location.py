"""Where the index of a folder's images lies beside a model, and what an index of an earlier version there has."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import files_digest, open_hdf5, recipe_hash
from vpr.data.layouts.folders import folder_hash
from vpr.data.places import PlaceImages
from vpr.database.records import Records
from vpr.database.store.store import Store
from vpr.database.store.table import rows_of
from vpr.runs.descriptors_file import model_recipe
from vpr.runs.model import LoadedModel

CENTROIDS, INDEXES = "centroids", "indexes"  # folders


def index_file(loaded: LoadedModel, images: PlaceImages, root: Path, size: Sequence[int] | None = None) -> Path:
    """Where the index of a split's database by a model lies or shall lie: beside the model, or in indexes/.

    Image folders with the same last name get a file each: the second one's name has a hash of the whole path. So do
    models: the second one's name has a hash of what makes its descriptors. A file of the same images in another folder
    has travelled with them and is taken. One with images of other folders, or that was edited, is kept, whatever model
    made it: `--mode=index` describes its images anew.
    `root`: the images' folder. `size`: of images, height and width in pixels; None: their own.
    Raises a UserError: the file that is there is damaged or no index, so that it cannot be told whose it is.
    """
    path, recipe = _beside(loaded, images), model_recipe(loaded.model, size)
    meta = _meta(path, loaded)
    if meta is not None and not _is_of(meta["note"], folder_note(images, root)):
        path = path.with_stem(f"{path.stem}_{folder_hash(root)}")
        meta = _meta(path, loaded)
    if meta is None or meta["provenance"] == recipe or meta.get("edited") or _has_others(path, loaded):
        return path
    return path.with_stem(f"{path.stem}_{recipe_hash(recipe)}")


def file_to_write(loaded: LoadedModel, images: PlaceImages, root: Path, size: Sequence[int] | None = None) -> Path:
    """As `index_file`, to write an index; a damaged one will be moved out of the way."""
    try:
        return index_file(loaded, images, root, size)
    except UserError:
        return _beside(loaded, images)


def _meta(path: Path, loaded: LoadedModel) -> Mapping[str, Any] | None:
    """What is said of an index as a whole; None where there is none."""
    with contextlib.closing(Store(path, loaded.model.dim)) as store:
        state = store.state()
    return state.meta if state else None


def _has_others(path: Path, loaded: LoadedModel) -> bool:
    """Whether an index has images of other folders than its own."""
    with contextlib.closing(Store(path, loaded.model.dim)) as store:
        state = store.state()
        rows = store.columns(state.generation, ["folder"], 0, state.rows) if state else []
        return any(folder for (folder,) in rows)


def _beside(loaded: LoadedModel, images: PlaceImages) -> Path:
    """The off-the-shelf model lies nowhere: its index is beside the folder of clusters, unless an earlier version made
    one in there."""
    there = loaded.folder / f"database_{images.places.name}.sqlite"
    is_kept = there.exists() or there.with_suffix(".h5").exists()
    usual = loaded.results is None and loaded.folder.name == CENTROIDS
    return loaded.folder.with_name(INDEXES) / there.name if usual and not is_kept else there


def store_path(path: Path) -> Path:
    """Where the store of an index lies that may be named as earlier versions' files were, or in any other way."""
    return beside(path, "sqlite")


def beside(path: Path, ending: str) -> Path:
    """The file of another kind that lies beside an index, under its name."""
    return path.with_name(f"{path.name.removesuffix('.h5').removesuffix('.sqlite')}.{ending}")


def folder_note(images: PlaceImages, root: Path) -> dict[str, str]:
    """Of which folder an index is. The folder's path is no part of it: an index may travel with its images."""
    return {
        "photos": images.places.name,
        "photos_hash": images.places.fingerprint(),
        "files_hash": files_digest(images.places.database_names, images.database_files),
        "folder_hash": folder_hash(root),
    }


def _is_of(found: Mapping[str, Any], note: Mapping[str, str]) -> bool:
    """Whether an index is of a folder, or has travelled with its images."""
    return found.get("folder_hash") in (None, note["folder_hash"]) or found.get("files_hash") == note["files_hash"]


def images_of_earlier_version(store: Path, note: Mapping[str, str]) -> tuple[list[tuple], str | None]:
    """RECORD of the images of other folders that an index of an earlier version has; and its UTM zone.
    `store`: where a store shall lie that takes its place. `note`: of which folder that is, see `folder_note`.
    Raises a UserError: it is damaged, or has changes in a journal, so that these images cannot be told."""
    path = store.with_suffix(".h5")
    own = path.with_stem(f"{path.stem}_{note.get('folder_hash', '')}")
    path = own if own.is_file() else path
    journal = path.with_suffix(".journal")
    if journal.is_file():
        raise UserError(
            f"{journal} has changes of an index of an earlier version: let that version's --mode=index merge them; or "
            f"where no images came by --add or from clients, delete it and {path.name}"
        )
    if not path.is_file():
        return [], None
    with open_hdf5(path, "an index", "delete it, and add images of other folders again") as file:
        if not _is_of(dict(file.attrs), note):
            return [], None
        records = _earlier_records(file) if "names" in file else None
    others = [row for row, folder in enumerate(records.folders) if folder] if records else []
    also = f", {len(others)} of other folders among them" if others else ""
    say(f"{path} was written by an earlier version: its images are described again{also}; that file may be deleted")
    return rows_of(records.only(others)) if records else [], records.zone if records else None


def _earlier_records(file: Any) -> Records:
    texts = {name: json.loads(bytes(file[name][:])) for name in ("names", "folders", "columns")}
    numbers = {name: file[name][:] for name in ("positions", "sizes", "modified", "hashes")}
    return Records(**texts, **numbers, zone=str(file.attrs["zone"]) or None)
