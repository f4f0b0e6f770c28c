"""FAISS inverted lists in a memory-mapped file, for databases larger than memory.

STEM.faiss has what is trained and where each list lies, STEM.lists the lists. The index is trained on a sample, and
filled in blocks that are written and then merged, as in
https://github.com/facebookresearch/faiss/wiki/Indexes-that-do-not-fit-in-RAM.
"""

import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from vpr.common.errors import UserError
from vpr.common.files import locked
from vpr.common.progress import Progress, say
from vpr.common.provenance import LABEL, SEAL, SEAL_LENGTH, sha256_of
from vpr.search.approximate import NPROBE, TRAINING_BYTES, faiss_reason

BLOCK_BYTES = 256 << 20  # of descriptors that are in float32 at a time
POINTS_PER_LIST, LEAST_POINTS = 64, 1 << 16  # that an index is trained on; FAISS wants 39 and takes at most 256
RUN = 16  # neighbouring rows that a sample takes at once, since single ones are slow to read
REMEDY = "make it anew with --mode=index"


def build_on_disk(stem: Path, factory: str, rows: Any, seed: int, nprobe: int = NPROBE) -> None:
    """Make an index of descriptors that need not fit into memory, whole or not at all.

    Args:
        stem: path without ending.
        factory: FAISS's string of an inverted file, such as IVF4096,PQ64, with or without a transform before it.
        rows: descriptors [N, dim], float16 or float32; anything that has a shape and gives slices: a dataset of h5py, a
            tensor, a numpy.memmap. Row numbers are the ids.
        nprobe: lists that a search looks through.

    Raises:
        UserError: the index is of another kind, or cannot be trained or written.
    """
    count, dim = rows.shape
    files = index_files(stem)
    part = stem.with_name(f".{stem.name}.part")  # what a killed process has left there is thrown away
    try:
        with locked(files[0]):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            index = _trained(factory, rows, seed)
            faiss.write_index(index, str(part / "trained"))
            blocks = _write_blocks(part, rows, max(1, BLOCK_BYTES // (4 * dim)))
            _merge(index, blocks, part / files[1].name)
            faiss.extract_index_ivf(index).nprobe = nprobe
            faiss.write_index(index, str(part / files[0].name))
            del index  # closes the lists
            _seal(part / files[0].name, part / files[1].name)
            files[0].unlink(missing_ok=True)  # an index never stands beside lists of another
            (part / files[1].name).replace(files[1])
            (part / files[0].name).replace(files[0])
    except (OSError, RuntimeError) as error:
        reason = faiss_reason(error) if isinstance(error, RuntimeError) else error
        raise UserError(f"--index={factory} cannot be written on disk of {count} descriptors, {dim}-D ({reason}): make "
                        "room, or choose another index or folder") from error  # fmt: skip
    finally:
        shutil.rmtree(part, ignore_errors=True)


def open_on_disk(stem: Path, nprobe: int | None = None) -> faiss.Index:
    """Open an index whose lists stay on disk, after both files have been found right.

    Args:
        nprobe: lists that a search looks through; None takes what is stored.

    Raises:
        UserError: a file is missing, damaged, or of another index.
    """
    path, lists = index_files(stem)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(0, size - 2 * SEAL_LENGTH))
            seals = file.read()
        own, of_lists = seals[SEAL_LENGTH:], seals[:SEAL_LENGTH]
        if not (SEAL.fullmatch(own) and SEAL.fullmatch(of_lists)):
            raise UserError(f"{path} cannot be read as an index on disk (it is damaged or of another format): {REMEDY}")
        if own != LABEL + sha256_of(path, stop=size - SEAL_LENGTH).encode():
            raise UserError(f"{path} is damaged (its bytes do not fit its checksum): {REMEDY}")
        if of_lists != LABEL + sha256_of(lists).encode():
            raise UserError(f"{lists} is damaged or of another index than {path} (its bytes do not fit): {REMEDY}")
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
    return stem.with_name(f"{stem.name}.faiss"), stem.with_name(f"{stem.name}.lists")


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
    most = max(POINTS_PER_LIST * lists.nlist, LEAST_POINTS)
    points = min(count, most, TRAINING_BYTES // (4 * dim))
    starts = np.random.default_rng(seed).permutation(-(-count // RUN))[: -(-points // RUN)]
    sample = np.concatenate([_floats(rows, RUN * start, RUN * (start + 1)) for start in np.sort(starts)])
    say(f"training the index {factory} on {len(sample)} descriptors")
    index.train(sample)
    return index


def _lists_of(index: faiss.Index) -> faiss.IndexIVF | None:
    """The inverted file of an index, behind transforms or not; None where its lists cannot be merged on disk."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _lists_of(index.index)
    if not isinstance(index, faiss.IndexIVF) or isinstance(index, faiss.IndexIVFPQR):
        return None
    lists: Any = index.invlists
    return index if isinstance(faiss.downcast_InvertedLists(lists), faiss.ArrayInvertedLists) else None


def _write_blocks(part: Path, rows: Any, block: int) -> list[Path]:
    """Indexes of `block` descriptors each, in files; one is in memory at a time."""
    written: list[Path] = []
    with Progress("index", len(rows)) as progress:
        for start in range(0, len(rows), block):
            values = _floats(rows, start, start + block)
            index = faiss.read_index(str(part / "trained"))
            index.add_with_ids(values, np.arange(start, start + len(values)))
            written.append(part / f"block{len(written):06}")
            faiss.write_index(index, str(written[-1]))
            progress.advance(len(values))
    return written


def _merge(index: faiss.Index, blocks: list[Path], lists: Path) -> None:
    """Move the lists of all blocks into one file, and have the index use it."""
    from faiss.contrib.ondisk import merge_ondisk

    merge_ondisk(index, [str(block) for block in blocks], str(lists))
    for block in blocks:
        block.unlink()


def _seal(path: Path, lists: Path) -> None:
    """Write checksums behind an index, where FAISS does not look: of its lists, and of all that stands before."""
    with open(path, "ab") as file:
        file.write(LABEL + sha256_of(lists).encode())
    seal = LABEL + sha256_of(path).encode()
    with open(path, "ab") as file:
        file.write(seal)


def _floats(rows: Any, start: int, stop: int) -> np.ndarray:
    """Rows start .. stop - 1 as float32 [n, dim]."""
    values = rows[int(start) : int(stop)]
    if isinstance(values, torch.Tensor):
        values = values.float().numpy()
    return np.ascontiguousarray(values, np.float32)
