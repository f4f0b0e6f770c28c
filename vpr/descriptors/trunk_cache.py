"""What the frozen layers make of each image, computed once and kept: --trunkCache.

With pretrained weights everything below conv5 never changes in a training, and is most of its arithmetic.
A cache is one file of float16 values under --cachePath and, beside it, a JSON file that says what made
it, with a checksum; the latter is written last, so a cache without it is no cache. Names hold hashes of all
that made a cache, and each training writes under a name of its own, so that several may share --cachePath.
"""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpr.common import processes
from vpr.common.device import precision_name
from vpr.common.errors import UserError
from vpr.common.files import flock, read_json, write_json
from vpr.common.memory import available_bytes
from vpr.common.progress import say, track
from vpr.common.provenance import recipe_hash, sha256_of
from vpr.data.places import PlaceImages
from vpr.data.reader import ImageReader
from vpr.descriptors.batches import over_images
from vpr.descriptors.frozen_features import FrozenFeatures
from vpr.models.describer import require_size
from vpr.models.place_model import PlaceModel
from vpr.models.weights import weights_hash

ROOM_TO_LEAVE = 1 << 30  # bytes on the disk
LARGEST_SHARE_OF_MEMORY = 0.5
FORMAT = 2
NEWBORN = 10.0  # seconds within which a file may not be locked yet


class NoTrunkCache(Exception):
    """There is no room for the cache, or its values do not fit into float16; in every process at once."""


def cached_split(
    images: PlaceImages, reader: ImageReader, model: PlaceModel, where: str, folder: Path, batch_size: int | None
) -> ImageReader | FrozenFeatures:
    """As `cached_source`, of a reader of a split's database images, then its queries, or of their views."""
    size = "x".join(map(str, reader.size)) if reader.size else "own"
    name = f"{images.places.name}-{images.places.fingerprint()[:6]}-{size}"
    return cached_source(reader, name, model, where, folder, batch_size)


def cached_source(
    reader: ImageReader,
    name: str,
    model: PlaceModel,
    where: str = "auto",
    folder: Path = Path("cache"),
    batch_size: int | None = None,
) -> ImageReader | FrozenFeatures:
    """The frozen features of a reader's images, from an earlier cache or computed now; or the reader itself.

    The reader comes back where nothing is frozen, where it is off, and where the cache finds no room.

    Args:
        name: of the set of images, for the cache's file.
        where: memory, disk, auto (memory if half of it is enough, else disk) or off.
        folder: of the cache's file.
        batch_size: images at once; 0: as many as memory holds.
    """
    if model.backbone.first_trained == 0 or where == "off":
        return reader
    source = FrozenFeatures(
        reader.files, *_sizes_and_shapes(reader, model), model.backbone.layout == torch.channels_last, model.device,
        reader.size,
    )  # fmt: skip
    if where == "auto":
        where = "memory" if source.stored_bytes < LARGEST_SHARE_OF_MEMORY * available_bytes() else "disk"
    # Several processes of a machine share a file; in memory each would hold its own.
    where = processes.broadcast("disk" if processes.world() > 1 else where)
    said = f"trunk cache: {source.stored_bytes / 1e9:.2f} GB of {len(source.files)} images, "
    try:
        if where == "memory":
            say(f"{said}memory")
            source.values = np.empty(int(source.offsets[-1]), np.float16)
            _fill(source, reader, model, batch_size)
            return source
        wanted = {**_describe(source, model), **reader.applied}
        path = folder / f"trunk_{model.spec.arch}_{name}_{wanted['weights']}_{recipe_hash(wanted)}.float16"
        path, wanted = processes.of_machine((path, wanted))  # one file, whatever each found, such as a time of a file
        say(f"{said}{path}")
        values = _open_whole(path, wanted)
        source.values = _make(source, path, wanted, reader, model, batch_size) if values is None else values
    except NoTrunkCache as error:
        say(f"no trunk cache ({error}): the whole trunk runs each time")
        return reader
    return source


def _sizes_and_shapes(reader: ImageReader, model: PlaceModel) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the images [N, 2] and shapes of their frozen features [N, 3], without computing any."""
    indices = range(len(reader.files))
    shown = indices if reader.size else track(indices, "image sizes", len(indices))
    sizes = np.array([reader.image_size(index) for index in shown]).reshape(-1, 2)
    distinct, which = np.unique(sizes, axis=0, return_inverse=True)
    frozen, shapes = model.backbone.without_data().frozen, []
    for height, width in distinct.tolist():
        require_size(height, width, model.smallest_side)
        shapes.append(frozen(torch.empty(1, 3, height, width, device="meta")).shape[1:])
    return sizes, np.array(shapes, np.int64)[which.reshape(-1)]


def _describe(source: FrozenFeatures, model: PlaceModel) -> dict:
    """What a cache's values depend on."""
    files = hashlib.sha256()
    for file, size in zip(source.files, source.image_sizes.tolist(), strict=True):
        status = file.stat()
        files.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0{size}\n".encode())
    return {
        "format": FORMAT, "weights": weights_hash(model.backbone.frozen),
        "mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist(),
        "precision": precision_name(model.dtype), "layout": str(model.backbone.layout),
        "photos": len(source.files), "files": files.hexdigest(), "bytes": source.stored_bytes,
    }  # fmt: skip


def _open_whole(path: Path, wanted: dict) -> np.ndarray | None:
    """The values of a cache that is there and right; None, in every process at once, where it is not."""
    values = checksum = None
    with contextlib.suppress(OSError, UserError, AttributeError, ValueError):
        description: Any = read_json(path.with_suffix(".json"))
        checksum = description.pop("checksum", None)
        if description == wanted and path.stat().st_size == wanted["bytes"]:
            values = _map(path, wanted)
    if processes.any_process(values is None):
        return None
    damaged = processes.local_rank() == 0 and sha256_of(path) != checksum
    if processes.any_process(damaged):
        say(f"trunk cache: {path} is damaged, its bytes do not fit its checksum: making it again")
        return None
    say(f"trunk cache: {path} is used again")
    return values


def _map(path: Path, wanted: dict) -> np.ndarray:
    """The values in a file, to be read; they stay although the file's name goes to another."""
    return np.memmap(path, np.float16, "r", shape=(wanted["bytes"] // 2,))


def _make(
    source: FrozenFeatures, path: Path, wanted: dict, reader: ImageReader, model: PlaceModel, batch_size: int | None
) -> np.ndarray:
    """Compute a cache into its file; the processes of a machine do so together, each machine by itself."""
    first = processes.local_rank() == 0
    token = processes.broadcast(uuid.uuid4().hex[:12])
    # By process 0's token and the machine's first process: unlike any other training's and machine's.
    unfinished = path.with_name(f".{path.name}.{token}-{processes.rank() - processes.local_rank()}.part")
    with contextlib.ExitStack() as stack:
        failure = _reserve(path, unfinished, wanted["bytes"], stack) if first else None
        if processes.any_process(failure is not None):
            raise NoTrunkCache(failure or "another process found no room")
        source.values = mapped = np.memmap(unfinished, np.float16, "r+", shape=(wanted["bytes"] // 2,))
        _fill(source, reader, model, batch_size)
        mapped.flush()
        values = _map(unfinished, wanted)
        processes.barrier()
        if first:
            checksum = sha256_of(unfinished)
            os.replace(unfinished, path)
            write_json(path.with_suffix(".json"), {**wanted, "checksum": checksum})
    processes.barrier()
    return values


def _reserve(path: Path, unfinished: Path, count: int, stack: contextlib.ExitStack) -> str | None:
    """Remove stale caches and give the new file its bytes, so that the disk cannot fill up later.

    At the end of `stack` the file's lock goes, and the file unless it has another name by then.
    Returns why there is no room, or None.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        free = shutil.disk_usage(path.parent).free
        if free < count + ROOM_TO_LEAVE:
            return (
                f"{count / 1e9:.2f} GB and {ROOM_TO_LEAVE / 1e9:.0f} GB to spare are wanted, {free / 1e9:.2f} GB are "
                f"free under {path.parent}; --cachePath names another disk"
            )
        file = stack.enter_context(open(unfinished, "wb"))  # noqa: SIM115 - the stack closes it
        stack.callback(unfinished.unlink, missing_ok=True)
        flock(file, wait=True)  # until this process ends, however it ends: see _remove_stale
        os.posix_fallocate(file.fileno(), 0, count)
    except OSError as error:
        return str(error)
    return None


def _remove_stale(path: Path) -> None:
    """Remove caches of the same images' set and weights that are made of other files or otherwise, and leftovers.

    A training that has mapped one keeps it. Leftovers are unfinished files that no process holds a lock on: of
    trainings that were killed. A file of an earlier version, without hashes in its name, may mix two trainings.
    """
    kin = path.stem.rsplit("_", 1)[0] + "_"
    earlier = path.stem.rsplit("_", 2)[0]
    for file in list(path.parent.iterdir()):
        if file.suffix in (".float16", ".json") and (file.stem.startswith(kin) or file.stem == earlier):
            file.unlink(missing_ok=True)
        elif file.suffix == ".part" and file.name.startswith(f".{earlier}"):
            with contextlib.suppress(OSError), open(file, "rb") as other:
                if flock(other) and time.time() - file.stat().st_mtime > NEWBORN:
                    file.unlink(missing_ok=True)


def _fill(source: FrozenFeatures, reader: ImageReader, model: PlaceModel, batch_size: int | None) -> None:
    """Compute this process's share, every machine all; NoTrunkCache where a value is too large for float16."""
    fits = True
    for image, feature in over_images(
        lambda images: model.of_array(lambda values: model.frozen_features(values).half(), images),
        model, reader, range(len(source.files)), batch_size, "trunk cache", one_machine=True,
    ):  # fmt: skip
        fits = fits and bool(np.isfinite(feature).all())
        source.features(image)[...] = feature
    if processes.any_process(not fits):
        raise NoTrunkCache("the frozen layers' values exceed float16")
