"""Indexes that FAISS made of a store's rows: files that can be thrown away, and are made again of the store.

The name of one, NAME.G.HASH.faiss, says of which generation, rows and factory it is. It is found whole before FAISS
reads it, which trusts what it is given.
"""

import contextlib
from pathlib import Path

import faiss
import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import open_hdf5, recipe_hash, write_hdf5
from vpr.database.engine import WantedIndex
from vpr.database.store.store import REMEDY, State, Store
from vpr.search.approximate import NPROBE, build_index
from vpr.search.on_disk import build_on_disk, index_files, open_on_disk


def built_index(store: Store, state: State, wanted: WantedIndex, rows: np.ndarray) -> faiss.Index:
    """Train an index on descriptors [N, dim], fill it, and keep it.
    Raises a UserError: FAISS cannot do it, or it cannot be written."""
    assert wanted.factory
    path = _stem(store, state, wanted, len(rows))
    if wanted.on_disk:
        build_on_disk(path, wanted.factory, rows, wanted.seed, wanted.nprobe or NPROBE)
        return open_on_disk(path, wanted.nprobe)
    built = build_index(wanted.factory, rows, wanted.seed, wanted.nprobe or NPROBE)
    write_hdf5(path.with_name(f"{path.name}.faiss"), {"faiss": faiss.serialize_index(built)}, {})
    return built


def opened_index(store: Store, state: State, wanted: WantedIndex) -> faiss.Index | None:
    """The index of a store's rows; None where there is none, or only one that is damaged, which a line says."""
    rows = int(state.meta.get("index_rows", 0))
    path = _stem(store, state, wanted, rows)
    file = path.with_name(f"{path.name}.faiss")
    if not rows or not file.is_file():
        return None
    try:
        if wanted.on_disk:
            index = open_on_disk(path)
        else:
            with open_hdf5(file, "an index of FAISS", REMEDY) as content:
                index = faiss.deserialize_index(content["faiss"][:])
        if (index.ntotal, index.d) != (rows, store.dim):
            raise UserError(f"{file} has {index.ntotal} descriptors, {index.d}-D, wanted {rows}, {store.dim}-D")
    except UserError as error:
        if file.is_file():  # else a writer has put another in its place
            say(f"{error}")
        return None
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and wanted.nprobe is not None:
        lists.nprobe = wanted.nprobe
    return index


def remove_other_indexes(store: Store, state: State | None) -> None:
    """Remove the files of all indexes but that of a state; None: all."""
    kept: tuple[Path, ...] = ()
    if state is not None:
        wanted = WantedIndex(state.meta["index"], seed=state.meta["seed"], on_disk=state.meta["on_disk"])
        kept = index_files(_stem(store, state, wanted, int(state.meta.get("index_rows", 0))))
    for path, _, ending in store.files.of_generations():
        if ending.count(".") == 1 and ending.endswith((".faiss", ".lists")) and path not in kept:
            with contextlib.suppress(OSError):
                path.unlink()


def _stem(store: Store, state: State, wanted: WantedIndex, rows: int) -> Path:
    """The path of an index's files, without ending."""
    recipe = {"factory": wanted.factory, "seed": wanted.seed, "on_disk": wanted.on_disk, "rows": rows}
    recipe["began"] = state.meta.get("began")  # no index of FAISS is taken for that of another database in its place
    return store.files.flat(state.generation, recipe_hash(recipe, 12))
