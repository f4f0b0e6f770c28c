"""Damaged files: what comes of ten kinds of files when bytes of them are changed.

    python -m campaigns.fuzz --files 100 --seed 0

Sound files are made, each is changed many times (bits flipped, cut off, zeroed, bytes inserted, removed or replaced),
and the program's own code reads it in a process of its own, which is started again when a file ends it. A changed file
has to be refused in one line; where nothing that is read has changed, it may be accepted. Images, specs and a run's
flags carry no checksum (users edit the last two): they may be read as something else, but nothing else may happen.
"""

import argparse
import collections
import multiprocessing
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

OUTCOMES = ("refused", "identical", "read", "silent", "traceback", "signal", "hang")
HEADINGS = (
    "refused in one line", "accepted, the same content", "read as other content (no checksum)",
    "silently accepted though changed", "tracebacks", "signals", "no end",
)  # fmt: skip
FAILURES = ("silent", "traceback", "signal", "hang")
LONGEST = 120  # seconds for one file


def mutate(content: bytes, chance: random.Random) -> bytes:
    """A changed copy; in half of all cases near the beginning or the end, where formats keep what they depend on."""
    size = len(content)
    start = chance.randrange(size)
    if chance.random() < 0.5:
        near = chance.randrange(min(size, 512))
        start = chance.choice((near, size - 1 - near))
    length = min(size - start, 1 << chance.randrange(10))
    front, middle, back = content[:start], content[start : start + length], content[start + length :]
    kind = chance.randrange(6)
    if kind == 0:
        flipped = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            flipped[min(size - 1, start + chance.randrange(length))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    changed = (front, front + bytes(length) + back, front + chance.randbytes(length) + middle + back, front + back,
               front + chance.randbytes(length) + back)  # fmt: skip
    return changed[kind - 1]


def run(files: int, seed: int, folder: Path, only: list[str] | None = None) -> dict[str, collections.Counter]:
    """Change `files` files of each kind and read them.

    Args:
        folder: empty; the sound files are made there.

    Returns:
        for each kind how often each of OUTCOMES happened.
    """
    from campaigns.fuzz_kinds import kinds, make_files

    make_files(folder)
    counts = {}
    reader = Reader(folder)
    try:
        for name in only or kinds():
            counts[name] = _try_kind(name, files, random.Random(f"{seed} {name}"), folder, reader)
    finally:
        reader.end()
    return counts


def _try_kind(name: str, files: int, chance: random.Random, folder: Path, reader: "Reader") -> collections.Counter:
    """Change and read files of one kind; the sound ones have to be read before and after."""
    from campaigns.fuzz_kinds import kinds

    kind = kinds()[name]
    paths = [next(folder.glob(pattern)) for pattern in kind.files]
    sound = [path.read_bytes() for path in paths]
    wanted = [_sound(reader, name, path) for path in paths]
    count: collections.Counter = collections.Counter()
    for number in range(files):
        which = number % len(paths)
        path, changed = paths[which], mutate(sound[which], chance)
        before = _beside(path)
        _replace(path, changed)
        outcome, said = reader.read(name, path)
        if outcome == "read" and said == wanted[which]:
            outcome = "identical"
        elif outcome == "read" and kind.checked:
            outcome = "silent"
        if outcome == "refused" and name != "trunk cache" and (path.read_bytes() != changed or _beside(path) != before):
            outcome, said = "silent", "a refused file, or one beside it, was overwritten"
        count[outcome] += 1
        if outcome in FAILURES:
            kept = folder / f"{outcome}_{name.split()[0]}_{number}{path.suffix}"
            kept.write_bytes(changed)
            print(f"{name}: {outcome}: {kept}: {said}", file=sys.stderr)
        _restore(paths, sound)
    if [_sound(reader, name, path) for path in paths] != wanted:
        raise RuntimeError(f"{name}: the sound file is not read as before")
    return count


def _sound(reader: "Reader", name: str, path: Path) -> str:
    outcome, said = reader.read(name, path)
    if outcome != "read":
        raise RuntimeError(f"{name}: the sound file {path} cannot be read: {outcome}: {said}")
    return said


def _beside(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def _replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # processes may have the old one mapped
    path.write_bytes(content)


def _restore(paths: list[Path], sound: list[bytes]) -> None:
    for path, content in zip(paths, sound, strict=True):
        _replace(path, content)


class Reader:
    """A process that reads files as the program does, and is replaced when a file has ended it."""

    def __init__(self, folder: Path):
        self.folder, self.process = folder, None

    def read(self, kind: str, path: Path) -> tuple[str, str]:
        """What came of a file, one of OUTCOMES, with a hash of its content or what was said."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_answer, args=(theirs, self.folder), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send((kind, path))
        try:
            if self.pipe.poll(LONGEST):
                return self.pipe.recv()
            said = ("hang", f"no answer within {LONGEST} s")
        except EOFError:
            self.process.join()
            said = ("signal", f"ended with {self.process.exitcode}")
        self.end()
        return said

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = None


def _answer(pipe: Connection, folder: Path) -> None:
    """Read what the other end names until it is gone."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # the program's own lines, and libraries' complaints
        os.dup2(nowhere.fileno(), 2)
    prepared: dict[str, Callable[[Path], str]] = {}
    while True:
        try:
            kind, path = pipe.recv()
        except EOFError:
            return
        pipe.send(outcome_of(kind, path, folder, prepared))


def outcome_of(kind: str, path: Path, folder: Path, prepared: dict) -> tuple[str, str]:
    from campaigns.fuzz_kinds import kinds
    from vpr.common.errors import UserError

    try:
        if kind not in prepared:
            prepared[kind] = kinds()[kind].prepare(folder)
        return "read", prepared[kind](path)
    except UserError as error:
        return ("refused", str(error)) if "\n" not in str(error) else ("traceback", str(error))
    except Exception:
        return "traceback", traceback.format_exc()


def table(counts: dict[str, collections.Counter]) -> str:
    """Markdown."""
    lines = ["| kind | files | " + " | ".join(HEADINGS) + " |", "|" + "---|" * (2 + len(HEADINGS))]
    for name, count in counts.items():
        cells = [name, count.total(), *(count[outcome] for outcome in OUTCOMES)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def failures(counts: dict[str, collections.Counter]) -> int:
    """How many files had an outcome that must not be."""
    return sum(count[outcome] for count in counts.values() for outcome in FAILURES)


def main() -> int:
    """Read the command line, print the table; 1 where anything happened that must not."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=100, help="changed files of each kind (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: 0)")
    parser.add_argument("--only", nargs="+", metavar="KIND", help="only these kinds")
    parser.add_argument("--folder", help="empty folder to work in, which stays (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        counts = run(options.files, options.seed, folder.resolve(), options.only)
    print(table(counts))
    return 1 if failures(counts) else 0


if __name__ == "__main__":
    sys.exit(main())
