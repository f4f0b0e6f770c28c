"""Allocator tuning, available memory, and one-line out-of-memory errors."""

import contextlib
import ctypes
import ctypes.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vpr.common.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of mallopt(3), GNU C library
LARGEST_ALLOWED = 32 << 20  # bytes
GPU_ROOM_TO_LEAVE = 1 << 30  # bytes, for what is computed of tensors that lie there


def keep_large_blocks() -> None:
    """Keep freed tensors' memory for the next ones instead of giving it back to the kernel each time.

    On the CPU every layer allocates its output anew, and page faults took a third of a training step.
    Does nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c")).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_ALLOWED)
    mallopt(M_TRIM_THRESHOLD, 1 << 30)


def available_cores() -> int:
    """Processor cores this process may use: fewer than there are in a container or under a scheduler."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_bytes() -> int:
    """Bytes of main memory that can be taken without swapping, within the container's limit."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":") for line in file)
        available = 1024 * int(fields["MemAvailable"].split()[0])
    except OSError:  # not Linux: half of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # of no container, or of one without a limit
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        available = min(available, int((group / "memory.max").read_text()) - int(fields["anon"]))
    return available


def free_gpu_bytes(device: Any) -> int:
    """Bytes of a GPU's memory that can be taken: those that are free, and those PyTorch holds for later tensors."""
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def where_it_fits(values: Any, device: Any) -> Any:
    """A tensor on `device` if that is a GPU with room for it twice and `GPU_ROOM_TO_LEAVE`, else where it is."""
    if device.type == "cuda" and 2 * values.nbytes + GPU_ROOM_TO_LEAVE < free_gpu_bytes(device):
        return values.to(device)
    return values


@contextlib.contextmanager
def out_of_memory_says(remedy: str) -> Iterator[None]:
    """Turn a device's lack of memory into one line."""
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which need not be loaded
            raise
        raise UserError(f"the device has too little memory ({str(error).split('. ')[0]}): {remedy}") from error
