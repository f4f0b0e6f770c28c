"""Time and memory that a piece of work takes."""

import gc
import multiprocessing
import os
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter

SAMPLE_EVERY = 0.001  # seconds
RESET_SLACK = 1 << 20  # bytes; the kernel counts resident pages per thread and adds them up now and then


@dataclass(frozen=True)
class Timing:
    """Seconds that a piece of work took: the median, the fastest and the slowest of `repeats` runs."""

    median: float
    low: float
    high: float
    repeats: int


def time_of(
    work: Callable[[], object],
    repeats: int = 5,
    warmup: int = 1,
    synchronize: Callable[[], None] | None = None,
) -> Timing:
    """Time a piece of work.

    Args:
        warmup: runs before those that count.
        synchronize: waits for a device that works behind the caller's back, such as torch.cuda.synchronize.
    """
    for _ in range(warmup):
        work()
    return _timing([_seconds(work, synchronize) for _ in range(repeats)])


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    repeats: int = 5,
    warmup: int = 1,
    synchronize: Callable[[], None] | None = None,
) -> tuple[Timing, Timing]:
    """Time two pieces of work in turn: `compare_all` of two."""
    first_timing, second_timing = compare_all([first, second], repeats, warmup, synchronize)
    return first_timing, second_timing


def compare_all(
    works: Sequence[Callable[[], object]],
    repeats: int = 5,
    warmup: int = 1,
    synchronize: Callable[[], None] | None = None,
) -> list[Timing]:
    """Time pieces of work in turn, so that a machine that is slow for a while is slow for all.

    Args: as of `time_of`.
    """
    for _ in range(warmup):
        for work in works:
            work()
    seconds = [[] for _ in works]
    for number in range(repeats):
        # Who begins alternates too: the second finds the caches as the first has left them.
        order = range(len(works)) if number % 2 == 0 else reversed(range(len(works)))
        for which in order:
            seconds[which].append(_seconds(works[which], synchronize))
    return [_timing(each) for each in seconds]


def peak_memory(work: Callable[[], object], by_sampling: bool | None = None) -> int:
    """Bytes by which this process's resident memory, at its peak, rises above where it stood before the work.

    Taken from the kernel's own record of the peak, or from a thread that looks every millisecond where
    that record cannot be reset. Linux only. Worker processes are not counted. The C allocator keeps freed
    blocks, so that a second call may show no rise: `peak_memory_alone` starts from a clean slate.

    Args:
        by_sampling: take the thread (True); None takes it where the kernel's record cannot be reset.
    """
    gc.collect()
    if not by_sampling and _reset_peak():
        before = _status_bytes("VmRSS")
        work()
        return max(0, _status_bytes("VmHWM") - before)
    before = _resident_bytes()
    with _PeakSampler() as sampler:
        result = work()
        sampler.look()
        del result  # kept until now, so that what it holds is seen at least once
    return max(0, sampler.peak - before)


def peak_memory_alone(target: Callable, *arguments: object) -> int:
    """`peak_memory` of the work that target(*arguments) prepares and returns, in a fresh process.

    What imports and preparation take is not counted.

    Args:
        target: importable by name, since the process is spawned; arguments can be pickled.

    Raises:
        RuntimeError: the target failed or its process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_alone, args=(sender, target, arguments))
    process.start()
    sender.close()  # the child's copy alone keeps the pipe open, so that its death ends recv
    try:
        answer = receiver.recv()
    except EOFError:
        answer = "its process died"
    process.join()
    if isinstance(answer, str):
        raise RuntimeError(f"{target!r} could not be measured: {answer} (exit code {process.exitcode})")
    return answer


def cuda_peak_memory(work: Callable[[], object], device) -> int:
    """Bytes by which tensors on a CUDA device, at their peak, rise above where they stood before the work."""
    import torch

    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class _PeakSampler:
    """While entered, a thread that keeps the highest resident memory it has seen in `peak`, in bytes."""

    def __init__(self):
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_PeakSampler":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        self.peak = max(self.peak, _resident_bytes())

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY):
            self.look()


def _seconds(work: Callable[[], object], synchronize: Callable[[], None] | None) -> float:
    if synchronize:
        synchronize()
    started = perf_counter()
    work()
    if synchronize:
        synchronize()
    return perf_counter() - started


def _timing(seconds: list[float]) -> Timing:
    return Timing(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def _reset_peak() -> bool:
    """Set the kernel's record of this process's peak back to what is resident now; False where that fails."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        # Some sandboxes take the write and do nothing.
        return _status_bytes("VmHWM") <= _status_bytes("VmRSS") + RESET_SLACK
    except (OSError, KeyError):
        return False


def _status_bytes(field: str) -> int:
    """A field such as VmRSS of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file)
    return 1024 * int(fields[field].split()[0])


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _measure_alone(sender: Connection, target: Callable, arguments: tuple) -> None:
    try:
        sender.send(peak_memory(target(*arguments)))
    except Exception as error:
        sender.send(f"{type(error).__name__}: {error}")
