"""What a server makes of requests that no honest client sends.

    python -m benchmarks.malformed_requests --requests 2000 --seed 0 --root ... --weights ...

Truncated and mutated images, wrong types, huge headers, images of 30,000 x 30,000 pixels in few bytes, clients that
send slowly or go away, paths in names, broken forms and parameters. There must be no answer of 500 or above but 503, no
end of the server, no growth of its memory, and an answer to the next good request after each hundred.
"""

import argparse
import collections
import contextlib
import http.client
import io
import random
import socket
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from benchmarks.fuzz import mutate
from benchmarks.running_server import RunningServer, alexnet_on, queries_of, running_server, timed

GOOD_EVERY = 100  # requests
AT_ONCE = 32  # of the malformed ones
PATIENCE = 60  # seconds for an answer
NAMES = (
    "../x.jpg", "/etc/passwd", "..%2f..%2fx.jpg", "a/../../x.jpg", "C:\\x.jpg", "x\0.jpg", "x" * 5000, ".ssh/key.jpg",
    "a//b.jpg", "~/x.jpg", "x.jpg/", "%00", "\u202egpj.jpg", "", "con/x.jpg ",
)  # fmt: skip
QUERIES = (
    "top=-1", "top=1e9", "top=x", "near=1", "near=nan,nan,nan", "near=0,0,1e308", "box=1,2,3,4,5", "box=inf,0,0,0",
    "where=a", "where=" + "a" * 5000, "where=a=b&" * 50, "rerank=99999999999", "agreement=2", "near=" + "9" * 3000,
    "top=5&top=x", "%ff%fe=1", "near=%00,%00,%00",
)  # fmt: skip
# A request as bytes, and the seconds to wait before its second half.
Made = tuple[bytes, float]


def request(
    body: bytes, path: str = "/locate", kind: str = "image/jpeg", method: str = "POST", more: str = "", length: int = -1
) -> bytes:
    """A request's bytes; a length that is given is that which it claims."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n{more}"
    return f"{head}content-length: {len(body) if length < 0 else length}\r\n\r\n".encode() + body


def bomb(chance: random.Random) -> bytes:
    """An image of very many pixels in few bytes: a sound PNG, or a JPEG whose header says so."""
    if chance.random() < 0.5:
        stream = io.BytesIO()
        Image.new("L", (64, 64)).save(stream, "JPEG")
        content = bytearray(stream.getvalue())
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
        return bytes(content)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = chance.choice((30_000, 6_900, 2**31 - 1))
    rows = zlib.compress(bytes(1 + 30_000 // 8) * chance.choice((1, 30_000)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def damaged(chance: random.Random, image: bytes) -> Made:
    """An image in one of three formats with bytes changed, or cut off."""
    if chance.random() < 0.5:
        stream = io.BytesIO()
        with Image.open(io.BytesIO(image)) as opened:
            opened.save(stream, chance.choice(("PNG", "WEBP", "JPEG")))
        image = stream.getvalue()
    changed = image[: chance.randrange(len(image))] if chance.random() < 0.4 else mutate(image, chance)
    return request(changed), 0


def of_no_image(chance: random.Random, image: bytes) -> Made:
    """Bytes of another kind, under any type."""
    contents = (b"", b"GIF89a" + bytes(99), b"<svg onload=alert(1)>", b"%!PS-Adobe", chance.randbytes(2000), image[:2])
    kinds = ("image/jpeg", "text/html", "application/json", "x" * 300, "", "image/png; charset=" + "a" * 100)
    return request(chance.choice(contents), kind=chance.choice(kinds)), 0


def with_huge_headers(chance: random.Random, image: bytes) -> Made:
    """A head of many kilobytes, or many lines."""
    more = chance.choice(("x-a: " + "a" * 100_000 + "\r\n", "a: b\r\n" * 20_000, "cookie: " + "c" * 20_000 + "\r\n"))
    return request(image, more=more), 0


def of_false_length(chance: random.Random, image: bytes) -> Made:
    """A body that is larger or smaller than it claims, or has no end."""
    length = chance.choice((10**12, 10**30, len(image) // 2, 0, 30_000_000))
    return request(image, length=length), 0


def slow(chance: random.Random, image: bytes) -> Made:
    """The second half comes late or never."""
    return request(image), chance.choice((0.2, 0.5, 99.0))


def broken_form(chance: random.Random, image: bytes) -> Made:
    """A form with bytes changed, cut off, or with very many parts."""
    part = b'--b\r\ncontent-disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n'
    name = chance.choice(NAMES).encode(errors="replace").replace(b"\0", b"%00")[:900]
    body = part % (name, image) + b"--b--\r\n"
    if chance.random() < 0.3:
        body = b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n1\r\n' * chance.choice((100, 20_000)) + b"--b--"
    body = mutate(body, chance) if chance.random() < 0.7 else body
    kind = chance.choice(("multipart/form-data; boundary=b",) * 4 + ("multipart/form-data", "multipart/form-data;" * 9))
    return request(body, chance.choice(("/locate", "/locate/batch")), kind), 0


def of_paths(chance: random.Random, image: bytes) -> Made:
    """A name that is none, to add an image by, or to get one."""
    name = "".join(f"%{byte:02x}" for byte in chance.choice(NAMES).encode()) if chance.random() < 0.5 else "..%2fx"
    if chance.random() < 0.3:
        return request(b"", f"/images/{name[:3000]}", method=chance.choice(("GET", "DELETE"))), 0
    return request(image, f"/images?name={name[:9000]}&easting=1&northing=2"), 0


def of_parameters(chance: random.Random, image: bytes) -> Made:
    """Parameters that mean nothing."""
    return request(image, f"/locate?{chance.choice(QUERIES)}"), 0


def of_no_http(chance: random.Random, image: bytes) -> Made:
    """Bytes that are no request, or one with a byte changed."""
    whole = request(image[:300], path=chance.choice(("/locate", "/" + "a" * 3000, "//", "/%", "*")))
    if chance.random() < 0.2:
        return chance.randbytes(500), 0
    return mutate(whole, chance), 0


KINDS: dict[str, Callable[[random.Random, bytes], Made]] = {
    "damaged image": damaged, "too many pixels": lambda chance, _: (request(bomb(chance)), 0),
    "no image": of_no_image, "huge headers": with_huge_headers, "false length": of_false_length, "slow": slow,
    "broken form": broken_form, "path as a name": of_paths, "parameters": of_parameters, "no HTTP": of_no_http,
}  # fmt: skip


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
    chance, seen, failed = random.Random(seed), collections.Counter(), 0
    for image in images[:20]:
        good(server, image)
    before, start = server.megabytes(), good(server, images[0])
    for first in range(0, requests, GOOD_EVERY):
        made = []
        for _ in range(first, min(first + GOOD_EVERY, requests)):
            kind = chance.choice(list(KINDS))
            made.append((kind, *KINDS[kind](chance, chance.choice(images))))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            statuses = pool.map(lambda one: send(server.port, *one[1:]), made)
            seen.update((one[0], status) for one, status in zip(made, statuses, strict=True))
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
    bad = sum(count for status, count in total.items() if status[:1] == "5" and status != "503")
    return int(bool(failed or bad or errors))


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
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            answer.read()
            return str(answer.status)
    except TimeoutError:
        return "no answer"
    except (OSError, http.client.HTTPException):
        return "closed"


if __name__ == "__main__":
    sys.exit(main())
