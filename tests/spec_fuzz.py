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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from campaigns.fuzz import mutate
from pittsburgh import SpecError, is_v73, read_places

MEMORY = 1 << 30  # bytes
BORDERS = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 14, 15, 0x40001)  # of sizes and types


def inflated(content: bytes) -> bytes:
    """The same file with its first variable uncompressed."""
    kind, size = struct.unpack_from("<II", content, 128)
    return content[:128] + zlib.decompress(content[136 : 136 + size]) if kind == 15 else content


def deflated(content: bytes) -> bytes:
    """The same file with all behind its header as one compressed variable."""
    packed = zlib.compress(content[128:])
    return content[:128] + struct.pack("<II", 15, len(packed)) + packed


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A changed copy, of which one in six has another size or type where tags stand, most near the beginning."""
    if chance.randrange(6):
        return mutate(content, chance)
    start, changed = chance.randrange(min(len(content), chance.choice((200, 2000, len(content))))), bytearray(content)
    value = chance.choice((*BORDERS, chance.randrange(2**32)))
    struct.pack_into("<I", changed, min(start // 4 * 4, len(changed) - 4), value)
    return bytes(changed)


def copies(content: bytes, count: int, chance: random.Random):
    """`count` mutated copies: of the bytes, of the bytes without compression, and of those compressed again; of a v7.3
    file, of the bytes behind its first block."""
    if is_v73(content):
        yield from (content[:512] + mutated(content[512:], chance) for _ in range(count))
        return
    plain = inflated(content)
    for number in range(count):
        yield (mutated(content, chance), mutated(plain, chance), deflated(mutated(plain, chance)))[number % 3]


def main(seed: int, count: int, files: list[str]) -> None:
    """Read `count` mutated copies of each file and print what came of them."""
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
