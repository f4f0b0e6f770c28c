"""python -m campaigns.killed_database: a database that is killed, and whose disk fills and fails, loses nothing.

    python -m campaigns.killed_database
    python -m campaigns.killed_database --changes 500 --seed 0

A process adds, replaces and removes images of a database and writes it anew without the removed ones, as it is told.
Now and then its disk is full (a limit on the size of files), a sync fails, or it gets SIGKILL at a random moment, and
another one goes on. Two more processes search all the while. Printed is how often which happened. Exit code 1 if an
acknowledged change is lost, a refused one happened, a descriptor is not that of its image, or a reader failed.
"""

import argparse
import contextlib
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

DIM, NAMES, BATCH = 64, 60, 6
KILLED, FULL, UNSYNCED = 0.25, 0.1, 0.1  # shares of the changes to which this happens
State = dict[str, int]  # the version of each image that is there


def vector(name: str, version: int) -> Any:
    """The descriptor float16 [DIM] of a version of an image."""
    values = np.random.default_rng([version, *name.encode()]).standard_normal(DIM)
    return (values / np.linalg.norm(values)).astype(np.float16)


def opened(path: Path) -> Any:
    """The database."""
    from vpr.database.engine import Source, WantedIndex
    from vpr.database.faiss_engine import open_engine

    return open_engine(Source("", path, "", DIM, {"weights": "synthetic"}, {}), WantedIndex())


def write(path: Path) -> None:
    """Do what each line of standard input says, and say whether it was done."""
    from vpr.common.errors import UserError
    from vpr.common.progress import without_progress
    from vpr.database.records import Records

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    engine, sync = opened(path), os.fsync

    def unsynced(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    print("open", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        limit = 2048 if told["trouble"] == "full" else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        os.fsync = unsynced if told["trouble"] == "unsynced" else sync
        try:
            with without_progress(), contextlib.redirect_stdout(sys.stderr):
                if told["do"] == "add":
                    names, versions = list(told["images"]), list(told["images"].values())
                    zeros = np.zeros(len(names), np.int64)
                    records = Records(
                        names, np.zeros((len(names), 2)), None, np.array(versions, np.int64), zeros,
                        np.zeros((len(names), 32), np.uint8), [""] * len(names),
                    )  # fmt: skip
                    engine.add(records, np.stack([vector(*image) for image in told["images"].items()]))
                elif told["do"] == "remove":
                    engine.remove(told["names"])
                else:
                    engine.finish(sorted(engine.row_of, reverse=bool(told["backwards"])))
            said = "done"
        except UserError:
            said = "refused"
        print(said, flush=True)


def read(path: Path) -> None:
    """Search until standard input ends; every hit shall lie as far as its image does. Prints how often."""
    from vpr.common.progress import without_progress

    engine, chance, searches = opened(path), random.Random(os.getpid()), 0
    os.set_blocking(sys.stdin.fileno(), False)
    while sys.stdin.buffer.raw.read(1) is None:  # type: ignore[attr-defined]  # it has a raw file
        query = vector("query", chance.randrange(1000)).astype(np.float32)
        with without_progress():
            rows, distances, records = engine.search(query[None], 4)
        for row, distance in zip(rows[0], distances[0], strict=True):
            if row >= 0:
                true = np.linalg.norm(vector(records.names[row], int(records.sizes[row])) - query)
                assert abs(float(true) - distance) < 1e-3, records.names[row]
        searches += 1
        time.sleep(0.002)
    print(searches, flush=True)


def there(path: Path) -> State:
    """What a process that opens the database finds, after each descriptor was compared."""
    from vpr.common.errors import UserError

    engine = opened(path)
    rows, records = engine.rows(), engine.records
    found = {records.names[row]: int(records.sizes[row]) for row in rows}
    if len(found) != len(rows) or len(rows) != engine.count():
        raise UserError("an image is there twice")
    wanted = [vector(*image) for image in found.items()]
    if wanted and not np.array_equal(engine.descriptors(rows), np.stack(wanted)):
        raise UserError("a descriptor is not that of its image")
    engine.close()
    return found


def change(state: State, number: int, chance: random.Random) -> tuple[dict[str, Any], State]:
    """What to do next, and what is there when it was done."""
    kind = chance.choices(["add", "remove", "finish"], [6, 3, 1])[0]
    if kind == "add":
        images = {f"image{chance.randrange(NAMES)}": number for _ in range(chance.randint(1, BATCH))}
        return {"do": "add", "images": images}, {**state, **images}
    if kind == "remove":
        names = chance.sample(sorted(state), min(len(state), chance.randint(1, BATCH)))
        return {"do": "remove", "names": names}, {name: at for name, at in state.items() if name not in names}
    return {"do": "finish", "backwards": chance.random() < 0.5}, state


class Process:
    """Another process of this program, which is written to and read from line by line."""

    def __init__(self, role: str, path: Path) -> None:
        command = [sys.executable, "-m", "campaigns.killed_database", "--role", role, "--path", str(path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        """The next line; empty where it has ended."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def errors(self) -> str:
        """The end of what it said went wrong, once it has ended."""
        assert self.process.stderr
        return self.process.stderr.read()[-300:] if self.process.poll() is not None else ""

    def tell(self, line: str) -> None:
        """Write a line."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


def campaign(path: Path, changes: int, seed: int) -> Counter[str]:
    """Change, kill and compare; what happened, and how often.

    Raises:
        UserError: what is there is not what was acknowledged.
    """
    from vpr.common.errors import UserError

    chance, happened = random.Random(seed), Counter[str]()
    state, writer = dict[str, int](), _writer(path)
    readers = [Process("read", path) for _ in range(2)]
    seconds = 0.02  # that a change takes
    for number in range(changes):
        told, after = change(state, number, chance)
        told["trouble"] = chance.choices(["", "full", "unsynced"], [1 - FULL - UNSYNCED, FULL, UNSYNCED])[0]
        killed, began = chance.random() < KILLED, time.monotonic()
        writer.tell(json.dumps(told))
        if killed:
            time.sleep(chance.uniform(0, 1.5 * seconds))
            writer.process.send_signal(signal.SIGKILL)
        said = writer.line()
        happened[f"{told['do']} {said or 'killed'}"] += 1
        found = there(path)
        possible = [after] if said == "done" else [state] if said == "refused" else [state, after]
        if found not in possible:
            raise UserError(f"change {number}, {told}, {said or 'killed'}: found {found}, wanted one of {possible}")
        state = found
        if killed:
            writer.process.wait()
            writer = _writer(path)
        else:
            seconds = 0.9 * seconds + 0.1 * (time.monotonic() - began)
        if any(reader.process.poll() is not None for reader in readers):
            raise UserError(f"change {number}: a reader failed: {[each.errors() for each in readers]}")
    for each in [writer, *readers]:
        assert each.process.stdin
        each.process.stdin.close()
    for reader in readers:
        happened["searches of readers"] += int(reader.line() or 0)
        if reader.process.wait():
            raise UserError("a reader failed")
    writer.process.wait()
    return happened


def _writer(path: Path) -> Process:
    writer = Process("write", path)
    assert writer.line() == "open"
    return writer


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, and do it."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.killed_database", description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--role", choices=["write", "read"], help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role:
        (write if options.role == "write" else read)(options.path)
        return 0
    from vpr.common.errors import UserError

    with tempfile.TemporaryDirectory() as folder:
        try:
            happened = campaign(Path(folder) / "database.sqlite", options.changes, options.seed)
        except UserError as error:
            print(f"FAILED: {error}")
            return 1
    for what, count in sorted(happened.items()):
        print(f"{count:8,} {what}")
    print("nothing acknowledged is lost, nothing refused happened, no reader failed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
