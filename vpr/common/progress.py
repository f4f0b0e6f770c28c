"""Progress that is a bar on a terminal and a few plain lines everywhere else."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from vpr.common.processes import is_main

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0
_shown = contextvars.ContextVar("shown", default=True)  # whether progress is, in this thread


def say(text: str) -> None:
    """Print one line at once, also into a pipe or a log file, without tearing a bar that is drawn.

    With several processes only the first prints.
    """
    if is_main():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


@contextlib.contextmanager
def without_progress() -> Iterator[None]:
    """Show no progress in this thread until the block ends: a server would show that of every request."""
    before = _shown.set(False)
    try:
        yield
    finally:
        _shown.reset(before)


class Progress:
    """Counts `unit`s up to `total`; call `advance(n)` as they are done. Use as a context manager."""

    def __init__(self, description: str, total: int, unit: str = "images"):
        self.description, self.total, self.unit = description, total, unit
        self.done, self.started = 0, time.monotonic()
        self.last_line = self.started
        self.bar, self.shown = None, _shown.get()
        if self.shown and sys.stderr.isatty() and is_main():
            self.bar = tqdm(total=total, desc=description, unit=f" {unit}", leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def advance(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif self.shown and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            say(self.line())

    def line(self) -> str:
        """What was done, of how much, how fast: one line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = self.done / seconds
        return f"{self.description}: {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, {seconds:.0f} s"

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if exception_type is None and self.shown:
            say(self.line())


def track(items: Iterable[Item], description: str, total: int, unit: str = "images") -> Iterator[Item]:
    """Yield `items` while showing how many of `total` are done."""
    with Progress(description, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
