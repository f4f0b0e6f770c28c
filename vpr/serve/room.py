"""Memory that requests may take together."""

import contextlib
from collections.abc import Iterator

from vpr.serve.problems import busy


class Room:
    """Counts bytes; for one thread."""

    def __init__(self, most: int) -> None:
        """Bytes that may be taken; a single taker may have more."""
        self._most, self._taken = most, 0

    def take(self, count: int) -> None:
        """Take some. Raises a Problem where they are not free."""
        if self._taken and self._taken + count > self._most:
            raise busy()
        self._taken += count

    def give(self, count: int) -> None:
        """Give them back."""
        self._taken -= count

    @contextlib.contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Take some until the block ends. Raises a Problem where they are not free."""
        self.take(count)
        try:
            yield
        finally:
            self.give(count)
