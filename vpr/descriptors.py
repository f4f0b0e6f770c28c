"""Stage 3, descriptors: photos -> one descriptor each."""

import argparse
import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

from vpr import processes
from vpr.errors import UserError
from vpr.images import PhotoReader, SizeGroup, in_batches
from vpr.memory import available_bytes, out_of_memory_says
from vpr.model import PlaceModel, require_size
from vpr.photos import photo_size
from vpr.progress import Progress, say

LARGEST_AUTOMATIC_BATCH = 256
AUTOMATIC_BATCH_BYTES_CPU = 1 << 30  # more gains nothing there


class Source(Protocol):
    """Where photos come from by index: decoded from files, or as the frozen layers left them."""

    files: Sequence[Path]

    def batches(self, batches: Sequence[Sequence[int]]):
        """The photos of each batch of indices, in order, as lists of `SizeGroup`."""


def describe_batch(model: torch.nn.Module, batch: list[SizeGroup], device: torch.device) -> torch.Tensor:
    """Descriptors [B, descriptor_dim] of a batch, in the batch's order whatever sizes it mixes."""
    parts = [
        (model.describe_features if group.frozen else model)(group.values.to(device, non_blocking=True))
        for group in batch
    ]
    order = torch.cat([group.places for group in batch]).argsort().to(device)
    return torch.cat(parts)[order]


@torch.no_grad()
def describe(
    model: PlaceModel,
    source: Source,
    indices: Sequence[int],
    options: argparse.Namespace,
    device: torch.device,
    description: str,
) -> tuple[torch.Tensor, set[tuple[int, int]]]:
    """Describe photos of a source in the order of `indices`.

    With several processes each describes its share of the batches, and process 0 gets them all.

    Returns:
        float16 [N, descriptor_dim] on the CPU (complete in process 0 only), and the (height, width) in
        pixels that photos had. Float16 moves a squared distance between descriptors of length 1 by
        some 1e-6 and halves the memory.

    Raises:
        UserError: a photo cannot be decoded, memory runs out, or the model's output is not finite.
    """
    model.eval()
    descriptors = torch.empty(len(indices), model.descriptor_dim, dtype=torch.float16)
    batches = in_batches(len(indices), options.cacheBatchSize or automatic_batch_size(model, source, device))
    mine = batches[processes.rank() :: processes.world()]
    sizes = set()
    loaded = source.batches([[indices[place] for place in batch] for batch in mine])
    loaded = that_fit(loaded, model, device)
    with Progress(description, len(indices)) as progress, out_of_memory_says("lower --cacheBatchSize, or give 0"):
        for number, (places, batch) in enumerate(zip(mine, loaded, strict=True)):
            descriptors[places.start : places.stop] = describe_batch(model, batch, device)
            sizes.update(group.photo_size for group in batch)
            progress.advance(sum(map(len, batches[number * processes.world() : (number + 1) * processes.world()])))
    owners = [(slice(batch.start, batch.stop), n % processes.world()) for n, batch in enumerate(batches)]
    processes.collect_rows(descriptors, owners)
    require_finite(descriptors)
    return descriptors, sizes


def require_finite(descriptors: torch.Tensor) -> None:
    """Raise a UserError unless all [N, dim] descriptors of this process are numbers."""
    if processes.is_main() and not all(rows.isfinite().all() for rows in descriptors.split(4096)):
        raise UserError("the model gives descriptors that are not finite: training diverged; lower --lr")


def automatic_batch_size(model: PlaceModel, source: Source, device: torch.device) -> int:
    """How many photos of the first photo's size fit into memory at once (--cacheBatchSize=0).

    The same in all processes, as their shares are counted in batches: what the one with the least room takes.
    """
    if not isinstance(source, PhotoReader):  # frozen features are small
        return 64
    if not isinstance(model, PlaceModel):  # an exported model: what it takes inside is not known
        return 8
    size = source.size or photo_size(source.files[0])
    if device.type == "cuda":
        budget = torch.cuda.mem_get_info(device)[0] // 2
    else:
        budget = min(available_bytes() // (4 * processes.local_world()), AUTOMATIC_BATCH_BYTES_CPU)
    count = processes.least(max(1, min(LARGEST_AUTOMATIC_BATCH, budget // bytes_per_photo(model, size))))
    say(f"{count} photos at once")
    return count


def that_fit(
    batches: Iterable[list[SizeGroup]], model: torch.nn.Module, device: torch.device
) -> Iterator[list[SizeGroup]]:
    """The batches, with groups of photos cut to what main memory holds beside the model at once.

    A processor's memory ends without an error that could be caught: the kernel kills the process. Half of what is
    free when photos of a size come first is taken, shared by the processes of the machine; a GPU and an exported
    model report for themselves, and frozen features are small.

    Raises:
        UserError: there is no room for a single photo.
    """
    if device.type != "cpu" or not isinstance(model, PlaceModel):
        yield from batches
        return
    at_once: dict[tuple[int, int], int] = {}
    for batch in batches:
        parts = []
        for group in batch:
            count = len(group.places)
            if not group.frozen:
                if group.photo_size not in at_once:
                    at_once[group.photo_size] = photos_that_fit(model, group.photo_size, count)
                count = at_once[group.photo_size]
            cut = zip(group.places.split(count), group.values.split(count), strict=True)
            parts += [group._replace(places=places, values=values) for places, values in cut]
        yield parts


def photos_that_fit(model: PlaceModel, size: tuple[int, int], wanted: int) -> int:
    """How many photos of (height, width) pixels main memory holds beside the model; says so if fewer than `wanted`.

    Raises:
        UserError: not one.
    """
    shown = f"{size[1]}x{size[0]} pixels"
    each, free = bytes_per_photo(model, size), available_bytes() // processes.local_world()
    if each > free:
        raise UserError(
            f"a photo of {shown} takes {each / 1e9:.1f} GB in the trunk, {free / 1e9:.1f} GB of "
            "memory are free: resize photos by --imageSize H W"
        )
    count = max(1, free // 2 // each)
    if count < wanted:
        say(f"memory holds {count} photos of {shown} at once, not {wanted}: --imageSize resizes them")
    return count


def bytes_per_photo(model: PlaceModel, size: Sequence[int]) -> int:
    """Memory that a photo of (height, width) pixels takes in the trunk: the largest input and output of a layer.

    Raises:
        UserError: the photo is too small for the trunk.
    """
    features = torch.empty(1, 3, *size, device="meta")
    require_size(features, model.smallest_side)
    largest = 4 * features.numel()
    for layer in copy.deepcopy(model.encoder).to("meta"):
        output = layer(features)
        largest = max(largest, (features.numel() + output.numel()) * model.dtype.itemsize)
        features = output
    return largest


def describe_sizes(sizes: set[tuple[int, int]], resized: bool, query_longest_side: int | None = None) -> str:
    """Image sizes as width x height in pixels, for result lines; with the queries' longest side where it is bounded."""
    shown = [f"{width}x{height}" for height, width in sorted(sizes)]
    text = shown[0] if len(shown) == 1 else f"{len(shown)} sizes from {shown[0]} to {shown[-1]}"
    queries = f", queries at most {query_longest_side} pixels long" if query_longest_side else ""
    return f"{text} pixels ({'resized' if resized else f'own size{queries}'})"
