"""The engine that a command wants, opened or brought to what the folder holds."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.places import PlaceImages
from vpr.database.additions import refuse_other_zone
from vpr.database.database_index import Database, edit_index, folder_hash, load_index, matching_names, update_index
from vpr.database.engine import Engine, Source, WantedIndex
from vpr.database.engine_address import MILVUS, EngineAddress
from vpr.database.engine_recall import recall_against_exact
from vpr.database.folder import FolderNow, content_hashes
from vpr.database.living_index import LivingIndex
from vpr.database.records import Records
from vpr.database.synchronise import Describing, find_changes, in_parts, synchronise

if TYPE_CHECKING:
    from vpr.database.milvus.engine import MilvusEngine

COMPARED_BYTES = 256 << 20  # of descriptors that are fetched to compare an engine with exact search, at most
COMPARED_HITS, COMPARED_QUERIES = 20, 100
AnyEngine = Union[LivingIndex, "MilvusEngine"]


@dataclass(frozen=True)
class WantedEngine:
    """The engine that is wanted.

    Attributes:
        collection: of Milvus; None names it by the database.
    """

    address: EngineAddress
    collection: str | None = None

    def open_milvus(self, database: Database, index: str | None) -> "MilvusEngine":
        """The collection, empty where it is new."""
        from vpr.database.milvus.engine import open_engine

        # Folders of one name have a collection each: what a folder does not hold is removed from its collection.
        name = f"netvlad_{database.images.places.name}_{folder_hash(database.root)}"
        name = self.collection or re.sub(r"\W", "_", name, flags=re.ASCII)[-200:]
        source = Source(self.address.target, Path(), name, database.loaded.model.dim, database.provenance, {})
        return open_engine(source, WantedIndex(index))


def load_engine(wanted: WantedEngine, path: Path, database: Database, index: WantedIndex) -> AnyEngine:
    """The engine to search in.

    FAISS follows the folder; a collection of Milvus may be of many folders, and is taken as it is.

    Args:
        path: of FAISS's file.

    Raises:
        UserError: it cannot be reached, is empty, damaged or of another model.
    """
    if wanted.address.kind != MILVUS:
        return load_index(path, database, index)
    engine = wanted.open_milvus(database, index.factory)
    if not engine.count():
        raise UserError(f"{engine.name} has no images yet: add them by --mode=index with the same --engine")
    refuse_other_zone(engine.records.zone, database.named_zone, engine.name)
    return engine


def update_engine(wanted: WantedEngine, path: Path, database: Database, index: WantedIndex) -> AnyEngine:
    """Bring the engine to what the folder holds now, and say what was done."""
    if processes.world() > 1 and not wanted.address.is_server:
        raise UserError(
            f"several processes write an index only through a server, found {processes.world()}: start one, or name "
            "--engine=milvus:http://HOST:19530"
        )
    if wanted.address.kind != MILVUS:
        return update_index(path, database, index)
    if processes.is_main():  # makes the collection
        engine = wanted.open_milvus(database, index.factory)
    processes.barrier()
    if not processes.is_main():
        engine = wanted.open_milvus(database, index.factory)
    processes.barrier()  # all know what was there before the first adds anything
    done = synchronise(engine, database.now(), described_by(database))
    done.described = sum(processes.gather(done.described))
    engine.finish()
    say(f"{engine.name}: {done.line()}")
    if processes.world() == 1 and done.anything:
        say_recall(engine)
    return engine


def edit_engine(
    wanted: WantedEngine,
    path: Path,
    database: Database,
    added: FolderNow | None,
    removed: list[str],
    index: WantedIndex,
) -> AnyEngine:
    """Add images from another folder, and remove images by name or pattern."""
    if wanted.address.kind != MILVUS:
        return edit_index(path, database, added, removed, index)
    engine = wanted.open_milvus(database, None)
    names = matching_names(engine.row_of, removed)
    if added is not None:
        say(f"{engine.name}: {synchronise(engine, added, described_by(database), keep_others=True).line()}")
    engine.remove(names)
    engine.finish()
    return engine


def fill_engine(wanted: WantedEngine, database: Database, descriptors: torch.Tensor, index: str | None) -> AnyEngine:
    """A collection of Milvus with exactly the images of a folder, whose descriptors [N, dim] are at hand.

    Raises:
        UserError: it cannot be reached, or is another model's.
    """
    engine, now = wanted.open_milvus(database, index), database.now()
    changes = find_changes(now, engine.records, engine.rows(), keep_others=False)
    wrong = [*changes.new, *(row for row, _ in changes.touched)]
    for rows in in_parts(wrong, 1024):
        hashes = content_hashes([now.files[row] for row in rows])
        engine.add(now.records(rows, hashes), descriptors[rows])
    engine.remove(changes.gone)
    engine.finish()
    say(f"{engine.name}: {len(wrong):,} of {len(now.names):,} images added, {len(changes.gone):,} removed")
    if wrong:
        say_recall(engine)
    return engine


def say_recall(engine: Engine) -> None:
    """Say how much of the exact search an engine finds, for a sample of what it has; not where that is too much."""
    rows = engine.rows()
    if not len(rows):
        return
    dim = engine.descriptors(rows[:1]).shape[1]
    if 4 * dim * engine.next_row > COMPARED_BYTES:
        say(f"not compared with exact search: {len(rows):,} descriptors of {dim} dimensions are too many to fetch")
        return
    stored = torch.full((engine.next_row, dim), 10.0)  # far from all where an image was removed
    for some in in_parts(rows.tolist(), 1024):
        stored[some] = engine.descriptors(some).float()
    say(f"compared with exact search: {recall_against_exact(engine, stored, COMPARED_HITS, COMPARED_QUERIES).line()}")


def described_by(database: Database) -> Describing:
    """How images are described for an engine that keeps no local descriptors."""
    return Describing(database.loaded, database.reading, database.batch_size)


def images_of(engine: Engine, images: PlaceImages) -> PlaceImages:
    """The images of an engine, by row: those of the folder, or what its records say."""
    records: Records = engine.records
    if records.names == list(images.places.database_names):
        return images
    places = dataclasses.replace(
        images.places, database_names=records.names, database_positions=records.positions, database_times=None
    )
    files = [records.file(row, images.base) for row in range(len(records))]
    return dataclasses.replace(images, places=places, database_files=files)
