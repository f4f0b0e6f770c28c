"""Sessions of cameras by name, whose frames are taken one after the other."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import monotonic

from vpr.retrieval.session import Session

MOST, SECONDS = 1000, 600.0  # sessions that are kept, and without a frame
BYTES = 256 << 20  # of their descriptors, by which there may be fewer


@dataclass
class _Kept:
    """A session, when its last frame came, and the turn of its requests."""

    session: Session = field(default_factory=Session)
    last: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sessions:
    """Those of the last minutes, in memory alone; for one thread."""

    def __init__(self, dim: int) -> None:
        """Of descriptors of so many dimensions."""
        self._most = max(1, min(MOST, BYTES // (2 * dim * Session().rule.length)))
        self._kept: dict[str, _Kept] = {}  # the one whose last frame came first in front

    @contextlib.asynccontextmanager
    async def turn(self, name: str | None) -> AsyncIterator[Session | None]:
        """The session of a name until the block ends, once all that asked for it earlier have had it; None: none.

        Where there are too many, the one whose last frame came first is dropped.
        """
        if name is None:
            yield None
            return
        kept = self._kept.pop(name, None)
        if kept is None or monotonic() - kept.last > SECONDS:
            kept = _Kept()
        self._kept[name], kept.last = kept, monotonic()
        while len(self._kept) > self._most or monotonic() - next(iter(self._kept.values())).last > SECONDS:
            del self._kept[next(iter(self._kept))]
        async with kept.turn:
            yield kept.session
