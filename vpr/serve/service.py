"""What requests share: decoders, the queue before the model, limits, and what is counted."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vpr.common.errors import UserError
from vpr.retrieval.answer import Answer
from vpr.retrieval.ask import Ask
from vpr.retrieval.locator import Locator
from vpr.retrieval.long_work import Pause
from vpr.serve.batching import Batcher, Done, Slots
from vpr.serve.decoders import Decoders
from vpr.serve.decoding import Decoded, Wanted
from vpr.serve.problems import ENGINE_AWAY, Problem, busy, problem_of
from vpr.serve.schemas import answer_json
from vpr.serve.sessions import Sessions
from vpr.serve.settings import Settings
from vpr.serve.uploads import Bodies, Room

# Bounds of the histograms: seconds of a request, images of a pass.
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
PIXELS_BYTES = 600_000_000  # of decoded images that wait
READY_SECONDS, CHECKED_SECONDS = 2, 1.0  # for an answer of the engine, and how long it holds
Question = tuple[np.ndarray, Ask]


class Service:
    """A locator with what leads to it."""

    def __init__(self, locator: Locator, settings: Settings) -> None:
        """Nothing runs before `start`."""
        self.locator, self.settings = locator, settings
        self.bodies = Bodies(int(settings.max_megabytes * 1e6), settings.body_seconds)
        self.pixels = Room(PIXELS_BYTES)
        self.metrics = Metrics(lambda: self.batcher.underway if self.ready else 0, lambda: locator.images)
        self.sessions, self.ready = Sessions(locator.loaded.model.dim), False
        self._checked: asyncio.Future[None] | None = None
        self._checked_at = 0.0
        self._shown_waiting, self._shown_at_once = 0, asyncio.Semaphore(settings.decoders)

    def start(self) -> None:
        """Start the decoders and the thread that asks the locator."""
        settings = self.settings
        self._decoders = Decoders(settings.decoders, settings.decode_seconds)
        # The queue before the model; its thread alone asks and changes the locator.
        self.batcher: Batcher[Question, Answer] = Batcher(
            self._answer, settings.batch_size, settings.batch_wait / 1000, settings.queue, settings.long_queue
        )
        self.ready = True

    def stop(self) -> None:
        """Finish what has begun, and end them."""
        self.ready = False
        self.batcher.close()
        self._decoders.close()

    def _answer(self, questions: list[Question], *pause: Pause) -> Sequence[Answer | Problem]:
        images, asked = zip(*questions, strict=True)
        self.metrics.batches.observe(len(images))
        answers = list(map(problem_of, self.locator.answer_each(images, asked, *pause)))
        self.metrics.engine_errors.inc(sum(isinstance(each, Problem) and each.code == ENGINE_AWAY for each in answers))
        self.locator.follow()  # what a search has seen
        return answers

    def _answer_long(self, question: Question, came: float, pause: Pause) -> Done[Answer]:
        """The answer to a question that came at some time, as work with pauses."""
        began = monotonic()
        (found,) = self._answer([question], pause)
        if isinstance(found, Problem):
            raise found
        return Done(found, began - came, 1)

    async def require_ready(self) -> None:
        """Raise a Problem unless the thread that answers gets to it soon, and the engine answers that thread.

        Whoever asks meanwhile, or within a second, is told the same.
        """
        if not self.ready:
            raise Problem(503, "the server is starting or ending", seconds=READY_SECONDS)
        checked = self._checked
        if checked is None or (checked.done() and perf_counter() - self._checked_at > CHECKED_SECONDS):
            checked = asyncio.ensure_future(self._check())
            checked.add_done_callback(lambda done: done.cancelled() or done.exception())  # somebody has looked at it
            self._checked, self._checked_at = checked, perf_counter()
        try:
            await asyncio.wait_for(asyncio.shield(checked), READY_SECONDS)
        except (UserError, asyncio.TimeoutError) as error:
            raise Problem(503, "the search engine does not answer", seconds=READY_SECONDS) from error

    async def _check(self) -> None:
        """Ask the engine, and the thread that answers, which does not wait for an engine elsewhere."""
        is_elsewhere, check = self.locator.engine.is_shared, self.locator.check
        if is_elsewhere:
            await asyncio.to_thread(check)
        await asyncio.wrap_future(self.batcher.call((lambda: None) if is_elsewhere else check))

    async def follow(self) -> None:
        """Take what another process has committed to a database in files, unless that is damaged."""
        if not self.locator.engine.is_shared:
            with contextlib.suppress(UserError):
                await asyncio.wrap_future(self.batcher.call(self.locator.check))

    async def decode(self, data: bytes) -> Decoded:
        """An image as the model wants it. Raises a Problem where it cannot be decoded."""
        self.metrics.decoded.inc()
        settings, size = self.settings, self.locator.read.size
        return await self._decoders.decode(data, Wanted(size, settings.longest_side, settings.max_pixels))

    async def thumbnail(self, read: Callable[[], bytes], longest_side: int) -> bytes:
        """A small JPEG of an image, which is read when it is its turn: few files are in memory at once.
        Raises a Problem where it cannot be decoded or too many wait (503), an OSError where it cannot be read."""
        if self._shown_waiting >= self.settings.queue:
            raise busy()
        self._shown_waiting += 1
        try:
            async with self._shown_at_once:
                self.metrics.decoded.inc()
                wanted = Wanted(max_pixels=self.settings.max_pixels, thumbnail=longest_side)
                return (await self._decoders.decode(await asyncio.to_thread(read), wanted)).values.tobytes()
        finally:
            self._shown_waiting -= 1

    async def locate(self, data: bytes, asked: Ask, slots: Slots, client: str, began: float) -> dict[str, Any]:
        """The answer to one image of a client, as JSON; `began` is `perf_counter` when the request came.
        Raises a Problem where the image cannot be decoded, or what is asked not answered."""
        start = perf_counter()
        decoded = await self.decode(data)
        decode_seconds = perf_counter() - start
        is_long = slots.client is not None
        with self.pixels.taken(decoded.values.nbytes):
            question = (pixels_of(decoded), asked)
            if is_long or decoded.values.nbytes > 3 * self.settings.large_pixels:
                work = partial(self._answer_long, question, monotonic())
                future = self.batcher.long(slots, work, client, is_short=not (is_long and asked.rerank))
            else:
                future = self.batcher.put(slots, question)
            done = await asyncio.wrap_future(future)
        answer = done.result
        if answer.refused:
            self.metrics.refused.inc()
        if answer.confidence is not None:
            self.metrics.confidence.observe(answer.confidence)
        seconds = {
            "decode": decode_seconds, "wait": done.waited, "model": answer.model_seconds,
            "search": answer.search_seconds, "total": perf_counter() - began,
        }  # fmt: skip
        for stage in ("decode", "model", "search"):
            self.metrics.stages.labels(stage).observe(seconds[stage])
        timing = {f"{name}_ms": round(1000 * value, 2) for name, value in seconds.items()}
        seen = asked.session.seen if asked.session else None
        told = answer_json(answer, self.locator.model_name, self.locator.images, timing)
        return {**told, "seen_before": seen and {"frame": seen[0], "score": round(seen[1], 4)}}


def pixels_of(decoded: Decoded) -> np.ndarray:
    """uint8 [H, W, 3] -> [3, H, W], the same memory."""
    return decoded.values.transpose(2, 0, 1)


class Metrics:
    """What one server counts, in Prometheus's text format, which says what each is."""

    def __init__(self, underway: Callable[[], int], images: Callable[[], int]) -> None:
        """Functions that count: images underway, images of the index."""
        registry = CollectorRegistry()  # its own: several servers may live in a process
        self.text = partial(generate_latest, registry)  # as /metrics gives it
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        seconds = partial(histogram, buckets=SECONDS)
        self.requests = counter("vpr_requests", "Requests.", ("route", "status"))
        self.seconds = seconds("vpr_request_seconds", "From a request's first byte to the answer's last.", ("route",))
        self.batches = histogram("vpr_batch_images", "Images described at once.", buckets=IMAGES)
        self.refused = counter("vpr_refused", "Images whose place was not sure enough.")
        self.decoded = counter("vpr_decoded_images", "Images handed to decoders.")
        self.engine_errors = counter("vpr_engine_errors", "Questions without an answer of the engine.")
        self.stages = seconds("vpr_stage_seconds", "Of an image; model and search: of its whole batch.", ("stage",))
        self.confidence = histogram("vpr_confidence", "How sure answers are.", buckets=[n / 10 for n in range(1, 11)])
        gauge("vpr_queue_images", "Images underway.").set_function(underway)
        gauge("vpr_index_images", "Images in the index.").set_function(images)
