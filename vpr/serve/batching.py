"""Images of several requests that wait at the same time are described together, by one thread."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Full(Exception):
    """There is more underway than the queue holds, or the server is about to end."""


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
    """Answers items in batches.

    A batch is all that waits, up to `size`. It begins at once unless others are on their way, for which it waits at
    most `wait` seconds: one that is alone waits for nobody.
    """

    def __init__(
        self, answer: Callable[[list[Item]], Sequence[Result]], size: int, wait: float, room: int
    ) -> None:  # fmt: skip
        """Start the thread.

        Args:
            answer: gives a result for each item. Where it fails, each item is answered by itself.
            room: how many may be underway.
        """
        self._answer, self._size, self._wait, self._room = answer, size, wait, room
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[Item]] = deque()
        self._underway, self._to_come, self._closing = 0, 0, False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)  # `close` waits for it
        self._thread.start()

    @property
    def underway(self) -> int:
        """How many items are on their way, wait or are being answered."""
        return self._underway

    def place(self, count: int = 1) -> "Place[Item, Result]":
        """Room for items, which is held as a context from before they come until they are answered.

        Raises:
            Full: on entering, there is not so much.
        """
        return Place(self, count)

    def close(self) -> None:
        """Answer what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def take_room(self, count: int) -> None:
        """See `place`."""
        with self._changed:
            if self._underway + count > self._room or self._closing:
                raise Full
            self._underway += count
            self._to_come += count

    def give_room(self, count: int, never_came: int) -> None:
        """See `place`."""
        with self._changed:
            self._underway -= count
            self._to_come -= never_came
            self._changed.notify_all()  # nobody needs to wait for those any more

    def put(self, waiting: _Waiting[Item]) -> Future:
        """See `Place.put` and `Place.call`."""
        with self._changed:
            self._to_come -= 1
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting.future

    def _work(self) -> None:
        while batch := self._next():
            self._answer_all([each for each in batch if each.future.set_running_or_notify_cancel()])

    def _next(self) -> list[_Waiting[Item]]:
        """What comes next, in the order of arrival: a call, or the items before the next call. At the end nothing."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return []
                self._changed.wait()
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
            each.future.set_result(Done(result, began - each.since, len(batch)))


class Place(Generic[Item, Result]):
    """Room for some items; see `Batcher.place`."""

    def __init__(self, batcher: Batcher[Item, Result], count: int) -> None:
        self._batcher, self._count, self._to_come = batcher, count, count

    def __enter__(self) -> "Place[Item, Result]":
        self._batcher.take_room(self._count)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._batcher.give_room(self._count, self._to_come)

    def put(self, item: Item) -> "Future[Done[Result]]":
        """Put an item in; the future has its result, or the error that it fails with."""
        self._to_come -= 1
        return self._batcher.put(_Waiting(item))

    def call(self, function: Callable[[], Any]) -> Future:
        """Have something else done by the thread, between batches; the future has what it gives."""
        self._to_come -= 1
        return self._batcher.put(_Waiting(call=function))
