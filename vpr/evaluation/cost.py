"""What describing an image costs in time; a model itself answers for its size and its arithmetic."""

import statistics
from collections.abc import Callable
from time import perf_counter

import torch

WARM_UP = 3


def milliseconds_per_image(
    describe: Callable[[torch.Tensor], object],
    images: list[torch.Tensor],
    clock: Callable[[], float] = perf_counter,
) -> float:
    """Median time of describing one image at a time, each uint8 [1, 3, H, W], after a few that do not count.

    Args:
        clock: seconds since any moment.
    """
    times = []
    for image in images[:WARM_UP] + images:
        started = clock()
        describe(image)
        times.append(clock() - started)
    return 1000 * statistics.median(times[min(WARM_UP, len(images)) :])
