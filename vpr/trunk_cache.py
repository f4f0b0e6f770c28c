"""What the frozen layers make of each photo, computed once and kept: --trunkCache.

With pretrained weights everything below conv5 never changes in a training, and is most of its arithmetic.
A cache is one file of float16 values under --cachePath and, beside it, a JSON file that says what made
it; the latter is written last, so a cache without it is no cache.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from vpr import processes
from vpr.descriptors import automatic_batch_size, that_fit
from vpr.encoder import weights_hash
from vpr.errors import UserError
from vpr.files import read_json, write_json
from vpr.images import PhotoReader, SizeGroup, group_by_size, in_batches, photo_size
from vpr.memory import available_bytes
from vpr.model import PlaceModel
from vpr.precision import precision_name
from vpr.progress import Progress, say, track

ROOM_TO_LEAVE = 1 << 30  # bytes on the disk
LARGEST_SHARE_OF_MEMORY = 0.5
FORMAT = 1


class FrozenFeatures:
    """The frozen layers' output for each photo of a list of files; yields batches as `PhotoReader` does.

    Attributes:
        files: the photos.
        values: float16, all features one after the other; in memory or mapped from a file.
        offsets: int64 [N + 1], where each photo's features begin.
        shapes: int64 [N, 3], their C, h, w.
        photo_sizes: int64 [N, 2], height and width of the photos in pixels.
        device: where the features are wanted.
        layout: how a photo's features lie in `values`: [h, w, C] with channels last, else [C, h, w].
    """

    def __init__(
        self,
        files: Sequence[Path],
        photo_sizes: np.ndarray,
        shapes: np.ndarray,
        layout: torch.memory_format,
        device: torch.device,
    ):
        self.files, self.photo_sizes, self.shapes, self.layout = files, photo_sizes, shapes, layout
        self.device = device
        self.offsets = np.concatenate([[0], np.cumsum(shapes.prod(axis=1))])
        self.values = torch.empty(0, dtype=torch.float16)

    @property
    def stored_bytes(self) -> int:
        """Size of `values` in bytes."""
        return 2 * int(self.offsets[-1])

    def features(self, index: int) -> torch.Tensor:
        """Photo `index`'s features as a view [C, h, w]."""
        channels, height, width = self.shapes[index].tolist()
        flat = self.values[self.offsets[index] : self.offsets[index + 1]]
        if self.layout == torch.contiguous_format:
            return flat.view(channels, height, width)
        return flat.view(height, width, channels).permute(2, 0, 1)

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """The features of each batch of indices, in order, read one batch ahead of the caller."""
        with ThreadPoolExecutor(1) as reader:
            upcoming = None
            for batch in batches:
                current, upcoming = upcoming, reader.submit(self._read, batch)
                if current is not None:
                    yield current.result()
            if upcoming is not None:
                yield upcoming.result()

    def _read(self, batch: Sequence[int]) -> list[SizeGroup]:
        features = [self.features(index) for index in batch]
        groups = group_by_size(features, [tuple(self.photo_sizes[index].tolist()) for index in batch])
        if self.device.type != "cuda":
            return groups
        return [group._replace(values=group.values.pin_memory()) for group in groups]


def cached_source(
    reader: PhotoReader, name: str, model: PlaceModel, options: argparse.Namespace, device: torch.device
) -> PhotoReader | FrozenFeatures:
    """The frozen features of a reader's photos, from an earlier cache or computed now; or the reader itself.

    The reader comes back where nothing is frozen, with --trunkCache=off, and where the cache finds no room.

    Args:
        name: of the set of photos, for the cache's file.
    """
    if model.first_trained == 0 or options.trunkCache == "off":
        return reader
    source = FrozenFeatures(reader.files, *_sizes_and_shapes(reader, model), model.layout, device)
    kind = processes.from_main(_memory_or_disk(source, options.trunkCache))
    path = Path(options.cachePath) / f"trunk_{options.arch}_{name}.float16"
    say(f"trunk cache: {source.stored_bytes / 1e9:.2f} GB of {len(source.files)} photos, "
        f"{kind if kind == 'memory' else path}")  # fmt: skip
    try:
        if kind == "memory":
            source.values = torch.empty(int(source.offsets[-1]), dtype=torch.float16)
            _fill(source, reader, model, options, device)
        else:
            _open_or_make(source, path, reader, model, options, device)
    except NoTrunkCache as error:
        say(f"no trunk cache ({error}): the whole trunk runs each time")
        return reader
    return source


class NoTrunkCache(Exception):
    """There is no room for the cache, or its values do not fit into float16; in every process at once."""


def _memory_or_disk(source: FrozenFeatures, asked: str) -> str:
    """Where the cache goes. Several processes of a machine share a file; in memory each would hold its own."""
    if processes.world() > 1:
        return "disk"
    if asked == "auto":
        return "memory" if source.stored_bytes < LARGEST_SHARE_OF_MEMORY * available_bytes() else "disk"
    return asked


def _sizes_and_shapes(reader: PhotoReader, model: PlaceModel) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the photos [N, 2] and shapes of their frozen features [N, 3], without computing any."""
    if reader.size:
        sizes = np.tile(reader.size, (len(reader.files), 1))
    else:
        sizes = np.array([photo_size(file) for file in track(reader.files, "photo sizes", len(reader.files))])
    distinct, which = np.unique(sizes, axis=0, return_inverse=True)
    frozen = model.frozen_layers_without_data()
    shapes = [frozen(torch.empty(1, 3, *size.tolist(), device="meta")).shape[1:] for size in distinct]
    return sizes, np.array(shapes, np.int64)[which.reshape(-1)]


def _describe(source: FrozenFeatures, model: PlaceModel) -> dict:
    """What a cache's values depend on."""
    files = hashlib.sha256()
    for file, size in zip(source.files, source.photo_sizes.tolist(), strict=True):
        status = file.stat()
        files.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0{size}\n".encode())
    return {
        "format": FORMAT,
        "weights": weights_hash(model.encoder[: model.first_trained]),
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "precision": precision_name(model.dtype),
        "layout": str(source.layout),
        "photos": len(source.files),
        "files": files.hexdigest(),
        "bytes": source.stored_bytes,
    }


def _description_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _open_or_make(
    source: FrozenFeatures,
    path: Path,
    reader: PhotoReader,
    model: PlaceModel,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Map the cache file of this machine; its processes make it together unless it is there and right."""
    wanted = _describe(source, model)
    length = int(source.offsets[-1])
    if processes.any_says(not _is_whole(path, wanted)):
        unfinished = path.with_name(f".{path.name}.part")
        try:
            failure = _reserve(path, unfinished, source.stored_bytes) if processes.local_rank() == 0 else None
            if processes.any_says(failure is not None):
                raise NoTrunkCache(failure or "another process found no room")
            mapped = np.memmap(unfinished, np.float16, "r+", shape=(length,))
            source.values = torch.from_numpy(mapped)
            _fill(source, reader, model, options, device)
            mapped.flush()
            processes.wait_for_all()
            if processes.local_rank() == 0:
                os.replace(unfinished, path)
                write_json(_description_file(path), wanted)
        finally:
            if processes.local_rank() == 0:
                with contextlib.suppress(OSError):
                    unfinished.unlink()
        processes.wait_for_all()
    else:
        say(f"trunk cache: {path} is used again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch has no read-only tensors; nothing writes here
        source.values = torch.from_numpy(np.memmap(path, np.float16, "r", shape=(length,)))


def _is_whole(path: Path, wanted: dict) -> bool:
    """Whether the cache at `path` is there, complete, and made of the same photos by the same layers."""
    try:
        return path.stat().st_size == wanted["bytes"] and read_json(_description_file(path)) == wanted
    except (OSError, UserError):
        return False


def _reserve(path: Path, unfinished: Path, count: int) -> str | None:
    """Remove a stale cache and give the new file its bytes, so that the disk cannot fill up later.

    Returns:
        why there is no room, or None.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _description_file(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < count + ROOM_TO_LEAVE:
            return (
                f"{count / 1e9:.2f} GB and {ROOM_TO_LEAVE / 1e9:.0f} GB to spare are wanted, {free / 1e9:.2f} GB are "
                f"free under {path.parent}; --cachePath names another disk"
            )
        with open(unfinished, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, count)
    except OSError as error:
        return str(error)
    return None


@torch.no_grad()
def _fill(
    source: FrozenFeatures,
    reader: PhotoReader,
    model: PlaceModel,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Compute this process's share of the features; every machine makes all of them.

    Raises:
        NoTrunkCache: a value is too large for float16.
    """
    model.eval()
    batches = in_batches(len(source.files), options.cacheBatchSize or automatic_batch_size(model, reader, device))
    share, fits = batches[processes.local_rank() :: processes.local_world()], True
    with Progress("trunk cache", sum(map(len, share))) as progress:
        for photos, batch in zip(share, that_fit(reader.batches(share), model, device), strict=True):
            for group in batch:
                features = model.frozen_features(group.values.to(device, non_blocking=True)).half().cpu()
                fits = fits and bool(features.isfinite().all())
                for place, feature in zip(group.places.tolist(), features, strict=True):
                    source.features(photos[place]).copy_(feature)
            progress.advance(len(photos))
    if processes.any_says(not fits):
        raise NoTrunkCache("the frozen layers' values exceed float16")
