"""Merge what came and went into a new generation of an index's file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import torch

from vpr.common.progress import say
from vpr.database.engine import WantedIndex
from vpr.database.index_file import EXACT, beside, write_index
from vpr.database.records import Records
from vpr.descriptors.local_file import described, local_file
from vpr.models.local_maps import LocalMaps
from vpr.models.local_projection import LocalProjection
from vpr.search.approximate import NPROBE, build_index
from vpr.search.on_disk import build_on_disk


class Indexed(Protocol):
    """What is merged; see `LivingIndex`."""

    path: Path
    dim: int

    @property
    def local(self) -> LocalMaps | None: ...
    @property
    def projection(self) -> LocalProjection | None: ...
    @property
    def local_wanted(self) -> int: ...
    def descriptors(self, rows: np.ndarray) -> torch.Tensor: ...


@dataclass(frozen=True)
class OrderedRows:
    """Descriptors of an index's rows in another order, read as they are asked for."""

    index: Indexed
    order: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """[N, dim]."""
        return len(self.order), self.index.dim

    def __getitem__(self, rows: Any) -> torch.Tensor:
        return self.index.descriptors(self.order[rows])


def write_merged(
    index: Indexed,
    records: Records,
    rows: np.ndarray,
    wanted: WantedIndex,
    made: Mapping[str, Any],
    generation: str,
) -> None:
    """Write the rows of an index as a new generation of its file, with what is searched and looked at again."""
    path, stem, ordered = index.path, beside(index.path, generation), OrderedRows(index, rows)
    attributes = {**made, "index": wanted.factory or EXACT, "generation": generation}
    attributes.pop("on_disk", None)
    more: dict[str, np.ndarray] = {}
    if wanted.factory and wanted.on_disk:
        build_on_disk(stem.with_suffix(""), wanted.factory, ordered, wanted.seed, wanted.nprobe or NPROBE)
        attributes["on_disk"] = "yes"
    elif wanted.factory:
        built = build_index(wanted.factory, ordered, wanted.seed, wanted.nprobe or NPROBE)
        more["faiss"] = faiss.serialize_index(built)
    kept = index.local if wanted.local_dim else None
    for name in ("local_dim", "local_learnt_on", "local_wanted"):
        attributes.pop(name, None)
    if kept is not None:
        attributes["local_wanted"] = str(index.local_wanted)
        with local_file(stem) as sink:
            for row in rows:
                sink.write([(kept.rows(row), (int(kept.grids[row][0]), int(kept.grids[row][1])))])
            arrays, says = described(sink.finished(), index.projection)
        more |= arrays
        attributes |= says
    write_index(path, records, ordered, more, attributes)
    size = sum(file.stat().st_size for file in (path, *path.parent.glob(f"{stem.stem}.*"))) / 1e6
    beside_it = f", {kept.bytes_per_image:.0f} bytes per image of local descriptors among them" if kept else ""
    say(f"wrote {path}: {len(rows)} images, {size:.1f} MB{beside_it}")
