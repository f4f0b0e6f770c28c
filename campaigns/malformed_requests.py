"""What a server makes of requests that no honest client sends (malformed_kinds.py).

    python -m campaigns.malformed_requests --requests 2000 --seed 0 --root ... --weights ...

Truncated and mutated images, wrong types, huge headers, images of 30,000 x 30,000 pixels in few bytes, clients that
send slowly or go away, paths and long words as names, broken forms and parameters, re-ranking on many connections, one
picture under several names, changes of images and batches of them that mean nothing, frames of sessions. There must be
no answer of 500 or above but 503 with Retry-After, no end of the server, no growth of its memory, an answer to the
next good request after each hundred, and all the while one to a plain question within a second.
"""

import argparse
import collections
import contextlib
import http.client
import random
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.running_server import RunningServer, alexnet_on, percentile, queries_of, running_server, timed
from campaigns.malformed_kinds import KINDS, TWINS, removal

GOOD_EVERY = 100  # requests
AT_ONCE = 32  # of the malformed ones
PATIENCE = 60  # seconds for an answer
SLOWEST = 1.0  # seconds that a plain question may take, whatever else is asked
BETWEEN = 0.05  # seconds between plain questions


def main(arguments: Sequence[str] | None = None) -> int:
    """Send them, print what came back; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder in the layout of Pittsburgh")
    parser.add_argument("--weights", required=True, help="AlexNet's")
    parser.add_argument("--folder", help="keeps centroids and index (default: made anew)")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    images = queries_of(options.root)
    with alexnet_on(options.root, options.weights, options.folder) as flags, tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "index.h5")  # that nothing is added to the one that is kept
        with running_server(*flags, f"--indexFile={copy}", "--writable") as server:
            return measure(server, images, options.requests, options.seed)


def measure(server: RunningServer, images: Sequence[bytes], requests: int, seed: int) -> int:
    """Send malformed requests, some at once, and a good one after each hundred."""
    chance, seen, failed, waited = random.Random(seed), collections.Counter(), 0, list[float]()
    for image in images[:20]:
        good(server, image)
    before, start = server.megabytes(), good(server, images[0])
    for first in range(0, requests, GOOD_EVERY):
        made = []
        for _ in range(first, min(first + GOOD_EVERY, requests)):
            kind = chance.choice(list(KINDS))
            made.append((kind, *KINDS[kind](chance, chance.choice(images))))
        with plain_questions(server, images[0], waited), ThreadPoolExecutor(AT_ONCE) as pool:
            statuses = pool.map(lambda one: send(server.port, *one[1:]), made)
            seen.update((one[0], status) for one, status in zip(made, statuses, strict=True))
        clean(server.port)
        failed += good(server, images[0]) != start or server.process.poll() is not None
        if (first // GOOD_EVERY) % 5 == 4:
            print(f"after {first + GOOD_EVERY}: {server.megabytes():.0f} MB", flush=True)
    for kind in KINDS:
        counts = {status: count for (name, status), count in seen.items() if name == kind}
        print(f"{kind}: " + ", ".join(f"{status} {counts[status]}" for status in sorted(counts)))
    total = collections.Counter(status for _, status in seen.elements())
    print("in all: " + ", ".join(f"{status} {total[status]}" for status in sorted(total)))
    print(f"memory of the server and its decoders: {before:.0f} MB before, {server.megabytes():.0f} MB after")
    print(f"good requests that failed or were answered otherwise: {failed}")
    errors = [line for line in server.said if "Traceback" in line or " failed: " in line]
    print(f"lines of errors in the server's log: {len(errors)}", *errors[:5], sep="\n")
    print(f"plain questions meanwhile: {len(waited)}, median {1000 * percentile(waited, 0.5):.0f} ms, "
          f"99 % {1000 * percentile(waited, 0.99):.0f} ms, slowest {1000 * max(waited):.0f} ms")  # fmt: skip
    bad = sum(count for status, count in total.items() if status[:1] == "5" and status != "503")
    return int(bool(failed or bad or errors or max(waited) > SLOWEST))


@contextlib.contextmanager
def plain_questions(server: RunningServer, image: bytes, waited: list[float]) -> Iterator[None]:
    """Ask a plain question again and again until the block ends, each on a connection of its own.

    Args:
        waited: gets the seconds that each took; one that fails took for ever.
    """
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(BETWEEN):
            try:
                with contextlib.closing(server.connection(PATIENCE)) as connection:
                    waited.append(timed(connection, image)[0])
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                print(f"a plain question failed: {error}", flush=True)
                waited.append(float("inf"))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()


def clean(port: int) -> None:
    """Remove what requests have added."""
    for name in TWINS:
        send(port, *removal(name))


def good(server: RunningServer, image: bytes) -> list:
    """The matches of a good request."""
    with contextlib.closing(server.connection(PATIENCE)) as connection:
        return timed(connection, image)[1]["matches"]


def send(port: int, content: bytes, pause: float) -> str:
    """Send bytes; gives the status that comes back, `closed` if the server closed, or `gone` if this client went."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            middle = len(content) if not pause else len(content) // 2
            connection.sendall(content[:middle])
            if pause > PATIENCE:
                return "gone"
            if pause:
                threading.Event().wait(pause)
                connection.sendall(content[middle:])
            answer = http.client.HTTPResponse(connection, method=content[:5].strip().decode("latin-1"))
            answer.begin()
            answer.read()
            if answer.status == 503 and answer.headers["retry-after"] is None:
                return "503 without Retry-After"
            return str(answer.status)
    except TimeoutError:
        return "no answer"
    except (OSError, http.client.HTTPException):
        return "closed"


if __name__ == "__main__":
    sys.exit(main())
