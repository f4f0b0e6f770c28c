"""Stage 3, descriptors: images -> one descriptor each."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.memory import available_bytes, free_gpu_bytes, out_of_memory_says
from vpr.common.progress import Progress, say
from vpr.data.images import image_size
from vpr.data.reader import ImageReader, SizeGroup, in_batches
from vpr.models.describer import Describer
from vpr.models.local_maps import LocalSink, QuantizedMap, quantized
from vpr.models.local_projection import LocalProjection

LARGEST_AUTOMATIC_BATCH = 256
AUTOMATIC_BATCH_BYTES_CPU = 1 << 30  # more gains nothing there
AUTOMATIC_BATCH_OF_UNKNOWN = 8  # of a model that does not know what an image takes inside
AUTOMATIC_BATCH_STEP_GPU = 8  # what is free there is never quite the same twice; the batch size shall be


class Source(Protocol):
    """Where images come from by index: decoded from files, or as the frozen layers left them."""

    @property
    def files(self) -> Sequence[Path]:
        """The images."""

    @property
    def size(self) -> Sequence[int] | None:
        """(height, width) in pixels to which all were resized; None where each has its own."""

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[list[SizeGroup]]:
        """The images of each batch of indices, in order, as lists of `SizeGroup`."""


@dataclass(frozen=True)
class LocalDescribing:
    """What is done with the local descriptors of images: projected, and written into a sink (in process 0)."""

    projection: LocalProjection | None
    sink: LocalSink


def describe_batch(model: Describer, batch: list[SizeGroup]) -> torch.Tensor:
    """Descriptors [B, dim] of a batch, in the batch's order whatever sizes it mixes."""
    device = model.device
    parts = [
        (model.describe_features if group.frozen else model)(group.values.to(device, non_blocking=True))
        for group in batch
    ]
    order = torch.cat([group.places for group in batch]).argsort().to(device)
    return torch.cat(parts)[order]


def describe_batch_with_local(
    model: Describer, batch: list[SizeGroup], projection: LocalProjection | None
) -> tuple[torch.Tensor, list[QuantizedMap]]:
    """As `describe_batch`, and the local descriptors of each image, in the batch's order."""
    device, parts, maps = model.device, [], list[QuantizedMap]()
    for group in batch:
        values = group.values.to(device, non_blocking=True)
        descriptors, local = model.with_local(values, projection, group.frozen)
        parts.append(descriptors)
        maps += quantized(local)
    order = torch.cat([group.places for group in batch]).argsort()
    return torch.cat(parts)[order.to(device)], [maps[place] for place in order.tolist()]


def _write_in_turn(sink: LocalSink, maps: list[QuantizedMap]) -> None:
    """Write the local descriptors of one batch of each process, in the order of the processes, in process 0.

    After every batch, for those of all images need not fit into memory.
    """
    for part in processes.gather(maps):
        if processes.is_main():
            sink.write(part)


@torch.no_grad()
def describe(
    model: Describer,
    source: Source,
    indices: Sequence[int],
    batch_size: int = 24,
    label: str = "images",
    local: LocalDescribing | None = None,
) -> tuple[torch.Tensor, set[tuple[int, int]]]:
    """Describe images of a source in the order of `indices`.

    With several processes each describes its share of the batches, and process 0 gets them all.

    Args:
        batch_size: images described at once; 0: as many as memory holds.
        label: of the progress bar.
        local: what is done with local descriptors; None: they are dropped.

    Returns:
        float16 [N, dim] on the CPU (complete in process 0 only), and the (height, width) in
        pixels that images had. Float16 moves a squared distance between descriptors of length 1 by
        some 1e-6 and halves the memory.

    Raises:
        UserError: an image cannot be decoded, memory runs out, or the model's output is not finite.
    """
    model.eval()
    descriptors = torch.empty(len(indices), model.dim, dtype=torch.float16)
    batches = in_batches(len(indices), batch_size or automatic_batch_size(model, source))
    own = batches[processes.rank() :: processes.world()]
    sizes: set[tuple[int, int]] = set()
    loaded = source.batches([[indices[place] for place in batch] for batch in own])
    loaded = that_fit(loaded, model)
    with Progress(label, len(indices)) as progress, out_of_memory_says("lower --cacheBatchSize, or give 0"):
        for number, (places, batch) in enumerate(zip(own, loaded, strict=True)):
            if local:
                described, maps = describe_batch_with_local(model, batch, local.projection)
                _write_in_turn(local.sink, maps)
            else:
                described = describe_batch(model, batch)
            descriptors[places.start : places.stop] = described
            sizes.update(group.image_size for group in batch)
            progress.advance(sum(map(len, batches[number * processes.world() : (number + 1) * processes.world()])))
    if local and len(own) < -(-len(batches) // processes.world()):
        _write_in_turn(local.sink, [])  # others had a batch more
    owners = [(slice(batch.start, batch.stop), n % processes.world()) for n, batch in enumerate(batches)]
    processes.gather_rows(descriptors, owners)
    require_finite(descriptors)
    return descriptors, sizes


@torch.no_grad()
def describe_in_batches(
    model: Describer,
    source: Source,
    indices: Sequence[int],
    batch_size: int = 24,
    local: LocalProjection | None = None,
    keep_local: bool = False,
) -> Iterator[tuple[range, torch.Tensor, list[QuantizedMap] | None]]:
    """As `describe`, batch by batch, for those who keep each before the next is described.

    Several processes take turns: each gets its own share of the batches, and nothing is gathered.

    Args:
        local: projects local descriptors; None where the model does.
        keep_local: whether they are wanted.

    Yields:
        where in `indices` the batch stands, its descriptors float16 [b, dim] on the CPU, and its local descriptors.

    Raises:
        UserError: as of `describe`.
    """
    model.eval()
    batches = in_batches(len(indices), batch_size or automatic_batch_size(model, source))
    own = batches[processes.rank() :: processes.world()]
    loaded = that_fit(source.batches([[indices[place] for place in batch] for batch in own]), model)
    with out_of_memory_says("lower --cacheBatchSize, or give 0"):
        for places, batch in zip(own, loaded, strict=True):
            maps = None
            if keep_local:
                described, maps = describe_batch_with_local(model, batch, local)
            else:
                described = describe_batch(model, batch)
            rows = described.to("cpu", torch.float16)
            if not rows.isfinite().all():
                raise UserError("the model gives descriptors that are not finite: training diverged; lower --lr")
            yield range(places.start, places.stop), rows, maps


def require_finite(descriptors: torch.Tensor) -> None:
    """Raise a UserError unless all [N, dim] descriptors of this process are numbers."""
    if processes.is_main() and not all(rows.isfinite().all() for rows in descriptors.split(4096)):
        raise UserError("the model gives descriptors that are not finite: training diverged; lower --lr")


def automatic_batch_size(model: Describer, source: Source) -> int:
    """How many images of the first image's size fit into memory at once (--cacheBatchSize=0).

    The same in all processes, as their shares are counted in batches: what the one with the least room takes.
    """
    if not isinstance(source, ImageReader):  # frozen features are small
        return 64
    height, width = source.size or image_size(source.files[0])
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


def that_fit(batches: Iterable[list[SizeGroup]], model: Describer) -> Iterator[list[SizeGroup]]:
    """The batches, with groups of images cut to what main memory holds beside the model at once.

    A processor's memory ends without an error that could be caught: the kernel kills the process. Half of what is
    free when images of a size come first is taken, shared by the processes of the machine; a GPU and an exported
    model report for themselves, and frozen features are small.

    Raises:
        UserError: there is no room for a single image.
    """
    if model.device.type != "cpu":
        yield from batches
        return
    at_once: dict[tuple[int, int], int] = {}
    for batch in batches:
        parts = []
        for group in batch:
            count = len(group.places)
            if not group.frozen:
                if group.image_size not in at_once:
                    at_once[group.image_size] = images_that_fit(model, group.image_size, count)
                count = at_once[group.image_size]
            cut = zip(group.places.split(count), group.values.split(count), strict=True)
            parts += [group._replace(places=places, values=values) for places, values in cut]
        yield parts


def images_that_fit(model: Describer, size: tuple[int, int], wanted: int) -> int:
    """How many images of (height, width) pixels main memory holds beside the model; says so if fewer than `wanted`.

    Raises:
        UserError: not one.
    """
    shown = f"{size[1]}x{size[0]} pixels"
    each, free = model.bytes_per_image(*size), available_bytes() // processes.local_world()
    if each is None:  # nothing can be reckoned: an exported model reports for itself
        return wanted
    if each > free:
        raise UserError(
            f"an image of {shown} takes {each / 1e9:.1f} GB in the backbone, {free / 1e9:.1f} GB of "
            "memory are free: resize images by --imageSize H W"
        )
    count = max(1, free // 2 // each)
    if count < wanted:
        say(f"memory holds {count} images of {shown} at once, not {wanted}: --imageSize resizes them")
    return count


def describe_sizes(sizes: set[tuple[int, int]], resized: bool, query_longest_side: int | None = None) -> str:
    """Image sizes as width x height in pixels, for result lines; with the queries' longest side where it is bounded."""
    shown = [f"{width}x{height}" for height, width in sorted(sizes)]
    text = shown[0] if len(shown) == 1 else f"{len(shown)} sizes from {shown[0]} to {shown[-1]}"
    queries = f", queries at most {query_longest_side} pixels long" if query_longest_side else ""
    return f"{text} pixels ({'resized' if resized else f'own size{queries}'})"
