"""Processes that decode images beside the server: one that hangs or dies is replaced, and nothing else is held up."""

import asyncio
import contextlib
import multiprocessing
import queue
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection

from vpr.serve.decoding import LATER, READY, Decoded, Refused, Wanted, decode_for, receive
from vpr.serve.problems import Problem

Work = Callable[[Connection], None]
LARGE_PIXELS = 2_000_000  # above which an image takes more than some hundredths of a second to decode
MOST_THUMBNAIL = 1 << 20  # bytes
DAMAGED = "the image cannot be decoded: its data are damaged"


class Decoder:
    """One process that decodes."""

    def __init__(self, work: Work) -> None:
        # Started afresh: a copy of the server would share its memory and its threads' locks.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs,), daemon=True, name="decoder")
        self._process.start()
        # It heeds no signal that could be caught: a program that ends in an error would wait for it for ever.
        weakref.finalize(self, self._process.kill)
        self._is_ready = False
        theirs.close()  # so that an end of the process is seen as the end of what it says

    def get_ready(self) -> None:
        """Wait until the process has begun, whose imports take a while. Raises OSError where it does not."""
        if not self._is_ready:
            if self._connection.recv_bytes(len(READY)) != READY:
                raise OSError("a decoder does not begin")
            self._is_ready = True

    def decode(self, data: bytes, wanted: Wanted, seconds: float) -> Decoded:
        """Decode an image.
        Raises Refused: it is refused; a TimeoutError: it took longer; EOFError or OSError: the process died of it."""
        self.get_ready()
        self._connection.send(wanted)
        self._connection.send_bytes(data)
        if not self._connection.poll(seconds):
            raise TimeoutError
        return receive(self._connection, max(MOST_THUMBNAIL, 3 * wanted.max_pixels))

    def end(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.kill()
        self._process.join()


class Decoders:
    """Several of them, of which one has no large images to decode, so that small ones are never held up by them."""

    def __init__(self, count: int, seconds: float, work: Work = decode_for) -> None:
        """Start processes, which have `seconds` for an image and do as `decode_for`; `count` decode large images."""
        self._seconds, self._work = seconds, work
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count + 1, "decoder")  # each waits for one process
        self._large = asyncio.Semaphore(count)
        for _ in range(count + 1):
            self._idle.put(Decoder(work))

    async def decode(self, data: bytes, wanted: Wanted) -> Decoded:
        """Decode an image. Raises a Problem: of no known format (415), too large (413), damaged or too slow (422)."""
        loop = asyncio.get_running_loop()
        try:
            quick = replace(wanted, max_quick=LARGE_PIXELS)
            return await loop.run_in_executor(self._threads, self._decode, data, quick)
        except Problem as problem:
            if problem.status != LATER:
                raise
        await self._large.acquire()
        decoding = self._threads.submit(self._decode, data, wanted)
        # Not when nobody waits any more, but when the process is free again.
        decoding.add_done_callback(lambda _: loop.call_soon_threadsafe(self._large.release))
        return await asyncio.wrap_future(decoding)

    def _decode(self, data: bytes, wanted: Wanted) -> Decoded:
        decoder = self._idle.get()
        try:
            return decoder.decode(data, wanted, self._seconds)
        except Refused as refused:
            raise Problem(refused.status, str(refused)) from refused
        except (EOFError, OSError) as error:
            decoder.end()
            decoder = Decoder(self._work)
            with contextlib.suppress(EOFError, OSError):  # whoever gets it will see that
                decoder.get_ready()  # who comes next shall not wait for that
            late = f"the image takes longer than {self._seconds:g} s to decode"
            raise Problem(422, late if isinstance(error, TimeoutError) else DAMAGED) from error
        finally:
            self._idle.put(decoder)

    def close(self) -> None:
        """End all processes, after what they have begun."""
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().end()
