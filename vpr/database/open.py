"""A database opened by the engine that is wanted: searched as it is, brought to what its folder holds, or edited."""

import fnmatch
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.data.layouts.folders import folder_hash
from vpr.data.names import plain
from vpr.data.places import PlaceImages
from vpr.data.reader import Reading
from vpr.database.additions import beside_others, in_zone_of, refuse_other_folders, refuse_other_zone
from vpr.database.columns import columns_of
from vpr.database.engine import Engine, Source, WantedIndex
from vpr.database.engine_recall import say_recall
from vpr.database.engines import ENGINES, EngineAddress
from vpr.database.folder import FolderNow, content_hashes, stamps
from vpr.database.location import folder_note, store_path
from vpr.database.synchronise import Describing, find_changes, in_parts, synchronise
from vpr.runs.descriptors_file import model_recipe
from vpr.runs.local_projection import projection_for
from vpr.runs.model import LoadedModel


@dataclass(frozen=True)
class Database:
    """The images that an engine has, or shall have, of a folder."""

    loaded: LoadedModel
    images: PlaceImages  # those of the folder
    root: Path  # the folder
    reading: Reading  # how images are read
    zone: str | None = None  # UTM zone of the positions; None if unknown
    batch_size: int | None = None  # images described at once; 0: as many as memory holds

    @property
    def named_zone(self) -> str | None:
        """The zone, where its images themselves say none."""
        return None if getattr(self.images.places, "zone", None) else self.zone

    def now(self) -> FolderNow:
        """Its images as they are now."""
        places, files = self.images.places, self.images.database_files
        base, pairs = self.images.base, zip(places.database_names, files, strict=True)
        # A spec's name may end otherwise than its file's.
        names = [
            file.relative_to(base).as_posix() if file.is_relative_to(base) else name.replace("\\", "/")
            for name, file in pairs
        ]
        columns = columns_of(places, self.root, files)
        positions = np.asarray(places.database_positions, np.float64)
        return FolderNow(names, files, positions, self.zone, columns, [""] * len(files), *stamps(files))


@dataclass(frozen=True)
class WantedEngine:
    """The engine that is wanted."""

    address: EngineAddress
    # How the user calls the database in an engine that keeps several; None names it by the images.
    collection: str | None = None

    def open(self, database: Database, path: Path, index: WantedIndex, anew: bool = False, use: str = "") -> Engine:
        """The engine, empty where it is new.

        Args:
            path: of the index beside the model.
            anew: see `vpr.database.faiss_engine.open_engine`.
            use: apart from others', what a collection without a name is for.
        """
        # Folders of one name have a collection each: what a folder does not hold is removed from its collection.
        name = f"netvlad_{use}{database.images.places.name}_{folder_hash(database.root)}"
        name = self.collection or re.sub(r"\W", "_", name, flags=re.ASCII)[-200:]
        model, note = database.loaded.model, folder_note(database.images, database.root)
        provenance = model_recipe(model, database.reading.size)
        source = Source(self.address.target, store_path(path), name, model.dim, provenance, note)
        return importlib.import_module(ENGINES[self.address.kind]).open_engine(source, index, anew)

    def label(self, engine: Engine, path: Path) -> str:
        """What messages call it."""
        return engine.name if self.address.target else str(store_path(path))


def load_engine(wanted: WantedEngine, path: Path, database: Database, index: WantedIndex) -> Engine:
    """The engine to search in: one that is shared, or was edited, as it is; another is brought to its folder.

    The path is that of an index beside the model.
    Raises a UserError: it cannot be reached, is empty, damaged, of another model or zone, or another index.
    """
    engine = wanted.open(database, path, index)
    if not engine.count() and not len(engine.lacking):
        if engine.is_shared:
            raise UserError(f"{engine.name} has no images yet: add them by --mode=index with the same --engine")
        engine.close()
        return update_engine(wanted, path, database, index)
    label = wanted.label(engine, path)
    refuse_other_zone(engine.records.zone, database.named_zone, label)
    if engine.is_shared or engine.edited:
        if engine.edited:
            say(f"{label} was edited by --add or --remove, and is taken as it is; --mode=index brings it to its folder")
        zone = database.named_zone
    else:
        now = beside_others(database.now(), engine, label)
        zone = now.zone
        if find_changes(now, engine.records, engine.rows(), keep_others=False).anything:
            say(f"{label} is of other images or places than there are now: bringing it up to date")
            follow(engine, database, now, index, label)
    if zone:
        engine.set_zone(zone)
    return engine


def update_engine(wanted: WantedEngine, path: Path, database: Database, index: WantedIndex) -> Engine:
    """Bring the engine to what the folder holds now, make it what is wanted, and say what was done."""
    if processes.world() > 1 and not wanted.address.is_server:
        raise UserError(
            f"several processes write an index only through a server, found {processes.world()}: start one, or name "
            "--engine=milvus:http://HOST:19530"
        )
    if not processes.is_main():
        processes.barrier()  # the first makes what is not there
    engine = wanted.open(database, path, index, anew=True)
    if processes.is_main():
        processes.barrier()
    processes.barrier()  # all know what was there before the first adds anything
    label = wanted.label(engine, path)
    follow(engine, database, beside_others(database.now(), engine, label), index, label)
    return engine


def follow(engine: Engine, database: Database, now: FolderNow, wanted: WantedIndex, label: str) -> None:
    """Bring an engine to what a folder holds, and describe again what it lacks."""
    describing = how_described(engine, database, wanted)
    done = synchronise(engine, now, describing)
    done.described = sum(processes.gather(done.described))
    again = 0
    if processes.is_main():
        again = describe_again(engine, database, describing)
        if now.zone:
            engine.set_zone(now.zone)
        engine.finish(now.names)
    more = f"; {again:,} of other folders described again" if again else ""
    say(f"{label}: {done.line()}{more}")
    if processes.world() == 1 and done.anything and engine.is_shared:
        say_recall(engine)


def describe_again(engine: Engine, database: Database, describing: Describing) -> int:
    """Describe images from elsewhere again that the engine lacks, where their files are there; gives how many."""
    lacking = engine.lacking
    files = [lacking.file(row, database.images.base) for row in range(len(lacking))]
    there = [row for row, file in enumerate(files) if file.is_file()]
    for row, file in enumerate(files):
        if row not in there:
            say(f"{lacking.names[row]} cannot be found until {file} is there again; or remove it by --remove")
    if there:
        now = FolderNow.of(lacking.only(there), [files[row] for row in there])
        synchronise(engine, now, describing, keep_others=True)
    return len(there)


def edit_engine(
    wanted: WantedEngine,
    path: Path,
    database: Database,
    added: FolderNow | None,
    removed: list[str],
    index: WantedIndex,
) -> Engine:
    """Add images from another folder, and remove images by name or pattern; says what was done.

    Where there is no index of the database yet, it is made as `index` says.
    Raises a UserError: there is no image of a name, or another folder's image has the name of one that is added.
    """
    engine = wanted.open(database, path, WantedIndex())
    if not engine.is_shared and not engine.count() and not len(engine.lacking):
        engine.close()
        engine = update_engine(wanted, path, database, index)
    names = matching_names({**dict.fromkeys(engine.lacking.names, -1), **engine.row_of}, removed)
    engine.by_hand, label = True, wanted.label(engine, path)
    refuse_other_zone(engine.records.zone, database.named_zone, label)
    if database.named_zone:
        engine.set_zone(database.named_zone)
    if added is not None:
        refuse_other_folders(engine, added, label)
        added = in_zone_of(added, engine.records.only(engine.rows()), label)
        done = synchronise(engine, added, how_described(engine, database, WantedIndex()), keep_others=True)
        say(f"{label}: {done.line()}")
    engine.remove(names)
    if names:
        say(f"{label}: {len(names):,} removed")
    engine.finish()
    return engine


def fill_engine(wanted: WantedEngine, database: Database, descriptors: np.ndarray, index: str | None) -> Engine:
    """An engine with exactly the images of a folder, whose descriptors [N, dim] are at hand.

    It is one of its own, in which others look for nothing; one that the user names is only read.
    Raises a UserError: it cannot be reached, is another model's, or the user's has other images.
    """
    path = database.loaded.folder / f"test_{database.images.places.name}"
    engine, now = wanted.open(database, path, WantedIndex(index), use="test_"), database.now()
    changes = find_changes(now, engine.records, engine.rows(), keep_others=False)
    others = sorted(engine.row_of.keys() - set(now.names))
    wrong = [*changes.new, *(row for row, _ in changes.touched)]
    if wanted.collection and (wrong or others):
        name = (others or [now.names[row] for row in wrong])[0]
        raise UserError(
            f"{engine.name} has other images than the {len(now.names):,} that are tested, such as {name}, and testing "
            "changes nothing there: bring it to them by --mode=index, or drop --collection"
        )
    for rows in in_parts(wrong, 1024):
        hashes = content_hashes([now.files[row] for row in rows])
        engine.add(now.records(rows, hashes), descriptors[rows])
    engine.remove(others)
    engine.finish(now.names)
    say(f"{engine.name}: {len(wrong):,} of {len(now.names):,} images added, {len(others):,} removed")
    if wrong:
        say_recall(engine)
    return engine


def how_described(engine: Engine, database: Database, wanted: WantedIndex) -> Describing:
    """How images that an engine lacks are described; an empty one is told what local descriptors are projected to."""
    if engine.keeps_local and not engine.next_row:
        reader = database.reading.of(database.images.database_files)
        try:
            engine.begin(projection_for(database.loaded, reader, wanted.seed, wanted.local_dim, database.batch_size))
        except UserError as error:
            if not wanted.by_itself:
                raise
            say(f"the index keeps no local descriptors: {error}")
            engine.keep_no_local()
    return Describing(database.loaded, database.reading, database.batch_size, engine.projection, engine.keeps_local)


def matching_names(known: Mapping[str, int], patterns: Sequence[str]) -> list[str]:
    """The names that are given, or that patterns with * or ? match. Raises a UserError where there is none."""
    found = dict[str, None]()
    for pattern in patterns:
        names = [pattern] if pattern in known else fnmatch.filter(known, pattern)
        names = names or [name for name in known if fnmatch.fnmatchcase(plain(name), plain(pattern))]
        if not names:
            raise UserError(f"--remove {pattern}: found no such image in the index; names are paths below its folder")
        found.update(dict.fromkeys(names))
    return list(found)
