"""Work of seconds, done a step at a time, so that short work gets its turn in between."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

Pause = Callable[[], None]
Work = Callable[[Pause], Any]


def no_pause() -> None:
    """For work that nothing else waits for."""


@dataclass(eq=False)
class Job:
    """Work that calls `pause` where it can be interrupted. It runs in a thread of its own, but only during `step`."""

    work: Work
    client: str  # whose it is
    is_short: bool = False  # whether it comes before other work of its client
    # Has the result. Where it is cancelled, the work ends at its next pause.
    future: Future = field(default_factory=Future)
    began: float = 0.0  # when its first step began; 0: it has not
    is_begun: bool = False
    is_done: bool = False
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _paused: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def step(self) -> None:
        """Do the work up to its next pause, or to its end."""
        if not self.is_begun:
            self.is_begun = True
            threading.Thread(target=self._run, name="long work", daemon=True).start()
        self._go.release()
        self._paused.acquire()

    def _run(self) -> None:
        self._go.acquire()
        result, failed = None, None
        try:
            if not self.future.cancelled():
                result = self.work(self._pause)
        except BaseException as error:  # whatever it is, somebody waits for it
            failed = error
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(failed) if failed else self.future.set_result(result)
        self.is_done = True
        self._paused.release()

    def _pause(self) -> None:
        self._paused.release()
        self._go.acquire()
        if self.future.cancelled():
            raise CancelledError


class Lines:
    """Jobs that wait or have begun, a line for each client.

    Clients take turns, step by step, however many jobs each has. In a line short jobs come first, then those that came
    first: so one long job of each client has begun at most.
    """

    def __init__(self) -> None:
        self._lines: dict[str, list[Job]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, job: Job) -> None:
        """Put a job at the end of its client's line."""
        self._lines.setdefault(job.client, []).append(job)

    def next(self) -> Job | None:
        """Whose turn it is."""
        if not self._lines:
            return None
        client = next(iter(self._lines))
        line = self._lines[client] = self._lines.pop(client)  # the last from now on
        return min(line, key=lambda job: not job.is_short)

    def drop(self, job: Job) -> None:
        """Take a job out."""
        line = self._lines[job.client]
        line.remove(job)
        if not line:
            del self._lines[job.client]
