"""Reads mutated copies of dbStruct files in a process of its own, whose end its caller watches.

    python tests/spec_fuzz.py SEED COUNT FILE...

Prints how many copies of each file were read and how many were refused. Any other exception than SpecError ends it
with a traceback, and so does more memory than `MEMORY` beyond what it had at the start.
"""

import collections
import json
import random
import resource
import struct
import sys
import tempfile
import zlib
from pathlib import Path

MEMORY = 1 << 30  # bytes
KINDS = ("bits", "cut", "zeros", "inserted", "random", "tag")


def inflated(content: bytes) -> bytes:
    """The same file with its first variable uncompressed."""
    kind, size = struct.unpack_from("<II", content, 128)
    return content[:128] + zlib.decompress(content[136 : 136 + size]) if kind == 15 else content


def deflated(content: bytes) -> bytes:
    """The same file with all behind its header as one compressed variable."""
    packed = zlib.compress(content[128:])
    return content[:128] + struct.pack("<II", 15, len(packed)) + packed


def mutated(content: bytes, kind: str, chance: random.Random) -> bytes:
    """A copy with one kind of damage; near the beginning, where the structure is dense, as often as anywhere."""
    reach = min(len(content), chance.choice((200, 2000, len(content))))
    start, changed = chance.randrange(reach), bytearray(content)
    length = chance.randint(1, chance.choice((4, 64, 1024)))
    if kind == "bits":
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del changed[start:]
    elif kind == "zeros":
        changed[start : start + length] = bytes(len(changed[start : start + length]))
    elif kind == "inserted":
        changed[start:start] = chance.randbytes(length)
    elif kind == "random":
        changed[start : start + length] = chance.randbytes(len(changed[start : start + length]))
    else:  # a size or a type with a value on some border, where tags stand
        value = chance.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 14, 15, 0x40001, chance.randrange(2**32)))
        struct.pack_into("<I", changed, min(start // 4 * 4, len(changed) - 4), value)
    return bytes(changed)


def copies(content: bytes, count: int, chance: random.Random):
    """`count` mutated copies: of the bytes, of the bytes without compression, and of those compressed again; of a v7.3
    file, of the bytes behind its first block."""
    if content[512:].startswith(b"\x89HDF"):
        yield from (content[:512] + mutated(content[512:], KINDS[each % len(KINDS)], chance) for each in range(count))
        return
    plain = inflated(content)
    for number in range(count):
        kind, way = KINDS[number % len(KINDS)], number % 3
        if way == 2:
            yield deflated(mutated(plain, kind, chance))
        else:
            yield mutated(plain if way else content, kind, chance)


def main(seed: int, count: int, files: list[str]) -> None:
    """Read `count` mutated copies of each file and print what came of them."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from pittsburgh import SpecError, read_places

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            outcomes[file], path = collections.Counter(), Path(folder) / "spec.mat"
            for content in copies(Path(file).read_bytes(), count, random.Random(f"{seed} {Path(file).name}")):
                path.write_bytes(content)
                try:
                    read_places(path)
                    outcomes[file]["read"] += 1
                except SpecError as error:
                    assert "\n" not in str(error) and str(path) in str(error), error
                    outcomes[file]["refused"] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
