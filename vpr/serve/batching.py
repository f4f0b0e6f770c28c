"""Images of several requests that wait at the same time are described together, by one thread."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

from vpr.retrieval.long_work import Job, Lines, Work

LONGEST_WAIT = 30  # seconds that long work waits for other work of its client, and after which to come again, at most
PACE = 0.2  # by which the last answer counts in the mean time of one
Item = TypeVar("Item")
Result = TypeVar("Result")


class Full(Exception):
    """There is more underway than the queue holds, or the server is about to end.

    Attributes:
        seconds: after which there is room, presumably.
    """

    def __init__(self, seconds: int = 1) -> None:
        super().__init__(seconds)
        self.seconds = seconds


@dataclass
class _Waiting(Generic[Item]):
    """An item that waits for its turn, or a call that is made in its place."""

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


class Batcher(Generic[Item, Result]):
    """Answers items in batches, and does long work in between.

    A batch is all that waits, up to `size`. It begins at once unless others are on their way, for which it waits at
    most `wait` seconds: one that is alone waits for nobody. After each batch a step of long work is done, of each
    client in turn, so that an item waits for one step at most, whatever else there is to do.
    """

    def __init__(
        self, answer: Callable[[list[Item]], Sequence[Result | Exception]], size: int, wait: float, room: int,
        long_room: int | None = None,
    ) -> None:  # fmt: skip
        """Start the thread.

        Args:
            answer: gives a result or an error for each item. Where it fails, each item is answered by itself.
            room: how many may be underway.
            long_room: how many of these may be long work of one client, and half of what all clients may have.
        """
        self._answer, self._size, self._wait, self._room = answer, size, wait, room
        self._long_room = long_room or room
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[Item]] = deque()
        self._lines, self._long = Lines(), Counter[str]()  # how much long work is underway, by client
        self._pace = {"items": 0.0, "long": 0.0}  # seconds that one takes
        self._underway, self._to_come, self._closing = 0, 0, False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)  # `close` waits for it
        self._thread.start()

    @property
    def underway(self) -> int:
        """How many items are on their way, wait or are being answered."""
        return self._underway

    def place(self, count: int = 1, client: str | None = None) -> "Place[Item, Result]":
        """Room for items, which is held as a context from before they come until they are answered.

        Args:
            client: whose long work they are; None: they are short.

        Raises:
            Full: on entering, there is not so much.
        """
        return Place(self, count, client)

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def take_room(self, count: int, client: str | None) -> None:
        """See `place`."""
        with self._changed:
            if self._underway + count > self._room or self._closing:
                raise Full(self._seconds_for(self._underway // 2, "items"))
            if client is not None:
                own, all_long = self._long[client], self._long.total()
                too_long = own * self._pace["long"] > LONGEST_WAIT
                if too_long or own + count > self._long_room or all_long + count > 2 * self._long_room:
                    raise Full(self._seconds_for(max(own, all_long // 2), "long"))
                self._long[client] += count
            else:
                self._to_come += count
            self._underway += count

    def give_room(self, count: int, never_came: int, client: str | None) -> None:
        """See `place`."""
        with self._changed:
            self._underway -= count
            if client is None:
                self._to_come -= never_came
            else:
                self._long[client] -= count
                self._long += Counter()  # forgets clients that have none
            self._changed.notify_all()  # nobody needs to wait for those any more

    def put(self, waiting: _Waiting[Item], came: int = 1) -> Future:
        """See `Place.put` and `Place.call`."""
        with self._changed:
            self._to_come -= came
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting.future

    def put_long(self, job: Job, came: int) -> Future:
        """See `Place.long`."""
        with self._changed:
            self._to_come -= came
            self._lines.put(job)
            self._changed.notify_all()
        return job.future

    def ask(self, function: Callable[[], Any]) -> Future:
        """Have something short done by the thread, in turn, without room; the future has what it gives.

        Raises:
            Full: the server is about to end.
        """
        if self._closing:
            raise Full
        return self.put(_Waiting(call=function), came=0)

    def _seconds_for(self, count: int, kind: str) -> int:
        return min(LONGEST_WAIT, max(1, math.ceil(count * self._pace[kind])))

    def _took(self, seconds: float, kind: str) -> None:
        known = self._pace[kind]
        self._pace[kind] = known + PACE * (seconds - known) if known else seconds

    def _work(self) -> None:
        while True:
            batch, job = self._next()
            if not batch and job is None:
                return
            began = time.monotonic()
            self._answer_all([each for each in batch if each.future.set_running_or_notify_cancel()])
            if batch:
                self._took((time.monotonic() - began) / len(batch), "items")
            if job is not None:
                self._step(job)

    def _step(self, job: Job) -> None:
        job.began = job.began or time.monotonic()
        job.step()
        if job.is_done:
            self._took(time.monotonic() - job.began, "long")
            with self._changed:
                self._lines.drop(job)

    def _next(self) -> tuple[list[_Waiting[Item]], Job | None]:
        """What comes next, and whose long work after it; at the end nothing."""
        with self._changed:
            while not self._waiting and not self._lines and not self._closing:
                self._changed.wait()
            return self._next_batch() if self._waiting else [], self._lines.next()

    def _next_batch(self) -> list[_Waiting[Item]]:
        """What waits, in the order of arrival: a call, or the items before the next call."""
        latest = self._waiting[0].since + self._wait
        while self._to_come and len(self._waiting) < self._size and not self._waiting[0].call:
            left = latest - time.monotonic()
            if left <= 0 or self._closing:
                break
            self._changed.wait(left)
        batch = [self._waiting.popleft()]
        while self._waiting and len(batch) < self._size and not (batch[0].call or self._waiting[0].call):
            batch.append(self._waiting.popleft())
        return batch

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


class Place(Generic[Item, Result]):
    """Room for some items; see `Batcher.place`."""

    def __init__(self, batcher: Batcher[Item, Result], count: int, client: str | None) -> None:
        self._batcher, self._count, self._to_come, self._client = batcher, count, count, client

    def __enter__(self) -> "Place[Item, Result]":
        self._batcher.take_room(self._count, self._client)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._batcher.give_room(self._count, self._to_come, self._client)

    @property
    def is_long(self) -> bool:
        """Whether it is room for long work."""
        return self._client is not None

    def put(self, item: Item) -> "Future[Done[Result]]":
        """Put an item in; the future has its result, or the error that it fails with."""
        self._to_come -= 1
        return self._batcher.put(_Waiting(item))

    def call(self, function: Callable[[], Any]) -> Future:
        """Have something else done by the thread, between batches; the future has what it gives."""
        self._to_come -= 1
        return self._batcher.put(_Waiting(call=function))

    def long(self, work: Work, is_short: bool = False, client: str | None = None) -> Future:
        """Have long work done step by step; the future has what it gives.

        Args:
            is_short: whether it comes before other work of the client.
            client: whose it is, where the place is one of short work.
        """
        came = 0 if self.is_long else 1
        self._to_come -= came
        return self._batcher.put_long(Job(work, self._client or client or "", is_short), came)
