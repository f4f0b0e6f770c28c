"""FAISS inverted lists in a memory-mapped file, for databases larger than memory.

STEM.faiss has what is trained and where each list lies, STEM.lists the lists. The index is trained on a sample, and
filled in blocks that are written and then merged, as in
https://github.com/facebookresearch/faiss/wiki/Indexes-that-do-not-fit-in-RAM.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from vpr.common.errors import UserError
from vpr.common.files import atomic_write, host
from vpr.common.progress import Progress, say
from vpr.common.provenance import LABEL, SEAL, SEAL_LENGTH, append_seal, check_seal_at_end, last_bytes, sha256_of
from vpr.search.approximate import NPROBE, TRAINING_BYTES, faiss_reason
from vpr.search.floats import Float32Rows, tiles

ENDINGS = (".faiss", ".lists")
BLOCK_BYTES = 256 << 20  # of descriptors that are in float32 at a time
POINTS_PER_LIST, LEAST_POINTS = 64, 1 << 16  # that an index is trained on; FAISS wants 39 and takes at most 256
RUN = 64  # neighbouring rows that a sample takes at once, since single ones are slow to read
REMEDY = "make it again with --mode=index"


def build_on_disk(stem: Path, factory: str, rows: Any, seed: int, nprobe: int = NPROBE) -> None:
    """Make an index of descriptors that need not fit into memory, whole or not at all.
    Raises a UserError: the index is of another kind, or cannot be trained or written.

    Args:
        stem: path without ending.
        factory: FAISS's string of an inverted file, such as IVF4096,PQ64, with or without a transform before it.
        rows: descriptors [N, dim], float16 or float32, of anything that gives slices: h5py, numpy.memmap. Row
            numbers are the ids.
    """
    path, lists = index_files(stem)
    index = _trained(factory, rows, seed)
    faiss.extract_index_ivf(index).nprobe = nprobe
    with atomic_write(path) as new_path, atomic_write(lists) as new_lists, contextlib.ExitStack() as temporary:
        _merge(index, _write_blocks(index, rows, stem, temporary), new_lists, lists.name)
        faiss.write_index(index, str(new_path))
        append_seal(new_path, new_lists)  # FAISS does not look behind an index
        append_seal(new_path)
        path.unlink(missing_ok=True)  # an index never stands beside lists of another


def open_on_disk(stem: Path, nprobe: int | None = None) -> faiss.Index:
    """Open an index whose lists stay on disk, after both files have been found right; `nprobe` None: as it is stored.
    Raises a UserError: a file is missing, damaged, or of another index."""
    path, lists = index_files(stem)
    try:
        of_lists = last_bytes(path, 2 * SEAL_LENGTH)[:SEAL_LENGTH]
        if not check_seal_at_end(path, "an index on disk", REMEDY) or not SEAL.fullmatch(of_lists):
            raise UserError(f"{path} cannot be read as an index on disk (it is damaged or of another format): {REMEDY}")
        if of_lists != LABEL + sha256_of(lists).encode():
            raise UserError(f"{lists} is damaged or of another index than {path} (its bytes do not fit): {REMEDY}")
        with _silent_library():
            index = faiss.read_index(str(path), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): {REMEDY}") from error
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read as an index on disk ({faiss_reason(error)}): {REMEDY}") from error
    if nprobe is not None:
        faiss.extract_index_ivf(index).nprobe = nprobe
    return index


def index_files(stem: Path) -> tuple[Path, Path]:
    """STEM.faiss and STEM.lists."""
    first, second = (stem.with_name(stem.name + ending) for ending in ENDINGS)
    return first, second


def _trained(factory: str, rows: Any, seed: int) -> faiss.Index:
    """A trained index without descriptors."""
    count, dim = rows.shape
    try:
        index = faiss.index_factory(dim, factory)
    except RuntimeError as error:
        raise UserError(f"found --index={factory}; FAISS says: {faiss_reason(error)}") from error
    lists = _lists_of(index)
    if lists is None:
        raise UserError(
            f"found --index={factory}, wanted an inverted file (IVF) with codes of a fixed size and nothing behind it, "
            "such as IVF4096,PQ64, whose lists can stay on disk"
        )
    points = min(count, max(POINTS_PER_LIST * lists.nlist, LEAST_POINTS), TRAINING_BYTES // (4 * dim))
    starts = np.random.default_rng(seed).permutation(-(-count // RUN))[: -(-points // RUN)]
    floats, runs = Float32Rows(), [slice(RUN * int(start), RUN * (int(start) + 1)) for start in np.sort(starts)]
    sample = np.concatenate([floats(rows, run).copy() for run in runs])
    say(f"training the index {factory} on {len(sample)} descriptors")
    try:
        index.train(sample)
    except RuntimeError as error:
        raise UserError(
            f"--index={factory} cannot be trained on {len(sample)} descriptors, {dim}-D; FAISS says: "
            f"{faiss_reason(error)}"
        ) from error
    return index


def _lists_of(index: faiss.Index) -> faiss.IndexIVF | None:
    """The inverted file of an index, behind transforms or not; None where its lists cannot be merged on disk."""
    while isinstance(index := faiss.downcast_index(index), faiss.IndexPreTransform):
        index = index.index
    if not isinstance(index, faiss.IndexIVF) or isinstance(index, faiss.IndexIVFPQR):
        return None
    lists: Any = index.invlists
    return index if isinstance(faiss.downcast_InvertedLists(lists), faiss.ArrayInvertedLists) else None


def _write_blocks(trained: faiss.Index, rows: Any, stem: Path, temporary: contextlib.ExitStack) -> list[Path]:
    """Indexes of BLOCK_BYTES of descriptors each, in files; one is in memory at a time. The files go when `temporary`
    ends; where a process is killed, `atomic_write` removes them later."""
    count, dim = rows.shape
    floats, empty = Float32Rows(), faiss.serialize_index(trained)
    written: list[Path] = []
    with Progress("index", count) as progress:
        for block in tiles(count, dim, BLOCK_BYTES):
            values = floats(rows, block)
            index = faiss.deserialize_index(empty)
            index.add_with_ids(values, np.arange(block.start, block.stop))
            written.append(stem.with_name(f".{stem.name[:160]}.block.{host()}-{os.getpid()}-{len(written)}.part"))
            temporary.callback(written[-1].unlink, missing_ok=True)
            faiss.write_index(index, str(written[-1]))
            progress.advance(len(values))
    return written


def _merge(index: faiss.Index, blocks: list[Path], lists: Path, name: str) -> None:
    """Move the lists of all blocks into one file, and have the index use it by its later name."""
    from faiss.contrib.ondisk import merge_ondisk

    with _silent_library():
        merge_ondisk(index, [str(block) for block in blocks], str(lists))
    merged: Any = faiss.extract_index_ivf(index).invlists
    on_disk: Any = faiss.downcast_InvertedLists(merged)
    on_disk.filename = name


@contextlib.contextmanager
def _silent_library() -> Iterator[None]:
    """Keep what FAISS prints from C++, such as the size of the file, off the screen."""
    flush = getattr(ctypes.CDLL(None), "fflush", lambda _: None)
    sys.stdout.flush()
    flush(None)
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)
