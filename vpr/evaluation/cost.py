"""What describing an image costs in time; a model itself answers for its size and its arithmetic."""

import statistics
from collections.abc import Callable
from time import perf_counter

import torch

WARM_UP = 3


def milliseconds_per_photo(describe: Callable[[torch.Tensor], object], photos: list[torch.Tensor]) -> float:
    """Median time of describing one photo at a time, each uint8 [1, 3, H, W], after a few that do not count."""
    times = []
    for photo in photos[:WARM_UP] + photos:
        started = perf_counter()
        describe(photo)
        times.append(perf_counter() - started)
    return 1000 * statistics.median(times[min(WARM_UP, len(photos)) :])
