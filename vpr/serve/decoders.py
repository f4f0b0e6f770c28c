"""Processes that decode images beside the server: one that hangs or dies is replaced, and nothing else is held up."""

import asyncio
import contextlib
import multiprocessing
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np

from vpr.serve.decoding import Decoded, Wanted, decode_for
from vpr.serve.problems import Problem

Work = Callable[[Connection], None]
DAMAGED = "the image cannot be decoded: its data are damaged"


class Decoder:
    """One process that decodes."""

    def __init__(self, work: Work) -> None:
        # Started afresh: a copy of the server would share its memory and its threads' locks.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs,), daemon=True, name="decoder")
        self._process.start()
        self._is_ready = False
        theirs.close()  # so that an end of the process is seen as the end of what it says

    def decode(self, data: bytes, wanted: Wanted, seconds: float) -> Decoded:
        """Decode an image.

        Raises:
            Problem: it is refused.
            TimeoutError: it took longer.
            EOFError, OSError: the process died of it.
        """
        connection: Connection = self._connection
        if not self._is_ready:  # its imports take a while
            connection.recv()
            self._is_ready = True
        connection.send(wanted)
        connection.send_bytes(data)
        if not connection.poll(seconds):
            raise TimeoutError
        answer = connection.recv()
        if len(answer) == 2:
            raise Problem(*answer)
        shape, kind, degrees = answer
        values = np.empty(shape, np.uint8)
        connection.recv_bytes_into(values.data.cast("B"))
        return Decoded(values, kind, degrees)

    def end(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.kill()
        self._process.join()


class Decoders:
    """Several of them.

    Attributes:
        decoded: how many images they were given.
    """

    def __init__(self, count: int, seconds: float, work: Work = decode_for) -> None:
        """Start `count` processes, which have `seconds` for an image, and do as `decode_for` does."""
        self._seconds, self._work, self.decoded = seconds, work, 0
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count, "decoder")  # each waits for one process
        for _ in range(count):
            self._idle.put(Decoder(work))

    async def decode(self, data: bytes, wanted: Wanted) -> Decoded:
        """Decode an image.

        Raises:
            Problem: it is no image of a known format (415), too large (413), damaged, or took too long (422).
        """
        self.decoded += 1
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data, wanted)

    def _decode(self, data: bytes, wanted: Wanted) -> Decoded:
        decoder = self._idle.get()
        try:
            return decoder.decode(data, wanted, self._seconds)
        except TimeoutError as error:
            decoder = self._replace(decoder)
            raise Problem(422, f"the image takes longer than {self._seconds:g} s to decode") from error
        except (EOFError, OSError) as error:
            decoder = self._replace(decoder)
            raise Problem(422, DAMAGED) from error
        finally:
            self._idle.put(decoder)

    def _replace(self, decoder: Decoder) -> Decoder:
        decoder.end()
        return Decoder(self._work)

    def close(self) -> None:
        """End all processes, after what they have begun."""
        self._threads.shutdown()
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().end()
