"""Images -> one descriptor each, and their local descriptors where these are wanted."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vpr.common import processes
from vpr.common.errors import UserError
from vpr.data.reader import in_batches
from vpr.descriptors.batches import Batch, Shares, Source, order_of, over_batches
from vpr.descriptors.local_maps import LocalSink, QuantizedMap, quantized
from vpr.models.describer import Describer
from vpr.models.local_projection import LocalProjection


@dataclass(frozen=True)
class LocalDescribing:
    """What is done with the local descriptors of images: projected, and written into a sink (in process 0)."""

    projection: LocalProjection | None
    sink: LocalSink


def describe_batch(model: Describer, batch: Batch) -> np.ndarray:
    """Descriptors float16 [B, dim] of a batch, in the batch's order whatever sizes it mixes."""
    return np.concatenate([model.describe(group.values, group.frozen) for group in batch])[order_of(batch)]


def describe_batch_with_local(
    model: Describer, batch: Batch, projection: LocalProjection | None
) -> tuple[np.ndarray, list[QuantizedMap]]:
    """As `describe_batch`, and the local descriptors of each image, in the batch's order."""
    order, parts, maps = order_of(batch), [], list[QuantizedMap]()
    for group in batch:
        descriptors, local = model.describe_with_local(group.values, projection, group.frozen)
        parts.append(descriptors)
        maps += quantized(local)
    return np.concatenate(parts)[order], [maps[at] for at in order.tolist()]


def _described(
    model: Describer, projection: LocalProjection | None, keep_local: bool, batch: Batch
) -> tuple[np.ndarray, list[QuantizedMap]]:
    """Descriptors float16 [B, dim] of a batch, and its local descriptors where these are kept."""
    return describe_batch_with_local(model, batch, projection) if keep_local else (describe_batch(model, batch), [])


def _write_in_turn(sink: LocalSink, maps: list[QuantizedMap]) -> None:
    """Write one batch of each process, in process 0; those of all images together need not fit into memory."""
    for part in processes.gather(maps):
        if processes.is_main():
            sink.write(part)


def describe(
    model: Describer,
    source: Source,
    indices: Sequence[int],
    batch_size: int | None = None,
    label: str = "images",
    local: LocalDescribing | None = None,
) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Describe images of a source in the order of `indices`.

    With several processes each describes its share of the batches, and process 0 gets them all.
    Raises a UserError: an image cannot be decoded, memory runs out, or the model's output is not finite.

    Args:
        batch_size: images described at once; 0: as many as memory holds.
        local: what is done with local descriptors; None: they are dropped.

    Returns:
        float16 [N, dim] (complete in process 0 only), and the (height, width) in pixels that images had.
    """
    descriptors = np.empty((len(indices), model.dim), np.float16)
    sizes: set[tuple[int, int]] = set()
    shares = Shares(model, source, len(indices), batch_size)
    compute = functools.partial(_described, model, local.projection if local else None, local is not None)
    for where, batch, (rows, maps) in over_batches(compute, model, source, indices, shares, label):
        descriptors[where.start : where.stop] = rows
        sizes.update(group.image_size for group in batch)
        if local:
            _write_in_turn(local.sink, maps)
    if local and len(shares.own) < len(shares.rounds):
        _write_in_turn(local.sink, [])  # others had a batch more
    processes.gather_rows(descriptors, shares.owners)
    if processes.is_main():
        require_finite(descriptors)
    return descriptors, sizes


def describe_in_batches(
    model: Describer,
    source: Source,
    indices: Sequence[int],
    batch_size: int | None = None,
    local: LocalProjection | None = None,
    keep_local: bool = False,
) -> Iterator[tuple[range, np.ndarray, list[QuantizedMap] | None]]:
    """As `describe`, batch by batch, for those who keep each before the next is described.

    Each of several processes gets its own share of the batches, and nothing is gathered.

    Args:
        local: projects local descriptors; None where the model does.
        keep_local: whether they are wanted.

    Yields:
        the batch's positions in `indices`, its descriptors float16 [b, dim], and its local descriptors.
    """
    shares = Shares(model, source, len(indices), batch_size)
    compute = functools.partial(_described, model, local, keep_local)
    for where, _, (rows, maps) in over_batches(compute, model, source, indices, shares):
        require_finite(rows)
        yield where, rows, maps if keep_local else None


def require_finite(descriptors: np.ndarray) -> None:
    """Raise a UserError unless all of [N, dim] descriptors are finite."""
    if not all(np.isfinite(descriptors[rows]).all() for rows in in_batches(len(descriptors), 4096)):
        raise UserError("the model gives descriptors that are not finite: training diverged; lower --lr")


def describe_sizes(sizes: set[tuple[int, int]], resized: bool, query_longest_side: int | None = None) -> str:
    """Image sizes as width x height in pixels, for result lines; with the queries' longest side where it is bounded."""
    shown = [f"{width}x{height}" for height, width in sorted(sizes)]
    text = shown[0] if len(shown) == 1 else f"{len(shown)} sizes from {shown[0]} to {shown[-1]}"
    queries = f", queries at most {query_longest_side} pixels long" if query_longest_side else ""
    return f"{text} pixels ({'resized' if resized else f'own size{queries}'})"
