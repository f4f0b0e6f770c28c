"""Sessions of cameras by name, whose frames are taken one after the other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from time import monotonic

from vpr.retrieval.conditions.session import RULE, Session

MOST, SECONDS = 1000, 600.0  # sessions that are kept, and how long each is without a frame
BYTES = 256 << 20  # of their descriptors and sums, by which there may be fewer; and of the frames that were seen before


class Sessions:
    """Those of the last minutes, in memory alone; for one thread."""

    def __init__(self, dim: int) -> None:
        """Of descriptors of so many dimensions."""
        self._most = max(1, min(MOST, BYTES // (4 * dim * (RULE.length + 2))))
        # Each with the turn of its requests and when the last came; the one that is longest without in front.
        self._kept: dict[str, tuple[Session, asyncio.Lock, float]] = {}

    @contextlib.asynccontextmanager
    async def turn(self, name: str | None) -> AsyncIterator[Session | None]:
        """The session of a name until the block ends, after all who asked for it before; None has none."""
        if name is None:
            yield None
            return
        while self._kept and monotonic() - next(iter(self._kept.values()))[2] > SECONDS:
            del self._kept[next(iter(self._kept))]
        session, turn, _ = self._kept.pop(name, (Session(), asyncio.Lock(), 0.0))
        self._kept[name] = session, turn, monotonic()
        while len(self._kept) > self._most or (len(self._kept) > 1 and self._nbytes() > BYTES):
            del self._kept[next(iter(self._kept))]
        async with turn:
            yield session

    def _nbytes(self) -> int:
        return sum(session.earlier.nbytes for session, _, _ in self._kept.values())
