"""Several processes, one per GPU or per share of the cores, started by torchrun.

Process 0 prints, writes, mines and searches; all describe images and train. Without torchrun there is
one process and everything here does nothing.
"""

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from vpr.common.errors import UserError

if TYPE_CHECKING:  # torch takes seconds, and the command line reads this file
    import numpy as np
    import torch

Value = TypeVar("Value")
# Longer than process 0 may search or mine while the others wait. A process that dies is noticed at once:
# its connections close, and torchrun ends the rest.
LONGEST_WAIT = datetime.timedelta(hours=6)

# torch.distributed, while `process_group` holds: torchrun's variables alone may be those of another program's job.
_dist: Any = None


def launched() -> int:
    """How many processes torchrun says it started, whether or not they have joined."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched_rank() -> int:
    """The number that torchrun gave this process, from 0, whether or not it has joined the others."""
    return int(os.environ.get("RANK", 0))


def rank() -> int:
    """The number of this process among those that have joined, from 0."""
    return _dist.get_rank() if _dist else 0


def world() -> int:
    """How many processes have joined: 1 outside of `process_group`."""
    return _dist.get_world_size() if _dist else 1


def local_rank() -> int:
    """The number of this process among those of its machine that have joined, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0)) if _dist else 0


def local_world() -> int:
    """How many processes of this machine have joined."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if _dist else 1


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that torchrun started: nccl between GPUs, gloo between CPUs.
    Raises a UserError: the program around this one has joined its processes already, for work of its own."""
    global _dist
    if launched() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        raise UserError(
            f"these {launched()} processes work together for another program: start main.py by a torchrun of its own, "
            "or use the model by torch.hub"
        )
    # Its functions have the group there is on import as a default argument. Imported later (torch._dynamo does), they
    # would keep the group's threads past the end of Python, where now and then one of them aborts the process.
    import torch.distributed.nn

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=LONGEST_WAIT)
    _dist = dist
    try:
        yield
    finally:
        _dist = None
        dist.destroy_process_group()


def broadcast(value: Value) -> Value:
    """Process 0's `value`, in every process."""
    if world() == 1:
        return value
    import torch

    box = [value]
    _dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(value: object) -> list:
    """Every process's `value`, in the order of the processes; complete in process 0 only."""
    if world() == 1:
        return [value]
    values: list[Any] | None = [None] * world() if is_main() else None
    _dist.gather_object(value, values, dst=0)
    return values or [value]


def gather_everywhere(value: Value) -> list[Value]:
    """Every process's `value`, in the order of the processes, in every process."""
    return broadcast(gather(value))


def of_machine(value: Value) -> Value:
    """The `value` of the first process of this one's machine: what processes that share a disk must agree on."""
    return gather_everywhere(value)[rank() - local_rank()]


def barrier() -> None:
    """Return when every process is here."""
    if world() > 1:
        import torch

        _dist.all_reduce(torch.zeros(1))  # on the CPU, unlike dist.barrier, which would claim a GPU


def all_reduce_sum(*values: float) -> list[float]:
    """Each of `values`, summed over all processes."""
    if world() == 1:
        return list(values)
    import torch

    totals = torch.tensor(values, dtype=torch.float64)
    _dist.all_reduce(totals)
    return totals.tolist()


def all_reduce_min(value: int) -> int:
    """The smallest of all processes' `value`: what each found for itself, and all must agree on."""
    return min(gather_everywhere(value))


def any_process(value: bool) -> bool:
    """Whether `value` is true in any process."""
    return all_reduce_sum(float(value))[0] > 0


def in_parallel(module: "torch.nn.Module", unused_parameters: bool = False) -> "torch.nn.Module":
    """The module itself, or with several processes `with_summed_gradients`."""
    return module if world() == 1 else with_summed_gradients(module, unused_parameters)


def with_summed_gradients(module: "torch.nn.Module", unused_parameters: bool = False) -> "torch.nn.Module":
    """A module whose gradients are summed over all processes of the group there is, in each backward pass.

    Summed, not averaged: each process then differentiates its part of the very loss that one process would have. In
    an average the loss is to be scaled by the number of processes, and unless that is a power of two all that is
    rounded on the way comes out otherwise.
    `unused_parameters`: whether some get no gradient; they are then sought in each step, which takes a while.
    """
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    # DistributedDataParallel reads these annotations, and refuses others.
    def summed(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])

    parallel = DistributedDataParallel(module, find_unused_parameters=unused_parameters)
    parallel.register_comm_hook(None, summed)
    return parallel


def with_everyones(own: "torch.Tensor", counts: list[int]) -> "torch.Tensor":
    """Rows [n, dim] of all processes, in the order of these; only those of this one carry a gradient.
    `counts`: how many rows each process has; those that it has beyond are left out."""
    if world() == 1:
        return own
    import torch

    count = counts[rank()]
    padded = own.new_zeros(max(counts), own.shape[1])
    padded[:count] = own[:count].detach()
    parts = [torch.empty_like(padded) for _ in counts]
    _dist.all_gather(parts, padded)
    parts[rank()] = own
    return torch.cat([part[:each] for part, each in zip(parts, counts, strict=True)])


def gather_rows(rows: "np.ndarray", owners: list[tuple[slice, int]]) -> None:
    """Bring rows that other processes computed to process 0.
    `rows`: contiguous [N, dim] in main memory, in every process; each has filled the rows it owns. `owners`: (rows,
    process) for all blocks of rows, the same list in every process."""
    if world() == 1:
        return
    import torch

    for block, owner in owners:
        values = torch.from_numpy(rows[block]).view(torch.uint8)  # shares its memory; gloo moves bytes of any type
        if owner and rank() == 0:
            _dist.recv(values, src=owner)
        elif owner and rank() == owner:
            _dist.send(values, dst=0)
