"""The database as a living thing, searched by FAISS: images come and go, and what was done is never done again.

An index is a file (index_file.py), and beside it, while images come or go, a journal of what changed since. When all
have, both are merged into a new file. Whoever is cut off loses the batch of images at hand; whoever reads meanwhile
finds the file and the journal, which fit together.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.common.progress import say
from vpr.common.provenance import seal_of
from vpr.database.index_file import EXACT, REMEDY, IndexFile, read_index, remove_other_generations
from vpr.database.index_rows import IndexRows
from vpr.database.journal import MERGED, Entry, Journal, belongs, entries_of, id_of, is_merged, remove_journal
from vpr.database.merging import WantedIndex, write_merged
from vpr.database.records import Records
from vpr.models.local_maps import QuantizedMap
from vpr.models.local_projection import LocalProjection
from vpr.search.approximate import index_name

GENERATION_BYTES = 6


def journal_path(path: Path) -> Path:
    """Where the journal of an index lies."""
    return path.with_name(path.name.removesuffix(".h5") + ".journal")


class LivingIndex(IndexRows):
    """An index that FAISS searches; see `Engine` in vpr/database/engine.py.

    Attributes:
        provenance: what made the descriptors.
        by_hand: whether images that come and go do not follow the folder.
    """

    def __init__(
        self,
        path: Path,
        provenance: Mapping[str, str],
        dim: int,
        base: IndexFile | None,
        entries: Sequence[Entry] = (),
        seal: str = "",
    ) -> None:
        """An index as its file and journal have it; see `open_index`.

        Args:
            base: what the file holds; None: nothing, or nothing that counts.
            seal: of the file that is there, see `seal_of`.
        """
        super().__init__(path, dim, base)
        self.provenance, self._seal, self.by_hand = dict(provenance), seal, False
        self._journal: Journal | None = None
        self._header: Entry | None = entries[0] if entries else None
        if self._header is not None and "mean" in self._header.arrays:
            mean, components = (torch.from_numpy(self._header.arrays[n].copy()) for n in ("mean", "components"))
            self._projection = LocalProjection(mean, components, self._header.says["learnt_on"])
        for entry in entries[1:]:
            self._apply(entry)
        self._replayed = len(entries)

    @property
    def name(self) -> str:
        """Engine and index in words."""
        kind = str(self.attributes.get("index", EXACT))
        approximate = self._base.searched.approximate if self._base else None
        return "faiss, exact" if approximate is None else f"faiss, {index_name(kind, approximate)}"

    @property
    def edited(self) -> bool:
        """Whether images were added or removed by hand, so that it shall not follow its folder by itself."""
        return self._edited or bool(self.attributes.get("edited"))

    def _edit(self) -> None:
        """Say, once, that it was changed by hand, also if that is never merged."""
        if self.by_hand and not self.edited:
            entry = Entry({"do": "edit", "names": []})
            self._open().append(entry)
            self._apply(entry)

    @property
    def kind(self) -> WantedIndex:
        """What its file was made as."""
        found, local = self.attributes, self._base.searched.local if self._base else None
        factory = str(found.get("index", EXACT))
        return WantedIndex(
            None if factory == EXACT else factory,
            local_dim=self.local_wanted if local else 0,
            on_disk=bool(found.get("on_disk")),
        )

    @property
    def keeps_local(self) -> bool:
        """Whether images that are added bring their local descriptors."""
        return bool(self.local_wanted)

    @property
    def local_wanted(self) -> int:
        """Dimensions of local descriptors that were asked for, of which a backbone may have less; 0: none are kept."""
        if self._header is not None and self._header.says["fresh"]:
            return int(self._header.says["local_dim"])
        return int(self.attributes.get("local_wanted", self.attributes.get("local_dim", 0)))

    @property
    def unmerged(self) -> bool:
        """Whether images came or went since the file was written."""
        return self._header is not None

    def adopt(self, records: Records) -> None:
        """Take records for those of a file of an earlier version."""
        assert self._base is not None
        self._take(replace(self._base, records=records))
        self._adopted = True

    def anew(self) -> "LivingIndex":
        """An empty index in place of this one, whose file stays until that is finished."""
        self.close()
        remove_journal(journal_path(self.path))
        return LivingIndex(self.path, self.provenance, self.dim, None, seal=self._seal)

    def begin(self, wanted: WantedIndex, projection: LocalProjection | None, note: Mapping[str, str]) -> None:
        """Say of an empty index what images that are added bring, and of which folder it is."""
        arrays: dict[str, np.ndarray] = {}
        if projection is not None:
            arrays = {"mean": projection.mean.cpu().numpy(), "components": projection.components.cpu().numpy()}
        says = {"local_dim": wanted.local_dim, "learnt_on": projection.learnt_on if projection else "", **note}
        self._projection = projection
        self._open(
            Entry({**says, "id": new_id(), "base": self._seal, "fresh": True, "provenance": self.provenance}, arrays)
        )

    def hold(self) -> None:
        """Keep other processes from writing, from now on, before anything has changed.

        Raises:
            UserError: another process writes it, or has written the file since it was read.
        """
        if self._journal is None:
            journal = Journal(journal_path(self.path))
            ours = belongs(journal.entries, self._seal, self.provenance)
            changed = len(journal.entries) != self._replayed if ours else self._replayed > 0
            if changed or seal_of(self.path) != self._seal:
                journal.close()
                raise UserError(f"{self.path} was changed by another process: try again, or start the server again")
            if journal.entries and not ours:
                if is_merged(journal.entries, self.attributes):
                    journal.delete()
                else:
                    journal.set_aside(str(journal.entries[0].says["base"])[:8] or "first")
                journal = Journal(journal_path(self.path))
            journal.entries.clear()
            self._journal = journal

    def _open(self, header: Entry | None = None) -> Journal:
        """The journal, open for writing; begun where there is none. As `hold`."""
        self.hold()
        assert self._journal is not None
        if self._header is None:
            says = {"id": new_id(), "base": self._seal, "fresh": False, "provenance": self.provenance, "local_dim": 0}
            self._header = header or Entry(says)
            self._journal.append(self._header)
        return self._journal

    def add(self, records: Records, descriptors: torch.Tensor, local: Sequence[QuantizedMap] | None = None) -> None:
        """As of `Engine`."""
        if self.keeps_local and local is None:
            raise ValueError("an index that keeps local descriptors was given images without them")
        self._edit()
        says: dict[str, Any] = {
            "do": "add", "names": records.names, "folders": records.folders, "zone": records.zone,
            "columns": dict(records.columns),
        }  # fmt: skip
        arrays = {
            "positions": records.positions, "sizes": records.sizes, "modified": records.modified,
            "hashes": records.hashes, "descriptors": descriptors.to(torch.float16).numpy(),
        }  # fmt: skip
        if local is not None and self.keeps_local:
            arrays["local"] = np.concatenate([rows for rows, _ in local])
            arrays["grids"] = np.array([grid for _, grid in local], np.int32)
        entry = Entry(says, arrays)
        self._open().append(entry)
        self._apply(entry)

    def remove(self, names: Sequence[str]) -> None:
        """As of `Engine`."""
        there = [name for name in names if name in self._row_of]
        if there:
            self._edit()
            entry = Entry({"do": "remove", "names": there})
            self._open().append(entry)
            self._apply(entry)

    def finish(
        self, order: Sequence[str] | None = None, wanted: WantedIndex | None = None, edited: bool | None = None,
        zone: str | None = None, note: Mapping[str, str] | None = None,
    ) -> bool:  # fmt: skip
        """Merge what came and went into the file, if anything did, and train what is trained.

        Args:
            order: names of images in the order that they shall have; others follow as they are.
            wanted: what the index shall be; None: as it is.
            edited: whether it was changed by hand; None: as it is.
            zone: UTM zone of the positions; None: as it is.
            note: more attributes, of the folder that it is of.

        Returns:
            whether the file was written.

        Raises:
            UserError: it cannot be written, or the index cannot be built; the earlier one and the journal stay.
        """
        wanted = wanted or self.kind
        rows, made = self._in_order(order), {**self.attributes, **(note or {})}
        made["edited"] = "yes" if (self.edited if edited is None else edited) else ""
        if self._base is not None and not self._fresh and self._header is None:
            same = (wanted.factory, wanted.local_dim > 0, wanted.on_disk) == (
                self.kind.factory, self.kind.local_dim > 0, self.kind.on_disk)  # fmt: skip
            same &= not self._adopted and zone in (None, self.records.zone)
            if same and np.array_equal(rows, np.arange(len(self._alive))) and made == self.attributes:
                return False
        generation = new_id()
        records = replace(self.records, zone=zone or self.records.zone).only(rows)
        began, journal = self._header is None, self._open()  # which nobody else writes meanwhile
        made = {**made, **self.provenance, MERGED: id_of([self._header] if self._header else [])}
        try:
            write_merged(self, records, rows, wanted, made, generation)
        except UserError:
            if began:
                journal.delete()
                self._journal = self._header = None
            raise
        journal.delete()
        self._journal, self._header, self._replayed, self._seal = None, None, 0, seal_of(self.path)
        remove_other_generations(self.path, generation)
        self._take(read_index(self.path, self.dim, wanted.nprobe))
        return True

    def _in_order(self, order: Sequence[str] | None) -> np.ndarray:
        """The rows of the images it has, in an order of names."""
        first = [self._row_of[name] for name in order or () if name in self._row_of]
        return np.array([*first, *np.setdiff1d(self.rows(), np.array(first, np.int64))], np.int64)

    def close(self) -> None:
        """Let go of the journal, which stays where images came or went since."""
        if self._journal is not None:
            if self._header is None:  # it was only held
                self._journal.delete()
            self._journal.close()
            self._journal = None


def new_id() -> str:
    """That of a journal, or of a generation of files."""
    return secrets.token_hex(GENERATION_BYTES)


def refuse_other_models(path: Path, found: Mapping[str, Any], wanted: Mapping[str, str]) -> None:
    """Raise a UserError where another model than the one at hand made an index."""
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(f"{path} was made by another model ({name}={found.get(name)}, wanted {value}): {REMEDY}")


def open_index(path: Path, provenance: Mapping[str, str], dim: int, nprobe: int | None = None) -> LivingIndex:
    """An index with what came and went since its file was written; empty where there is none.

    Raises:
        UserError: its file or its journal is damaged, or another model made it.
    """
    entries = list(entries_of(journal_path(path)))  # before the file: whoever merges writes that first
    seal = seal_of(path)
    stray: list[Entry] = []
    if not belongs(entries, seal, provenance):
        entries, stray = [], entries
    if (entries and entries[0].says["fresh"]) or not path.is_file():
        return LivingIndex(path, provenance, dim, None, entries, seal)
    base = read_index(path, dim, nprobe)
    if stray and not is_merged(stray, base.attributes):
        say(f"{journal_path(path)} goes on from another file or model than {path}: the changes it holds are not used")
    refuse_other_models(path, base.attributes, provenance)
    return LivingIndex(path, provenance, dim, base, entries, seal)
