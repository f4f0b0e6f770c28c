"""Several processes, one per GPU or per share of the cores, started by torchrun.

Process 0 prints, writes, mines and searches; all describe photos and train. Without torchrun there is
one process and everything here does nothing.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator

# Longer than process 0 may search or mine while the others wait. A process that dies is noticed at once:
# its connections close, and torchrun ends the rest.
LONGEST_WAIT = datetime.timedelta(hours=6)


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """The number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world() -> int:
    """How many processes there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the other processes: nccl between GPUs, gloo between CPUs."""
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def from_main(value: object) -> object:
    """Process 0's `value`, in every process."""
    if world() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, device="cpu")
    return box[0]


def collect(value: object) -> list:
    """Every process's `value`, in the order of the processes; complete in process 0 only."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    values = [None] * world() if is_main() else None
    dist.gather_object(value, values, dst=0)
    return values or [value]


def wait_for_all() -> None:
    """Return when every process is here."""
    if world() > 1:
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.zeros(1))  # on the CPU, unlike dist.barrier, which would claim a GPU


def sums(*values: float) -> list[float]:
    """Each of `values`, summed over all processes."""
    if world() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    totals = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(totals)
    return totals.tolist()


def any_says(value: bool) -> bool:
    """Whether `value` is true in any process."""
    return sums(float(value))[0] > 0


def in_parallel(module):
    """A module whose gradients are averaged over all processes in each backward pass."""
    if world() == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(module)


def collect_rows(rows, owners: list[tuple[slice, int]]) -> None:
    """Bring rows that other processes computed to process 0.

    Args:
        rows: a contiguous CPU tensor [N, dim] in every process; each has filled the rows it owns.
        owners: (rows, process) for all blocks of rows, the same list in every process.
    """
    if world() == 1:
        return
    import torch
    import torch.distributed as dist

    for block, owner in owners:
        if owner == 0:
            continue
        values = rows[block].view(torch.uint8)  # gloo moves bytes of any type
        if rank() == 0:
            dist.recv(values, src=owner)
        elif rank() == owner:
            dist.send(values, dst=0)
