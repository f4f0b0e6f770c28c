"""The index of a database: where it lies, and how it follows the images of its folder."""

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import files_digest, seal_of
from vpr.data.names import plain
from vpr.data.places import PlaceImages
from vpr.data.reader import Reading
from vpr.database.additions import beside_others, in_zone_of, refuse_other_folders, refuse_other_zone
from vpr.database.columns import columns_of
from vpr.database.folder import FolderNow, content_hashes, stamps
from vpr.database.index_file import EXACT, REMEDY, attributes_of
from vpr.database.journal import entries_of, remove_journal
from vpr.database.living_index import LivingIndex, journal_path, open_index
from vpr.database.merging import WantedIndex
from vpr.database.synchronise import Describing, Done, find_changes, synchronise
from vpr.runs.descriptors_file import model_recipe
from vpr.runs.local_projection import projection_for
from vpr.runs.model import LoadedModel
from vpr.search.approximate import check_factory


def folder_note(images: PlaceImages, root: Path) -> dict[str, str]:
    """Of which folder an index is. The folder's path is no part of it: an index may travel with its images."""
    return {
        "photos": images.places.name,
        "photos_hash": images.places.fingerprint(),
        "files_hash": files_digest(images.places.database_names, images.database_files),
        "folder_hash": folder_hash(root),
    }


def folder_now(images: PlaceImages, root: Path, zone: str | None) -> FolderNow:
    """The database images of a split as they are now.

    Args:
        root: the images' folder, where their table lies.
        zone: UTM zone of their positions; None if unknown.
    """
    places, files = images.places, zip(images.places.database_names, images.database_files, strict=True)
    sizes, modified = stamps(images.database_files)
    return FolderNow(
        names=[_name_below(images.base, file, name) for name, file in files],
        files=images.database_files,
        positions=np.asarray(places.database_positions, np.float64),
        zone=zone,
        columns=columns_of(places, root, images.database_files),
        folders=[""] * len(images.database_files),
        sizes=sizes,
        modified=modified,
    )


def _name_below(base: Path, file: Path, name: str) -> str:
    """The name of an image: its path below a folder, which may end otherwise than a spec says."""
    return file.relative_to(base).as_posix() if file.is_relative_to(base) else name.replace("\\", "/")


def index_file(loaded: LoadedModel, images: PlaceImages, root: Path) -> Path:
    """Where the index of a split's database lies or shall lie, beside the model.

    Image folders with the same last name get a file each: the second one's name has a hash of the whole path. A
    file of the same images in another folder has travelled with them and is taken.

    Args:
        root: the images' folder.

    Raises:
        UserError: the file that is there is damaged or no index, so that it cannot be told whose it is.
    """
    path, own = loaded.folder / f"database_{images.places.name}.h5", folder_hash(root)
    found = {"folder_hash": next(iter(_begun_by(path)), None)}
    if path.is_file():
        found = attributes_of(path)
    theirs = found.get("folder_hash")
    travelled = found.get("files_hash") == files_digest(images.places.database_names, images.database_files)
    return path if theirs in (None, own) or travelled else path.with_stem(f"{path.stem}_{own}")


def _begun_by(path: Path) -> list[str]:
    """The folder of an index whose first file was not written yet."""
    return [str(entry.says["folder_hash"]) for entry in entries_of(journal_path(path)) if "folder_hash" in entry.says]


def file_to_write(loaded: LoadedModel, images: PlaceImages, root: Path) -> Path:
    """As `index_file`, to write an index; a damaged one is moved out of the way, and replaced."""
    try:
        return index_file(loaded, images, root)
    except UserError as error:
        path = loaded.folder / f"database_{images.places.name}.h5"
        say(f"replaced: {error}")
        if path.is_file():
            path.replace(path.with_suffix(".damaged"))
        return path


def folder_hash(root: Path) -> str:
    """A short hash of where a folder lies."""
    return hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Database:
    """A database that an index is, or shall be, of.

    Attributes:
        images: those of the folder.
        root: the folder.
        reading: how images are read.
        zone: UTM zone of the positions; None if unknown.
        batch_size: images described at once; 0: as many as memory holds.
    """

    loaded: LoadedModel
    images: PlaceImages
    root: Path
    reading: Reading
    zone: str | None = None
    batch_size: int = 24

    @property
    def provenance(self) -> dict[str, str]:
        """What makes its descriptors."""
        return model_recipe(self.loaded.model, self.loaded.spec, self.reading.size)

    def now(self) -> FolderNow:
        """Its images as they are now."""
        return folder_now(self.images, self.root, self.zone)

    def now_beside(self, index: LivingIndex) -> FolderNow:
        """Its images as they are now, in the zone of what the index has of other folders."""
        return beside_others(self.now(), index)

    @property
    def named_zone(self) -> str | None:
        """The zone, where its images themselves say none."""
        return None if getattr(self.images.places, "zone", None) else self.zone

    def note(self) -> dict[str, str]:
        """Of which folder it is."""
        return folder_note(self.images, self.root)

    def open(self, path: Path, nprobe: int | None = None) -> LivingIndex:
        """Its index, empty where there is none; see `open_index`. One of an earlier version must be of these images."""
        index = open_index(path, self.provenance, self.loaded.model.dim, nprobe)
        if index.has_records:
            return index
        changed = what_changed(index.attributes, self.note())
        if changed:
            say(f"{path} {changed}: making it anew")
            return index.anew()
        index.adopt(self.now().records(range(len(self.images.database_files)), self._hashes(index)))
        return index

    def _hashes(self, index: LivingIndex) -> np.ndarray:
        """Of the images' content, where the index will be written with them."""
        files = self.images.database_files
        return content_hashes(files) if index.has_descriptors else np.zeros((len(files), 32), np.uint8)


def update_index(path: Path, database: Database, wanted: WantedIndex) -> LivingIndex:
    """Bring the index of a database to what its folder holds now, and make it what is wanted; says what was done."""
    if wanted.factory:
        check_factory(wanted.factory, database.loaded.model.dim)
    index = _to_update(path, database, wanted)
    say(f"{path}: {follow(index, database, wanted).line()}")
    return index


def _to_update(path: Path, database: Database, wanted: WantedIndex) -> LivingIndex:
    """The index that goes on, or an empty one in its place, where it cannot."""
    try:
        index = database.open(path, wanted.nprobe)
    except UserError as error:
        say(f"replaced: {error}")
        remove_journal(journal_path(path))
        return LivingIndex(path, database.provenance, database.loaded.model.dim, None, seal=seal_of(path))
    reason = None
    begun = index.next_row or index.unmerged
    if begun and wanted.local_dim and index.local_wanted != wanted.local_dim:
        reason = f"has local descriptors of {index.local_wanted or 'no'} dimensions, wanted {wanted.local_dim}"
    elif not index.has_descriptors:
        reason = "was written by an earlier version, which kept no descriptors beside a FAISS index"
    if reason is None:
        return index
    others = sum(bool(index.records.folders[row]) for row in index.rows())
    say(f"{path} {reason}: making it anew" + f"; {others} images of other folders are to be added again" * (others > 0))
    return index.anew()


def load_index(path: Path, database: Database, wanted: WantedIndex) -> LivingIndex:
    """The index of a database, following its folder unless it was edited by hand; made if there is none.

    Raises:
        UserError: the file is damaged or foreign, another model made it, or it is another index or of another zone
            than is wanted.
    """
    index = database.open(path, wanted.nprobe)
    if not index.next_row:
        return update_index(path, database, replace(wanted, local_dim=index.local_wanted))
    kind = replace(index.kind, nprobe=wanted.nprobe, seed=wanted.seed)
    if wanted.factory and (kind.factory or EXACT) != wanted.factory:
        raise UserError(
            f"{path} is made with --index={kind.factory or EXACT}, found --index={wanted.factory}: drop that, "
            f"or {REMEDY}"
        )
    refuse_other_zone(index.records.zone, database.named_zone, str(path))
    if index.edited:
        say(f"{path} was edited by --add or --remove, and is taken as it is; --mode=index brings it to its folder")
        index.set_zone(database.named_zone)
        return index
    now = database.now_beside(index)
    if find_changes(now, index.records, index.rows(), keep_others=False).anything or index.unmerged:
        say(f"{path} is of other images or places than there are now: bringing it up to date")
        return update_index(path, database, kind)
    index.set_zone(now.zone)
    return index


def edit_index(
    path: Path, database: Database, added: FolderNow | None, removed: Sequence[str], wanted: WantedIndex
) -> LivingIndex:
    """Add images from another folder, and remove images by name or pattern; says what was done.

    Args:
        wanted: how the index of the database is made where there is none yet.

    Raises:
        UserError: there is no image of a name.
    """
    index = database.open(path)
    if not index.next_row:
        index = update_index(path, database, wanted)
    names, index.by_hand = matching_names(index.row_of, removed), True
    refuse_other_zone(index.records.zone, database.named_zone, str(path))
    index.set_zone(database.named_zone)
    if added is not None:
        refuse_other_folders(index, added)
        added = in_zone_of(added, index.records.only(index.rows()), str(path))
        say(f"{path}: {synchronise(index, added, describing(index, database, WantedIndex()), keep_others=True).line()}")
    index.remove(names)
    if names:
        say(f"{path}: {len(names):,} removed")
    index.finish(edited=True, zone=database.named_zone, note=database.note())
    return index


def matching_names(known: Mapping[str, int], patterns: Sequence[str]) -> list[str]:
    """The names that are given, or that patterns with * or ? match.

    Raises:
        UserError: there is none.
    """
    found = dict[str, None]()
    for pattern in patterns:
        names = [pattern] if pattern in known else fnmatch.filter(known, pattern)
        names = names or [name for name in known if fnmatch.fnmatchcase(plain(name), plain(pattern))]
        if not names:
            raise UserError(f"--remove {pattern}: found no such image in the index; names are paths below its folder")
        found.update(dict.fromkeys(names))
    return list(found)


def follow(index: LivingIndex, database: Database, wanted: WantedIndex) -> Done:
    """Bring an index to what the folder holds now, and make it what is wanted."""
    now = database.now_beside(index)
    done = synchronise(index, now, describing(index, database, wanted))
    index.finish(now.names, wanted, edited=False, zone=now.zone, note=database.note())
    return done


def describing(index: LivingIndex, database: Database, wanted: WantedIndex) -> Describing:
    """How the images that an index lacks are described; an empty one learns what local descriptors are projected to."""
    about = Describing(database.loaded, database.reading, database.batch_size)
    if not index.next_row and not index.unmerged:
        projection = None
        if wanted.local_dim:
            reader = database.reading.of(database.images.database_files)
            projection = projection_for(database.loaded, reader, wanted.seed, wanted.local_dim, database.batch_size)
        index.begin(wanted, projection, database.note())
    projection = index.projection.to(database.loaded.model.device) if index.projection else None
    return replace(about, projection=projection, keep_local=index.keeps_local)


def what_changed(found: Mapping[str, object], note: Mapping[str, str]) -> str | None:
    """Why an index of an earlier version cannot serve the images there are, or None where it can."""
    if found.get("photos_hash") != note["photos_hash"]:
        return "is of other images or places than there are now"
    if "files_hash" not in found:
        return "was written by an earlier version, which did not say of which image files"
    if found["files_hash"] != note["files_hash"]:
        return "is of other image files (size or time of an image differs)"
    return None
