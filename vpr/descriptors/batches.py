"""The network over many images: batches that fit into memory, each process its share of them, with progress."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.memory import available_bytes, free_gpu_bytes, out_of_memory_says
from vpr.common.progress import Progress, say
from vpr.data.reader import ImageReader, SizeGroup, in_batches
from vpr.models.describer import Describer

LARGEST_AUTOMATIC_BATCH = 256
AUTOMATIC_BATCH_BYTES_CPU = 1 << 30  # more gains nothing there
# Without --cacheBatchSize, on a processor: the maps of a layer's input and output together. The C library takes a map
# above 32 MB from the kernel anew each time (`vpr.common.memory.keep_large_blocks`), which then clears its pages: of
# EfficientNet-Lite0 at 320x320 pixels, whose maps have 10 MB an image, 24 images at once took several times as long.
USUAL_BATCH, USUAL_BATCH_BYTES_CPU = 24, 64 << 20
AUTOMATIC_BATCH_OF_UNKNOWN = 8  # of a model that does not know what an image takes inside
AUTOMATIC_BATCH_STEP_GPU = 8  # what is free there is never quite the same twice; the batch size shall be

Batch = list[SizeGroup]
Value = TypeVar("Value")


class Source(Protocol):
    """Where images come from by index: decoded from files, or as the frozen layers left them."""

    @property
    def files(self) -> Sequence[Path]: ...
    @property
    def size(self) -> Sequence[int] | None: ...  # (height, width) in pixels of all; None where each has its own
    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The images of each batch of indices, in order."""


class Shares:
    """Batches dealt out in turn to the processes that share the work, as ranges of positions in a list of images.
    `batch_size`: images at once; 0: as many as memory holds; None: as many as are fast. `one_machine`: whether every
    machine does all of the work, by its own processes."""

    def __init__(
        self, model: Describer, source: Source, images: int, batch_size: int | None, one_machine: bool = False
    ):
        rank, count = processes.rank(), processes.world()
        if one_machine:
            rank, count = processes.local_rank(), processes.local_world()
        batches = in_batches(images, batch_size or _batch_size(model, source, batch_size))
        self.own = batches[rank::count]  # the batches of this process
        # How many images all processes together do, each of them one batch.
        self.rounds = [sum(map(len, batches[start : start + count])) for start in range(0, len(batches), count)]
        # The positions of each batch, and the process that does it.
        self.owners = [(slice(batch.start, batch.stop), n % count) for n, batch in enumerate(batches)]


def over_batches(
    compute: Callable[[Batch], Value],
    model: Describer,
    source: Source,
    indices: Sequence[int],
    shares: Shares,
    label: str | None = None,
) -> Iterator[tuple[range, Batch, Value]]:
    """Positions in `indices` of each batch of this process's share, the batch, and what a model computes of it.
    `compute`: of a batch, whose groups are no larger than memory holds at once. `label`: of the progress bar, which
    counts the images of all processes; None: none is shown.
    Raises a UserError: an image cannot be decoded, or memory runs out."""
    model.eval()
    loaded = that_fit(source.batches([[indices[position] for position in batch] for batch in shares.own]), model)
    shown = Progress(label, len(indices)) if label else contextlib.nullcontext()
    with shown as progress, out_of_memory_says("lower --cacheBatchSize, or give 0"):
        for number, (where, batch) in enumerate(zip(shares.own, loaded, strict=True)):
            yield where, batch, compute(batch)
            if progress:
                progress.advance(shares.rounds[number])


def over_images(
    compute: Callable[[np.ndarray], np.ndarray],
    model: Describer,
    source: Source,
    indices: Sequence[int],
    batch_size: int | None,
    label: str,
    one_machine: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """The position in `indices` of each image of this process's share, and what a model computes of it.
    `compute`: of images of one size, uint8 [b, 3, H, W]. `batch_size` and `one_machine`: as of `Shares`."""

    def of_batch(batch: Batch) -> list[np.ndarray]:
        joined = [value for group in batch for value in compute(group.values)]
        return [joined[at] for at in order_of(batch).tolist()]

    shares = Shares(model, source, len(indices), batch_size, one_machine)
    for where, _, values in over_batches(of_batch, model, source, indices, shares, label):
        yield from zip(where, values, strict=True)


def order_of(batch: Batch) -> np.ndarray:
    """Where each image of a batch is among those of its groups, one group after the other; int64 [B]."""
    return np.concatenate([group.rows for group in batch]).argsort()


def _batch_size(model: Describer, source: Source, wanted: int | None) -> int:
    """How many images at once, where nobody says a number."""
    if wanted == 0:
        return automatic_batch_size(model, source)
    if model.device.type != "cpu" or not isinstance(source, ImageReader):
        return USUAL_BATCH
    each = model.bytes_per_image(*source.image_size(0)) if source.files else None
    return USUAL_BATCH if each is None else max(1, min(USUAL_BATCH, USUAL_BATCH_BYTES_CPU // each))


def automatic_batch_size(model: Describer, source: Source) -> int:
    """How many images of the first image's size fit into memory at once (--cacheBatchSize=0).

    The same in all processes, as their shares are counted in batches: what the one with the least room takes.
    """
    if not isinstance(source, ImageReader):  # frozen features are small
        return 64
    height, width = source.image_size(0)
    each = model.bytes_per_image(height, width)
    if each is None:
        return AUTOMATIC_BATCH_OF_UNKNOWN
    if model.device.type == "cuda":
        fitting = free_gpu_bytes(model.device) // 2 // each
        fitting -= fitting % AUTOMATIC_BATCH_STEP_GPU if fitting > AUTOMATIC_BATCH_STEP_GPU else 0
    else:
        fitting = min(available_bytes() // (4 * processes.local_world()), AUTOMATIC_BATCH_BYTES_CPU) // each
    count = processes.all_reduce_min(max(1, min(LARGEST_AUTOMATIC_BATCH, fitting)))
    say_of_batch(count)
    return count


@functools.cache  # said again when it is another
def say_of_batch(count: int) -> None:
    say(f"{count} images at once")


def that_fit(batches: Iterable[Batch], model: Describer) -> Iterator[Batch]:
    """The batches, with groups of images cut to what main memory holds beside the model at once.

    Main memory ends without an error that could be caught: the kernel kills the process. Half of what is free when
    images of a size come first is taken, shared by the processes of the machine. A GPU reports for itself, and frozen
    features are small. Raises a UserError: there is no room for a single image.
    """
    counts: dict[tuple[int, int], int] = {}
    for batch in batches:
        parts: Batch = []
        for group in batch:
            if model.device.type != "cpu" or group.frozen:
                parts.append(group)
                continue
            if group.image_size not in counts:
                counts[group.image_size] = images_that_fit(model, group.image_size, len(group.values))
            parts += cut(group, counts[group.image_size])
        yield parts


def cut(group: SizeGroup, count: int) -> list[SizeGroup]:
    """Images of one size in parts of at most `count`."""
    pieces = [slice(start, start + count) for start in range(0, len(group.rows), count)]
    return [group._replace(rows=group.rows[piece], values=group.values[piece]) for piece in pieces]


def images_that_fit(model: Describer, size: tuple[int, int], wanted: int) -> int:
    """How many images of (height, width) pixels main memory holds beside the model; says so if fewer than `wanted`.

    That is not known of an exported model, which reports for itself. Raises a UserError where there is no room for one.
    """
    shown = f"{size[1]}x{size[0]} pixels"
    each, free = model.bytes_per_image(*size), available_bytes() // processes.local_world()
    if each is None:
        return wanted
    if each > free:
        raise UserError(
            f"an image of {shown} takes {each / 1e9:.1f} GB in the backbone, {free / 1e9:.1f} GB of "
            "memory are free: resize images by --imageSize H W"
        )
    if (count := max(1, free // 2 // each)) < wanted:
        say(f"memory holds {count} images of {shown} at once, not {wanted}: --imageSize resizes them")
    return count
