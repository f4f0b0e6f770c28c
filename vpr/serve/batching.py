"""Images of several requests that wait at the same time are described together, by one thread."""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any, Generic, TypeVar

from vpr.retrieval.long_work import Job, Lines, Work
from vpr.serve.problems import Problem, busy

LONGEST_WAIT = 30  # seconds that long work waits for other work of its client, and after which to come again, at most
PACE = 0.2  # weight of the last answer in the mean time of one
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Waiting(Generic[Item]):
    """An item that waits for its turn, or a call that is made between batches."""

    item: Item | None = None
    call: Callable[[], Any] | None = None
    future: Future = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A result, the seconds that its item waited, and how many were answered with it."""

    result: Result
    waited: float
    together: int


@dataclass(eq=False)
class Slots:
    """Room for some items."""

    count: int
    client: str | None  # whose long work they are; None: they are short
    to_come: int  # short ones that are on their way


class Batcher(Generic[Item, Result]):
    """Answers items in batches, and does long work in between.

    A batch is all that waits, up to `size`. It begins at once unless others are on their way, for which it waits at
    most `wait` seconds: one that is alone waits for nobody. After each batch a step of long work is done, of each
    client in turn, so that an item waits for one step at most, whatever else there is to do.
    """

    def __init__(
        self, answer: Callable[[list[Item]], Sequence[Result | Exception]], size: int, wait: float, room: int,
        long_room: int,
    ) -> None:  # fmt: skip
        """Start the thread.
        `answer`: gives a result or an error for each item. Where it fails, each item is answered by itself. `room`: how
        many may be underway; `long_room` of these long work of one client, twice that of all clients."""
        self._answer, self._size, self._wait, self._room, self._long_room = answer, size, wait, room, long_room
        self._changed = threading.Condition()
        self._taken: set[Slots] = set()
        self._waiting: deque[_Waiting[Item]] = deque()
        self._lines, self._closing = Lines(), False
        self._pace = {"items": 0.0, "long": 0.0}  # seconds that one takes
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)  # `close` waits for it
        self._thread.start()

    @property
    def underway(self) -> int:
        """How many items are on their way, wait or are being answered."""
        with self._changed:
            return sum(each.count for each in self._taken)

    @contextlib.contextmanager
    def slots(self, count: int = 1, client: str | None = None) -> Iterator[Slots]:
        """Room for items, held from before they come until they are answered; see `Slots`. Raises a Problem (503)."""
        slots = Slots(count, client, count if client is None else 0)
        with self._changed:
            self._require_room(count, client)
            self._taken.add(slots)
        try:
            yield slots
        finally:
            with self._changed:
                self._taken.remove(slots)
                self._changed.notify_all()  # nobody needs to wait any more for those that never came

    def _require_room(self, count: int, client: str | None) -> None:
        if self._closing or self.underway + count > self._room:
            raise busy(self._seconds_for(self.underway // 2, "items"))
        if client is not None:
            long = [each for each in self._taken if each.client is not None]
            own, all_long = sum(each.count for each in long if each.client == client), sum(each.count for each in long)
            too_long = own * self._pace["long"] > LONGEST_WAIT
            if too_long or own + count > self._long_room or all_long + count > 2 * self._long_room:
                raise busy(self._seconds_for(max(own, all_long // 2), "long"))

    def put(self, slots: Slots, item: Item) -> "Future[Done[Result]]":
        """Put an item in; the future has its result, or the error that it fails with."""
        return self._put(_Waiting(item), slots)

    def call(self, function: Callable[[], Any], slots: Slots | None = None) -> Future:
        """Have something short done by the thread, between batches; the future has what it gives.

        Without slots it needs no room. Raises a Problem (503) then where the server is about to end.
        """
        if slots is None and self._closing:
            raise Problem(503, "the server is ending")
        return self._put(_Waiting(call=function), slots)

    def long(self, slots: Slots, work: Work, client: str, is_short: bool = False) -> Future:
        """Have long work of a client done step by step, if short before its other work; the future has the result."""
        return self._put(Job(work, client, is_short), slots)

    def _put(self, one: _Waiting[Item] | Job, slots: Slots | None) -> Future:
        with self._changed:
            if slots is not None and slots.client is None:
                slots.to_come -= 1
            self._lines.put(one) if isinstance(one, Job) else self._waiting.append(one)
            self._changed.notify_all()
        return one.future

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _seconds_for(self, count: int, kind: str) -> int:
        return min(LONGEST_WAIT, max(1, math.ceil(count * self._pace[kind])))

    def _took(self, seconds: float, kind: str) -> None:
        known = self._pace[kind]
        self._pace[kind] = known + PACE * (seconds - known) if known else seconds

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._lines or self._closing)
                batch = self._next_batch() if self._waiting else []
                job = self._lines.next()
            if not batch and job is None:
                return
            if batch:
                began = time.monotonic()
                self._answer_all([each for each in batch if each.future.set_running_or_notify_cancel()])
                self._took((time.monotonic() - began) / len(batch), "items")
            if job is not None:
                job.began = job.began or time.monotonic()
                job.step()
                if job.is_done:
                    self._took(time.monotonic() - job.began, "long")
                    with self._changed:
                        self._lines.drop(job)

    def _next_batch(self) -> list[_Waiting[Item]]:
        """What waits, in the order of arrival: a call, or the items before the next call."""
        first = self._waiting[0]
        if first.call:
            return [self._waiting.popleft()]
        self._changed.wait_for(
            lambda: self._closing or len(self._waiting) >= self._size or not any(each.to_come for each in self._taken),
            first.since + self._wait - time.monotonic(),
        )
        items = takewhile(lambda each: not each.call, islice(self._waiting, self._size))
        return [self._waiting.popleft() for _ in list(items)]

    def _answer_all(self, batch: list[_Waiting[Item]]) -> None:
        """Answer items together; where that fails, each by itself, so that no error is another's."""
        if not batch:
            return
        began = time.monotonic()
        try:
            if batch[0].call:
                batch[0].future.set_result(batch[0].call())
                return
            results = self._answer([each.item for each in batch])  # type: ignore[misc]  # only calls have none
        except BaseException as error:  # whatever it is, somebody waits for it
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for each in batch:
                self._answer_all([each])
            return
        for each, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                each.future.set_exception(result)
            else:
                each.future.set_result(Done(result, began - each.since, len(batch)))
